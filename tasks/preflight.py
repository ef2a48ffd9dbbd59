"""Stage `preflight`: what linear theory says of these images at this KL weight, before anything is trained."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasks import workspace
from vae import parameters, preflight
from vae.batches import open_images
from vae.objective import COLLAPSED_BELOW_NATS, Objective
from vae.parameters import Parameters
from vae.preflight import Spectrum
from vae.rounding import rounded


def main() -> None:
    p = parameters.load(workspace.PARAMS)
    images = open_images(workspace.images("train"))
    spectrum = preflight.spectrum(
        images,
        p.model.latent_dim,
        bernoulli=p.objective.likelihood == "bernoulli",
        drawn=p.data.binarise == "dynamic",
        seed=p.seed,
    )
    p = preflight.with_calibrated_weight(p, spectrum)
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
    result = preflight.expectations(p, spectrum)
    return {**result, "warnings": warnings(p, result, spectrum)}


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
            f"{kl:.2g} nats; stay below {collapse:.3g}, for example at {calibrated:.2g}"
        )
    if beta < 0.05:
        found.append(
            f"the KL term hardly counts: an effective beta of {beta:.2g}; samples from the prior will be noise "
            f"(kl.max_weight = {calibrated:.2g} is calibrated)"
        )
    if p.model.latent_dim > spectrum.images / 4:
        found.append(
            f"model.latent_dim = {p.model.latent_dim} for {spectrum.images} training images: "
            "the prediction is too high where latents are nearly as many as images"
        )
    if p.objective.likelihood == "bernoulli" and p.data.binarise == "none":
        found.append(
            "a Bernoulli likelihood on grey pixels is not normalised: its ELBO is a cross-entropy bound, "
            "its nll is left out (data.binarise makes it a likelihood)"
        )
    return found


def plot(spectrum: Spectrum, objective: Objective, weight: float) -> Figure:
    """Left: the eigenvalues and the threshold. Right: the predicted KL over KL weights."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = spectrum.eigenvalues
    left.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), marker=".", color="#2f6db3")
    left.axhline(
        preflight.threshold(spectrum, objective, weight),
        color="#c0392b",
        ls="--",
        label="threshold at this weight",
    )
    left.set(xlabel="latent", ylabel="eigenvalue of the images' covariance", title="What the images hold")
    left.legend()

    critical = max(preflight.critical_weight(spectrum, objective), 1e-12)
    weights = np.geomspace(critical * 1e-4, critical * 2, 120)
    right.semilogx(weights, [preflight.predict(spectrum, objective, w).kl for w in weights], color="#2f6db3")
    right.axhline(1, color="#888888", lw=0.8)
    collapse = preflight.collapse_weight(spectrum, objective)
    if collapse > 0 and math.isfinite(collapse):
        right.axvspan(collapse, weights[-1], color="#c0392b", alpha=0.12, label="collapse expected")
    if weight > 0:
        right.axvline(weight, color="#c0392b", ls="--", label=f"kl.max_weight = {weight:g}")
    right.set(
        xlabel="KL weight", ylabel="predicted KL (nats per image)", title="What a KL weight leaves of it"
    )
    right.legend()
    return figure


if __name__ == "__main__":
    workspace.run(main)
