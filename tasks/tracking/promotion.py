"""Which version is the champion: the gate, the alias that it moves, and the way back.

The versions that were champion are listed, oldest first, in a tag of the registered model.
"""

import io
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from tasks import workspace
from tasks.processes.lock import hold
from tasks.tracking import lineage, promotion_rule, registry, store
from tasks.tracking.promotion_rule import Contender, Decision, Floats
from tasks.tracking.registry import CHAMPION
from tasks.tracking.store import VERDICT, WEIGHTS
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config.errors import InputError
from vae.inference.scoring import elbo_per_image

DATA = "evaluated.data.sha256"  # tag of a run: the data that it was evaluated on last
DECISION, SENTENCE = "promotion.json", "promotion"
SCORES = "test_elbo"  # a folder of a run's artifacts, with one file for each data set that it was evaluated on
CHAMPIONS, ROLLED_BACK = "champions", "rolled_back_to"
MOST_CHAMPIONS = 100

log = logging.getLogger(__name__)


def alone() -> AbstractContextManager[None]:
    """One process of this machine at a time reads the champion and moves the alias."""
    return hold(workspace.root() / ".run" / "promotion.lock", "a promotion", seconds=600)


def keep_scores(client: MlflowClient, run_id: str, elbos: Floats, data_sha256: str) -> None:
    """Stores the ELBO of each test image, so that a later candidate is compared image by image without this model."""
    table = pd.DataFrame({"index": np.arange(len(elbos)), "elbo": elbos})
    client.log_text(run_id, table.to_csv(index=False), scores_file(data_sha256))
    client.set_tag(run_id, DATA, data_sha256)


