"""Parameters ready for training: every value is a number."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from vae.config.beta_elbo import BetaELBO
from vae.config.errors import InputError
from vae.config.loading import checked
from vae.config.parameters import Parameters
from vae.config.sections import KL, Train

# Of a schedule that falls, from a batch size of 64 on. Found on digits, leaves and MNIST (docs/training.md).
LEARNING_RATE = {"muon": 2.5e-2, "adamw": 6e-3}
CONSTANT = 0.5  # of that, where the rate never falls
FULL_BATCH = 64
RAMP = 0.25  # of the training, where the ramp of the KL weight has no length of its own


class ResolvedKL(KL):
    """`max_weight` is a number, and the ramp is in epochs."""

    max_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    annealing_epochs: float = Field(ge=0, default=5)
    follows_epochs: bool = Field(default=False, exclude=True)  # the ramp was left to the rule
    annealing_steps: None = None

    @property
    def final_weight(self) -> float:
        """Where the schedule ends; 1, the ELBO's own, where a control steers the rate."""
        return self.max_weight if self.control == "schedule" else 1.0


class ResolvedTrain(Train):
    """`learning_rate` is a number, and the length of the training is in epochs."""

    learning_rate: float = Field(gt=0, default=LEARNING_RATE["muon"])
    follows_batch: bool = Field(default=False, exclude=True)  # the learning rate was left to the rule
    budget: None = None


class ResolvedParameters(Parameters):
    kl: ResolvedKL = ResolvedKL()
    train: ResolvedTrain = ResolvedTrain()

    @property
    def elbo(self) -> BetaELBO:
        """What is minimised after the ramp."""
        return BetaELBO.of(self, self.kl.final_weight)


def usual_learning_rate(train: Train) -> float:
    """What `learning_rate: auto` means.

    It grows as the square root of the batch, whose gradient is less noisy (Malladi 2022, "On the SDEs and scaling
    rules for adaptive gradient algorithms"). From `FULL_BATCH` on, the size of the steps is what limits it: at 0.05,
    networks without batch norm diverge.
    """
    height = CONSTANT if train.learning_rate_schedule == "constant" else 1.0
    return LEARNING_RATE[train.optimizer] * height * math.sqrt(min(train.batch_size / FULL_BATCH, 1.0))


def ramp_epochs(p: Parameters) -> float:
    """The length of the KL weight's ramp, unless it is given in steps."""
    return RAMP * p.train.epochs if p.kl.annealing_epochs == "auto" else p.kl.annealing_epochs


def resolve(
    p: Parameters, steps_per_epoch: int, weight: float | None = None, epochs: int | None = None
) -> ResolvedParameters:
    """Replaces what is left to a rule by its number, and a ramp in steps by one in epochs.

    Progress is step / steps_per_epoch, so the ramp ends at exactly its last step.

    weight, epochs: preflight's numbers, for a `kl.max_weight` that is none and for `train.budget`.
    """
    kl, train = p.kl.model_dump(), p.train.model_dump()
    if p.train.budget is not None:
        assert epochs is not None, "only preflight knows how many epochs fit into a budget"
        train |= {"epochs": epochs, "budget": None}
    if p.kl.asks_preflight:
        assert weight is not None, "only preflight knows the weight"
        kl["max_weight"] = weight
    if p.kl.annealing_steps is not None:
        # Training refuses an epoch without a full batch, and says why.
        kl |= {"annealing_epochs": p.kl.annealing_steps / max(steps_per_epoch, 1), "annealing_steps": None}
    kl["follows_epochs"] = getattr(p.kl, "follows_epochs", kl["annealing_epochs"] == "auto")
    train["follows_batch"] = getattr(p.train, "follows_batch", train["learning_rate"] == "auto")
    return ResolvedParameters.model_validate(_by_rule({**p.model_dump(), "kl": kl, "train": train}))


def _by_rule(values: dict[str, Any]) -> dict[str, Any]:
    """Fills in what follows from other parameters."""
    kl, train = values["kl"], values["train"]
    if kl["follows_epochs"]:
        kl["annealing_epochs"] = RAMP * train["epochs"]
    if train["follows_batch"]:
        train["learning_rate"] = usual_learning_rate(Train.model_construct(**train))
    return values


def changed(p: ResolvedParameters, changes: Mapping[str, Any]) -> ResolvedParameters:
    """The parameters with some values changed, by name; what was left to a rule follows them.

    Raises:
        InputError: they do not go together.
    """
    values = p.model_dump()
    values["kl"]["follows_epochs"] = p.kl.follows_epochs and "kl.annealing_epochs" not in changes
    values["train"]["follows_batch"] = p.train.follows_batch and "train.learning_rate" not in changes
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if not isinstance(values.get(section), dict) or key not in values[section]:
            raise InputError(f"{name} is not a parameter that can be changed")
        values[section][key] = value
    checked(ResolvedParameters, values, "the changed parameters")  # before the rules calculate with them
    return checked(ResolvedParameters, _by_rule(values), "the changed parameters")
