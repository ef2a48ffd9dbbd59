"""Parameters ready for training: every value is a number."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from vae.config.beta_elbo import BetaELBO
from vae.config.errors import InputError
from vae.config.loading import P, checked
from vae.config.parameters import KL, Parameters


class ResolvedKL(KL):
    """`max_weight` is a number, and the ramp is in epochs."""

    max_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    annealing_steps: None = None

    @property
    def final_weight(self) -> float:
        """Where the schedule ends; 1, the ELBO's own, where a control steers the rate."""
        return self.max_weight if self.control == "schedule" else 1.0


class ResolvedParameters(Parameters):
    kl: ResolvedKL = ResolvedKL()

    @property
    def elbo(self) -> BetaELBO:
        """What is minimised after the ramp."""
        return BetaELBO.of(self, self.kl.final_weight)


def resolve(p: Parameters, steps_per_epoch: int, calibrated_weight: float | None = None) -> ResolvedParameters:
    """Replaces a `calibrated` weight by preflight's number, and a ramp in steps by one in epochs.

    Progress is step / steps_per_epoch, so the ramp ends at exactly its last step.
    """
    kl = p.kl.model_dump()
    if p.kl.max_weight == "calibrated":
        assert calibrated_weight is not None, "only preflight knows the calibrated weight"
        kl["max_weight"] = calibrated_weight
    if p.kl.annealing_steps is not None:
        # Training refuses an epoch without a full batch, and says why.
        kl |= {"annealing_epochs": p.kl.annealing_steps / max(steps_per_epoch, 1), "annealing_steps": None}
    return ResolvedParameters.model_validate({**p.model_dump(), "kl": kl})


def changed(p: P, changes: Mapping[str, Any]) -> P:
    """The parameters with some values changed, by name.

    Raises:
        InputError: they do not go together.
    """
    values = p.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if not isinstance(values.get(section), dict) or key not in values[section]:
            raise InputError(f"{name} is not a parameter that can be changed")
        values[section][key] = value
    return checked(type(p), values, "the changed parameters")
