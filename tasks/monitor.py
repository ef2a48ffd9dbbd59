"""Stage `monitor`: measure the saved model on the whole validation set and judge it."""

import dataclasses
import logging
import math
from typing import Any

import pandas as pd

from tasks import workspace
from tasks.processes import checkpoint_folder, contention, entry
from vae.collapse import remedies
from vae.collapse.diagnosis import judge
from vae.collapse.evidence import Evidence, Verdict, effective_beta
from vae.collapse.expectations import of_remedied
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters, changed
from vae.config.text import rounded, written
from vae.metrics.free_running import free_running
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import Measurement, measure
from vae.models import saved
from vae.models.saved import Attempted, Saved
from vae.samples.evidence import sample_evidence
from vae.schedules.kl import first_final_epoch
from vae.training import checkpoint
from vae.training.history import Row

# The saved model may differ from what training logged by the last bits of another device or precision. A larger
# difference means that the file is not the model that was trained.
RELATIVE, ABSOLUTE = 0.01, 0.02

FEW_IMAGES = 20

log = logging.getLogger(__name__)


def main() -> None:
    checkpoint.remove_finished(checkpoint_folder.root())  # DVC has cached the results by now
    p = workspace.load_parameters()
    model = saved.load(workspace.MODEL, devices.choose(p.train).device)
    compute = model.compute(next(model.model.parameters()).device)
    devices.set_up(compute, p.train.deterministic)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    history: list[Row] = workspace.read(workspace.HISTORY, pd.read_csv).to_dict("records")  # type: ignore[assignment]
    with contention.coped_with(compute):
        valid = measure(model.model, valid_images, model.likelihood, compute, p.seed)
    check_agreement(model, valid, history)

    p = changed(p, model.config.changes)
    measured = for_measuring(train_images, p)
    with contention.coped_with(compute):
        samples = sample_evidence(model.model, model.likelihood, model.prior, measured, valid_images, compute, p.seed)
    preflight = workspace.read_json(workspace.PREFLIGHT)
    mean_image = MeanImage.of(measured)
    evidence = Evidence(
        valid=valid,
        mean_image_mse=mean_image.mse(valid_images),
        history=history,
        predicted=of_remedied(preflight, p, model.config.changes, model.pixels),
        train=model.config.train,
        kept_epoch=model.config.kept_epoch,
        samples=samples,
        prior=model.config.prior.name,
        free_running=free_running(model.model, valid_images, mean_image, model.likelihood, compute, p.seed),
        own_prior=model.model.prior_name,
    )
    result = report(p, model, evidence, loading.load(workspace.PARAMS))
    workspace.write_json(workspace.MONITOR, rounded(result))

    log.info(f"verdict: {result['verdict']}. {result['summary']}")
    for name in ("reason", "recommendation", "warning"):
        for line in result[f"{name}s"]:
            log.info(f"  {name}: {line}")
    for line in result["remedies"]:
        log.info(f"  remedied: {line}")


def check_agreement(model: Saved, valid: Measurement, history: list[Row]) -> None:
    """Raises: InputError: the saved model does not reproduce what training logged for its epoch."""
    kept_epoch = model.config.kept_epoch
    logged = next((row for row in history if row["epoch"] == kept_epoch), None)
    if logged is None:
        return  # no epoch was finite: the model has the initial weights
    # Latents that were standardised after training give the same pictures at a lower KL.
    found = {
        "valid/kl": max(valid.rate, logged["valid/kl"]),
        "valid/mse": valid.mse,
        "valid/mse_sampled": valid.mse_sampled,
    }
    for name, value in found.items():
        if not math.isclose(value, logged[name], rel_tol=RELATIVE, abs_tol=ABSOLUTE * (name == "valid/kl")):
            raise InputError(
                f"the saved model disagrees with its training: {name} is {value:.6g}, but training logged "
                f"{logged[name]:.6g} in epoch {kept_epoch}; run `dvc repro --force train` to train again"
            )


