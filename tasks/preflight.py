"""Stage `preflight`: what linear theory says of these images at this KL weight, before anything is trained."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasks import workspace
from tasks.processes import entry
from vae.collapse import linear_theory
from vae.collapse.linear_theory import MOST_LATENTS_PER_IMAGE, Spectrum
from vae.compute.batches import open_images
from vae.config import parameters
from vae.config.parameters import KL, Parameters
from vae.config.text import rounded
from vae.losses.objective import COLLAPSED_BELOW_NATS, Objective
from vae.schedules.kl import ramp_share, share_above

MOST_ABOVE = 0.5  # of a cycle, at weights where linear theory expects collapse


def main() -> None:
    p = parameters.load(workspace.PARAMS)
    images = open_images(workspace.images("train"))
    spectrum = linear_theory.spectrum_for(p, images)
    p = linear_theory.with_calibrated_weight(p, spectrum)
    objective = Objective.of(p)
    result = predicted(p, spectrum)
    workspace.write_json(workspace.PREFLIGHT, rounded(result))
    plot(spectrum, objective, p.kl.weight).savefig(
        workspace.PREFLIGHT_PLOT, dpi=110, metadata={"Software": None}
    )

    print(
        f"preflight: linear theory expects a KL of {prediction_of(result)} nats in "
        f"{result['predicted_active_units']} of {p.model.latent_dim} latents at kl.max_weight = {p.kl.weight:g} "
        f"(collapse from {result['collapse_kl_weight']:.3g}, calibrated {result['calibrated_kl_weight']:.3g})"
    )
    for warning in result["warnings"]:
        print(f"WARNING: {warning}")


def predicted(p: Parameters, spectrum: Spectrum) -> dict[str, Any]:
    """The content of `reports/preflight.json`."""
    result = linear_theory.expectations(p, spectrum)
    collapse = result["collapse_kl_weight"]
    return {
        **result,
        **schedule_above(p.kl, collapse),
        "warnings": [
            *warnings(p, result, spectrum),
            *controller_warnings(p.kl, spectrum, Objective.of(p), collapse),
        ],
    }


def prediction_of(result: dict[str, Any]) -> str:
    kl = result["predicted_kl"]
    return "unboundedly many" if kl is None else f"{kl:.3g}"


def warnings(p: Parameters, result: dict[str, Any], spectrum: Spectrum) -> list[str]:
    kl = math.inf if result["predicted_kl"] is None else result["predicted_kl"]
    collapse, calibrated = result["collapse_kl_weight"], result["calibrated_kl_weight"]
    beta = result["effective_beta"]
    found = []
    if spectrum.total <= 0:
        found.append("all training images are the same: there is nothing for a latent to say")
    elif p.kl.control != "schedule":
        if kl < COLLAPSED_BELOW_NATS:
            found.append(
                f"POSTERIOR COLLAPSE AHEAD: the target of the control (kl.{p.kl.control}) leaves a KL of only "
                f"{kl:.2g} nats; ask for more than {COLLAPSED_BELOW_NATS:g}"
            )
    elif p.kl.weight >= collapse:
        found.append(
            f"POSTERIOR COLLAPSE AHEAD: at kl.max_weight = {p.kl.weight:g} linear theory expects a KL of only "
            f"{kl:.2g} nats; stay below {collapse:.3g}, for example at {calibrated:.2g}{_when(p.kl, collapse)}"
        )
        if p.kl.schedule == "cyclical" and share_above(p.kl, collapse) > MOST_ABOVE:
            found.append(_too_long_above(p.kl, collapse))
    if beta < 0.05:
        found.append(
            f"the KL term hardly counts: an effective beta of {beta:.2g}; samples from the prior will be noise "
            f"(kl.max_weight = {calibrated:.2g} is calibrated)"
        )
    if p.model.latent_dim > spectrum.images * MOST_LATENTS_PER_IMAGE:
        found.append(
            f"model.latent_dim = {p.model.latent_dim} for {spectrum.images} training images: "
            "the prediction is too high where latents are nearly as many as images"
        )
    if p.model.architecture == "autoregressive":
        found.append(
            "model.architecture = autoregressive: the decoder explains pixels by those before them, so the latents may "
            "die at a far lower kl.max_weight than linear theory says"
        )
    if p.objective.likelihood == "bernoulli" and p.data.binarise == "none":
        found.append(
            "a Bernoulli likelihood on grey pixels is not normalised: its ELBO is a cross-entropy bound, "
            "its nll is left out (data.binarise makes it a likelihood)"
        )
    return found


def schedule_above(kl: KL, collapse: float) -> dict[str, float | None]:
    """How much of a cycle lies at or above the collapse weight, and where a ramp crosses it.

    None of it needs the length of the training; what does not apply, or never happens, is None.
    """
    above: dict[str, float | None] = dict.fromkeys(
        ("share_above_collapse", "epoch_of_collapse_weight", "step_of_collapse_weight")
    )
    t = ramp_share(kl, collapse)
    if kl.control != "schedule":
        return above
    if kl.schedule == "cyclical":
        return {**above, "share_above_collapse": share_above(kl, collapse)}
    if t is None or kl.schedule == "constant":
        return above
    if kl.annealing_steps is not None:
        return {**above, "step_of_collapse_weight": t * kl.annealing_steps}
    return {**above, "epoch_of_collapse_weight": t * kl.annealing_epochs}


def _when(kl: KL, collapse: float) -> str:
    """When a ramp crosses the collapse weight, as the end of a sentence."""
    above = schedule_above(kl, collapse)
    if above["step_of_collapse_weight"] is not None:
        return f"; the ramp crosses it at step {above['step_of_collapse_weight']:.0f} of {kl.annealing_steps}"
    if above["epoch_of_collapse_weight"] is not None:
        return f"; the ramp crosses it after {above['epoch_of_collapse_weight']:.2g} of {kl.annealing_epochs:g} epochs"
    return ""


def _too_long_above(kl: KL, collapse: float) -> str:
    t = ramp_share(kl, collapse)
    assert t is not None
    ratio = math.ceil(100 * MOST_ABOVE / t) / 100 if t > 0 else math.inf
    longer = f" (kl.ratio = {ratio:g} would make it a half)" if ratio <= 1 else ""
    return (
        f"kl.schedule = cyclical spends {share_above(kl, collapse):.0%} of each cycle at weights from {collapse:.3g} "
        f"on, where linear theory expects collapse; "
        f"lower kl.max_weight = {kl.weight:g}{longer}"
    )


def controller_warnings(kl: KL, spectrum: Spectrum, objective: Objective, collapse: float) -> list[str]:
    """Of a PI controller: whether the weight that its set-point takes lies within its bounds, collapse without."""
    if kl.target_kl is None or spectrum.total <= 0:
        return []
    needed = linear_theory.collapse_weight(spectrum, objective, nats=kl.target_kl)
    takes = f"kl.target_kl = {kl.target_kl:g} nats takes a weight of about {needed:.2g} by linear theory"
    if needed < kl.min_weight:
        return [
            f"{takes}, below kl.min_weight = {kl.min_weight:g}: the KL will stay lower; lower kl.min_weight"
        ]
    if needed > kl.weight:
        return [f"{takes}, above kl.max_weight = {kl.weight:g}: the KL will stay higher; raise kl.max_weight"]
    if needed < collapse <= kl.weight:
        return [
            f"{takes}; kl.max_weight = {kl.weight:g} lets the controller overshoot beyond {collapse:.3g}, where "
            f"the latents die: set kl.max_weight between the two, for example to {math.sqrt(needed * collapse):.2g}"
        ]
    return []


def plot(spectrum: Spectrum, objective: Objective, weight: float) -> Figure:
    """Left: the eigenvalues and the threshold. Right: the predicted KL over KL weights."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = spectrum.eigenvalues
    left.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), marker=".", color="#2f6db3")
    left.axhline(
        linear_theory.threshold(spectrum, objective, weight),
        color="#c0392b",
        ls="--",
        label="threshold at this weight",
    )
    left.set(xlabel="latent", ylabel="eigenvalue of the images' covariance", title="What the images hold")
    left.legend()

    weights = linear_theory.weights_of_interest(linear_theory.critical_weight(spectrum, objective), weight)
    right.semilogx(
        weights, [linear_theory.predict(spectrum, objective, w).kl for w in weights], color="#2f6db3"
    )
    right.axhline(1, color="#888888", lw=0.8)
    collapse = linear_theory.collapse_weight(spectrum, objective)
    if collapse > 0 and math.isfinite(collapse):
        right.axvspan(
            min(collapse, weights[-1]), weights[-1], color="#c0392b", alpha=0.12, label="collapse expected"
        )
    if weight > 0:
        right.axvline(weight, color="#c0392b", ls="--", label=f"kl.max_weight = {weight:g}")
    right.set(
        xlabel="KL weight",
        ylabel="predicted KL (nats per image)",
        title="What a KL weight leaves of it",
        xlim=(weights[0], weights[-1]),
    )
    right.legend()
    return figure


if __name__ == "__main__":
    entry.run(main)