def scores_file(data_sha256: str) -> str:
    return f"{SCORES}/{data_sha256[:12]}.csv"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request to change the champion: the version requested, the champion now, and why."""

    version: str
    champion: str | None
    sentence: str


def consider(client: MlflowClient, version: ModelVersion, mode: str) -> Outcome:
    """Puts a version through the gate, moves the alias unless it is a dry run, and records the decision.

    mode: `dry_run` or `enabled` after an evaluation; else `by hand`, or `forced` to promote it in any case.

    Returns:
        With a sentence to be read after "this model".
    """
    number, dry = str(version.version), mode == "dry_run"
    with nullcontext() if dry else alone():
        version = client.get_model_version(version.name, number)  # as it is now
        decision = judge(client, version)
        if decision.champion == number:
            return Outcome(number, number, f"is already the champion, version {number}")
        passes = decision.passes or mode == "forced"
        verb = ("would {}be promoted" if dry else "was {}promoted").format("" if passes else "not ")
        force = " by force, against the gate" if passes and not decision.passes else ""
        sentence = f"{verb}{force}: {decision.reason}"
        if passes and not dry:
            crown(client, version)
        record(client, version, decision, sentence, mode)
    return Outcome(number, number if passes and not dry else decision.champion, sentence)


def roll_back(name: str) -> Outcome:
    """Gives the alias back to the previous champion, and bars the present one from being promoted automatically.

    Raises:
        InputError: there is no previous champion.
    """
    client, _ = store.connect()
    if not client.search_registered_models(f"name = '{name}'"):
        raise InputError(f"no model {name} is registered yet: a run of the pipeline registers one")
    with alone():
        now, past = _champions(client, name)
        while past and (past[-1] == now or not store.if_there(client.get_model_version, name, past[-1])):
            past.pop()
        if not past:
            whom = f" before version {now}" if now else ""
            raise InputError(f"{name} has had no champion{whom}; `vae promote VERSION --force` makes one")
        client.set_registered_model_alias(name, CHAMPION, past[-1])
        _remember(client, name, past)
        if now is not None:
            client.set_model_version_tag(name, now, ROLLED_BACK, past[-1])
    rest = f"; version {now} is promoted again only by `vae promote {now} --force`" if now else ""
    return Outcome(now or past[-1], past[-1], f"version {past[-1]} is the champion again{rest}")


def judge(client: MlflowClient, version: ModelVersion) -> Decision:
    """What the rule says of a registered version and the present champion."""
    champion = registry.champion(client, version.name)
    ours = contender(client, version)
    if champion is None:
        return promotion_rule.decide(ours, None)
    theirs = contender(client, champion)
    if promotion_rule.barred(ours, theirs):
        return promotion_rule.decide(ours, theirs)
    try:
        elbos = [scores(client, v, str(ours.data)) for v in (version, champion)]
    except InputError as error:
        return Decision(False, f"it cannot be compared: {error}", str(champion.version))
    return promotion_rule.decide(ours, theirs, *elbos)


def contender(client: MlflowClient, version: ModelVersion) -> Contender:
    run = registry.run_behind(client, version)
    return Contender(
        version=str(version.version),
        verdict=version.tags.get(VERDICT, "unknown"),
        weights=version.tags.get(WEIGHTS),
        data=data_of(run) if run else None,
        likelihood=version.tags.get(registry.LIKELIHOOD),
        metrics=registry.test_metrics(run) if run else {},
        rolled_back=version.tags.get(ROLLED_BACK),
    )


def data_of(run: Run) -> str | None:
    """The hash of the data that a run was evaluated on last, else of those that it was trained on."""
    return run.data.tags.get(DATA) or run.data.tags.get("data.sha256")


def scores(client: MlflowClient, version: ModelVersion, data_sha256: str) -> Floats:
    """The ELBO of each test image of these data, (N,) nats: from the run's artifacts, else measured here.

    Raises:
        InputError: the run has none, and the images here are different ones, or the model cannot be loaded.
    """
    run, file = registry.run_behind(client, version), scores_file(data_sha256)
    if run is not None and file in {item.path for item in client.list_artifacts(run.info.run_id, SCORES)}:
        text = load_text(f"{run.info.artifact_uri}/{file}")
        return pd.read_csv(io.StringIO(text))["elbo"].to_numpy(np.float64)
    images = workspace.images("test")
    if not images.exists() or lineage.data()["data.sha256"] != data_sha256:
        raise InputError(f"version {version.version} has no stored scores, and its test images are not here")
    log.info("scoring version %s of %s on the test images", version.version, version.name)
    device = devices.named("auto")
    saved = registry.load(f"models:/{version.name}/{version.version}", device)
    return elbo_per_image(saved.model, open_images(images), saved.likelihood, saved.compute(device))


def record(client: MlflowClient, version: ModelVersion, decision: Decision, sentence: str, mode: str) -> None:
    """Stores the decision and its numbers in the run of the version, and the sentence also as tags."""
    document = {
        "model": version.name,
        "version": str(version.version),
        "mode": mode,
        "sentence": sentence,
        **decision.to_dict(),
    }
    if run := registry.run_behind(client, version):
        client.log_dict(run.info.run_id, document, DECISION)
        client.set_tag(run.info.run_id, SENTENCE, sentence)
    client.set_model_version_tag(version.name, version.version, SENTENCE, sentence)


def crown(client: MlflowClient, version: ModelVersion) -> None:
    """Moves the alias `champion`. The next call repairs what an interruption between alias and history leaves."""
    name, number = version.name, str(version.version)
    before, past = _champions(client, name)
    client.set_registered_model_alias(name, CHAMPION, number)
    if before is not None and past[-1:] != [before]:
        past.append(before)
    _remember(client, name, [*past, number])
    if ROLLED_BACK in version.tags:
        client.delete_model_version_tag(name, number, ROLLED_BACK)


def _champions(client: MlflowClient, name: str) -> tuple[str | None, list[str]]:
    """The present champion, and all so far, oldest first."""
    model = client.get_registered_model(name)
    now = model.aliases.get(CHAMPION)
    return None if now is None else str(now), model.tags.get(CHAMPIONS, "").split()


def _remember(client: MlflowClient, name: str, champions: list[str]) -> None:
    client.set_registered_model_tag(name, CHAMPIONS, " ".join(champions[-MOST_CHAMPIONS:]))