def remedy_of(model: Saved, verdict: Verdict, user: Parameters) -> dict[str, Any]:
    """All changes to make in `params.yaml`: those that a restart made already, and those still recommended.

    user: `params.yaml`. A ramp in steps and a training in seconds take precedence over epochs, and have to be unset.
    """
    remedy = {**model.config.changes, **verdict.remedy}
    if user.kl.annealing_steps is not None and "kl.annealing_epochs" in remedy:
        remedy["kl.annealing_steps"] = None
    if user.train.budget is not None and "train.epochs" in remedy:
        remedy["train.budget"] = None
    return remedy


def recommendations(model: Saved, verdict: Verdict, remedy: dict[str, Any]) -> list[str]:
    """The remedy as sentences, then the advice that no parameter can express."""
    sentences = [
        f"{'' if name in verdict.remedy or name not in model.config.changes else 'keep the remedy: '}"
        f"set {name} to {written(value)}"
        for name, value in remedy.items()
    ]
    return sentences + verdict.advice


def attempts_in_words(tried: list[Attempted]) -> list[str]:
    """One line per attempt: the changes, the verdict and its reasons, and which was kept."""
    lines = []
    for number, attempt in enumerate(tried):
        changes = remedies.in_words(attempt.changes)
        made = ", ".join(changes) or "parameters unchanged"
        kept = " Kept." if attempt.kept else ""
        lines.append(f"attempt {number}, {made}: {attempt.verdict}. {'; '.join(attempt.reasons)}.{kept}")
    return lines


def warnings(p: ResolvedParameters, e: Evidence) -> list[str]:
    found = []
    ramp_end = first_final_epoch(p.kl, p.train.epochs)
    if e.history and e.history[-1]["epoch"] <= ramp_end:
        found.append(
            f"no epoch trained at the final KL weight: the ramp ends after epoch {ramp_end:g}, "
            f"training after {e.history[-1]['epoch']:.0f}; the last epoch was kept"
        )
    if e.valid.images < FEW_IMAGES:
        found.append(f"the verdict rests on only {e.valid.images} validation images; use {FEW_IMAGES} or more")
    return found


def report(p: ResolvedParameters, model: Saved, e: Evidence, user: Parameters) -> dict[str, Any]:
    """The content of `reports/monitor.json`."""
    verdict, valid, config, drawn = judge(p, e), e.valid, model.config, e.free_running
    remedy = remedy_of(model, verdict, user)
    return {
        "verdict": verdict.verdict,
        "summary": verdict.summary,
        "reasons": verdict.reasons,
        "recommendations": recommendations(model, verdict, remedy),
        "remedy": remedy,
        "warnings": warnings(p, e),
        "remedies": attempts_in_words(config.remedies),
        "changes": config.changes,
        "prior": config.prior.name,
        "prior_log_likelihood": config.prior.log_likelihood,
        "kept_epoch": config.kept_epoch,
        "epochs": len(e.history),
        "stopped": config.stopped,
        "elbo": valid.elbo,
        "reconstruction": valid.distortion,
        "kl": valid.rate,
        **valid.kl_of_levels,
        "mse": valid.mse,
        "mse_sampled": valid.mse_sampled,
        "mse_free_running": drawn and drawn.mse,
        "gain_from_z": drawn and drawn.gain,
        "mean_image_mse": e.mean_image_mse,
        "active_units": valid.active_units(p.monitor.active_unit_threshold),
        "informative_units": valid.informative_units(p.monitor.informative_unit_nats),
        "latents": p.model.units,
        "prior_gap": valid.prior_gap,
        "prior_gap_full": valid.prior_gap_full,
        "aggregate_kl_bound": e.samples.aggregate_kl.value if e.samples else None,
        "aggregate_kl_bound_se": e.samples.aggregate_kl.standard_error if e.samples else None,
        "samples": dataclasses.asdict(e.samples) if e.samples else None,
        "effective_beta": effective_beta(p, e),
        "train_elbo": e.train["elbo"],
        "predicted_kl": e.predicted["predicted_kl"],
        "kl_per_latent": valid.kl_per_latent.tolist(),
        "mean_variance": valid.mean_variance.tolist(),
        "posterior_share": valid.posterior_share.tolist(),
    }


if __name__ == "__main__":
    entry.run(main)
