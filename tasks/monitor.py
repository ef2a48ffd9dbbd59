"""Stage `monitor`: from the saved model alone, the whole validation set again, and the verdict."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tasks import workspace
from tasks.processes import entry
from vae.collapse import linear_theory, remedies
from vae.collapse.diagnosis import Evidence, judge
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.compute.devices import Compute
from vae.config import parameters
from vae.config.errors import InputError
from vae.config.parameters import KL, Parameters
from vae.config.text import rounded
from vae.losses.objective import Objective, effective_beta
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import Measurement
from vae.models import mixture_prior, saved
from vae.models.saved import Saved
from vae.schedules.kl import first_final_epoch
from vae.training import checkpoint
from vae.training.history import Row

# What training logged and what the saved model gives may differ by the last bits of another device or
# precision; more than this means that the file is not the model that was trained.
RELATIVE, ABSOLUTE = 0.01, 0.02

FEW_IMAGES = 20


def main() -> None:
    checkpoint.remove_finished(workspace.root() / ".checkpoints")  # DVC has taken the results in by now
    p = workspace.load_parameters()
    model = saved.load(workspace.MODEL, devices.choose(p.train).device)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    history: list[Row] = pd.read_csv(workspace.HISTORY).to_dict("records")  # type: ignore[assignment]  # keys are str
    compute = model.compute(next(model.model.parameters()).device)
    valid = measurement.measure(model.model, valid_images, model.likelihood, compute, p.seed)
    check_agreement(model, valid, history)

    p = parameters.changed(p, model.changes)
    evidence = Evidence(
        valid=valid,
        mean_image_mse=MeanImage.of(for_measuring(train_images, p)).mse(valid_images),
        history=history,
        predicted=linear_theory.of_remedied(
            workspace.read_json(workspace.PREFLIGHT), p, model.changes, model.pixels
        ),
        train=model.train,
        kept_epoch=model.kept_epoch,
        fitted_gap=fitted_gap(model, valid, valid_images, compute, p.seed),
    )
    result = report(p, model, evidence)
    result["recommendations"] = followable(result["recommendations"], parameters.load(workspace.PARAMS).kl)
    workspace.write_json(workspace.MONITOR, rounded(result))

    print(f"verdict: {result['verdict']}. {result['summary']}")
    for name, lines in (
        ("reason", "reasons"),
        ("recommendation", "recommendations"),
        ("warning", "warnings"),
    ):
        for line in result[lines]:
            print(f"  {name}: {line}")
    for line in result["remedies"]:
        print(f"  remedied: {line}")


def followable(recommendations: list[str], kl: KL) -> list[str]:
    """With what else has to change in the parameters as they were written: a ramp in steps goes before epochs."""
    if kl.annealing_steps is None or not any("kl.annealing_epochs" in line for line in recommendations):
        return recommendations
    return [*recommendations, "set kl.annealing_steps to null"]


def fitted_gap(
    model: Saved, valid: Measurement, valid_images: np.ndarray, compute: Compute, seed: int
) -> float | None:
    if model.prior is None:
        return None
    mu, logvar = measurement.encode(model.model, valid_images, compute)
    return mixture_prior.gap(valid.prior_gap, mu, logvar, model.prior, seed)


def to_keep(changes: dict[str, Any], remedy: dict[str, Any]) -> list[str]:
    """What a remedied model was made with, for `params.yaml`: what is still to change counts from there."""
    return [
        f"keep the remedy: set {name} to {remedies.written(value)}"
        for name, value in changes.items()
        if name not in remedy
    ]


def in_words(tried: list[dict[str, Any]]) -> list[str]:
    """A line for each attempt: what was changed, what came of it, and which was kept."""
    lines = []
    for number, attempt in enumerate(tried):
        changes = remedies.in_words(attempt["changes"])
        if attempt["fitted_prior"]:
            changes.append("a Gaussian mixture fitted to the latents as the prior")
        made = ", ".join(changes) or "the parameters as they are"
        kept = " This one was kept." if attempt["kept"] else ""
        lines.append(
            f"attempt {number}, {made}: {attempt['verdict']}. {'; '.join(attempt['reasons'])}.{kept}"
        )
    return lines


def check_agreement(model: Saved, valid: Measurement, history: list[Row]) -> None:
    """Raises: InputError: the saved model does not give what training logged for its epoch."""
    logged = next((row for row in history if row["epoch"] == model.kept_epoch), None)
    if logged is None:
        return  # no epoch was finite: these are the weights that training began with
    found = {
        "valid/kl": valid.rate,
        "valid/mse": valid.mse,
        "valid/mse_sampled": valid.mse_sampled,
    }
    for name, value in found.items():
        if not math.isclose(value, logged[name], rel_tol=RELATIVE, abs_tol=ABSOLUTE * (name == "valid/kl")):
            raise InputError(
                f"the saved model disagrees with its training: {name} is {value:.6g}, and training logged "
                f"{logged[name]:.6g} in epoch {model.kept_epoch}; run `dvc repro --force train` to train again"
            )


def report(p: Parameters, model: Saved, e: Evidence) -> dict[str, Any]:
    """The content of `reports/monitor.json`."""
    verdict = judge(p, e)
    valid = e.valid
    warnings = []
    ramp_end = first_final_epoch(p.kl, p.train.epochs)
    if e.history and e.history[-1]["epoch"] - 1 < ramp_end:
        warnings.append(
            f"no epoch was trained at the final KL weight: the ramp ends after epoch {ramp_end:g}, "
            f"the training after {e.history[-1]['epoch']:.0f}; the last epoch was kept"
        )
    if valid.images < FEW_IMAGES:
        warnings.append(
            f"the verdict rests on {valid.images} validation images; {FEW_IMAGES} or more make it firm"
        )
    return {
        "verdict": verdict.verdict,
        "summary": verdict.summary,
        "reasons": verdict.reasons,
        "recommendations": to_keep(model.changes, verdict.remedy) + verdict.recommendations,
        "warnings": warnings,
        "remedies": in_words(model.remedies),
        "changes": model.changes,
        "fitted_prior": model.prior is not None,
        "kept_epoch": model.kept_epoch,
        "epochs": len(e.history),
        "stopped": model.stopped,
        "elbo": valid.elbo,
        "reconstruction": valid.distortion,
        "kl": valid.rate,
        "mse": valid.mse,
        "mse_sampled": valid.mse_sampled,
        "mean_image_mse": e.mean_image_mse,
        "active_units": valid.active_units(p.monitor.active_unit_threshold),
        "informative_units": valid.informative_units(p.monitor.informative_unit_nats),
        "latents": p.model.latent_dim,
        "prior_gap": valid.prior_gap,
        "fitted_prior_gap": e.fitted_gap,
        "prior_gap_full": valid.prior_gap_full,
        "effective_beta": effective_beta(Objective.of(p), valid.mse_sampled),
        "train_elbo": e.train["elbo"],
        "predicted_kl": e.predicted["predicted_kl"],
        "kl_per_latent": valid.kl_per_latent.tolist(),
        "mean_variance": valid.mean_variance.tolist(),
        "posterior_share": valid.posterior_share.tolist(),
    }


if __name__ == "__main__":
    entry.run(main)
