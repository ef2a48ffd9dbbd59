"""Who is champion: the rule of `tasks.tracking.promotion_rule` on what MLflow knows, the alias, and the way back.

The champions so far stand, oldest first, in a tag of the registered model.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks import workspace
from tasks.processes.lock import hold
from tasks.tracking import lineage, lookup, promotion_rule, registry
from tasks.tracking.promotion_rule import Contender, Decision, Floats
from tasks.tracking.registry import CHAMPION
from tasks.tracking.store import VERDICT, WEIGHTS
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config.errors import InputError
from vae.inference.scoring import elbo_per_image

DATA = "evaluated.data.sha256"  # tag of a run: what it was evaluated on last
DECISION, SENTENCE = "promotion.json", "promotion"
SCORES = "test_elbo"  # a file for each data set that the run was evaluated on
CHAMPIONS, ROLLED_BACK = "champions", "rolled_back_to"
MOST_CHAMPIONS = 100


@contextmanager
def alone() -> Iterator[None]:
    """One at a time: who reads the champion and who moves the alias is the same. For the processes of this machine."""
    with hold(workspace.root() / ".run" / "promotion.lock", "a promotion", seconds=600):
        yield


def keep_scores(client: MlflowClient, run_id: str, elbos: Floats, data_sha256: str) -> None:
    """The ELBO of each test image, so that a later candidate is compared image by image without this model."""
    table = pd.DataFrame({"index": np.arange(len(elbos)), "elbo": elbos})
    client.log_text(run_id, table.to_csv(index=False), scores_file(data_sha256))
    client.set_tag(run_id, DATA, data_sha256)


def scores_file(data_sha256: str) -> str:
    return f"{SCORES}/{data_sha256[:12]}.csv"


def consider(client: MlflowClient, version: ModelVersion, mode: str) -> str:
    """After an evaluation: says what the gate says, and with `enabled` moves the alias.

    Returns:
        What became of the version, to be read after "this model".
    """
    with alone() if mode == "enabled" else nullcontext():
        decision = judge(client, version)
        if decision.champion == str(version.version):
            sentence = f"is the champion already, version {version.version}"
        elif mode == "enabled":
            sentence = f"was {'' if decision.passes else 'not '}promoted: {decision.reason}"
            if decision.passes:
                crown(client, version)
        else:
            sentence = in_words(decision)
        record(client, version, decision, sentence, mode)
    return sentence


def in_words(decision: Decision) -> str:
    return f"would {'' if decision.passes else 'not '}be promoted: {decision.reason}"


def judge(client: MlflowClient, version: ModelVersion) -> Decision:
    """What the rule says of a registered version and the champion of now."""
    champion = registry.champion(client, version.name)
    ours = contender(client, version)
    if champion is None:
        return promotion_rule.decide(ours, None)
    theirs = contender(client, champion)
    if promotion_rule.barred(ours, theirs):
        return promotion_rule.decide(ours, theirs)
    try:
        return promotion_rule.decide(
            ours, theirs, *(scores(client, v, str(ours.data)) for v in (version, champion))
        )
    except InputError as error:
        return Decision(False, f"it can not be compared: {error}", str(champion.version))


def contender(client: MlflowClient, version: ModelVersion) -> Contender:
    run = registry.run_behind(client, version)
    parameters = run.data.params if run else {}
    return Contender(
        version=str(version.version),
        verdict=version.tags.get(VERDICT, "unknown"),
        weights=version.tags.get(WEIGHTS),
        data=data_of(run) if run else None,
        likelihood=version.tags.get(registry.LIKELIHOOD) or parameters.get("objective.likelihood"),
        metrics=registry.test_metrics(run) if run else {},
        rolled_back=version.tags.get(ROLLED_BACK),
    )


def data_of(run: Run) -> str | None:
    """The hash of what a run was evaluated on last, else of what it was trained on."""
    return run.data.tags.get(DATA) or run.data.tags.get("data.sha256")


def scores(client: MlflowClient, version: ModelVersion, data_sha256: str) -> Floats:
    """The ELBO of each test image of these data, (N,) nats: as its run has kept it, else measured.

    Raises:
        InputError: the run has none, and the model or the images can not be had.
    """
    run = registry.run_behind(client, version)
    file = scores_file(data_sha256)
    if run is not None and file in {item.path for item in client.list_artifacts(run.info.run_id, SCORES)}:
        text = load_text(f"{run.info.artifact_uri}/{file}")
        return pd.read_csv(io.StringIO(text))["elbo"].to_numpy(np.float64)
    return measured(version, data_sha256)


def measured(version: ModelVersion, data_sha256: str) -> Floats:
    """The same, by the registered model on the images of this workspace.

    Raises:
        InputError: the images here are others, or the model can not be loaded.
    """
    if not workspace.images("test").exists() or lineage.data()["data.sha256"] != data_sha256:
        raise InputError(
            f"version {version.version} has kept no scores, and the images it was tested on are not here"
        )
    named = lookup.load(f"models:/{version.name}/{version.version}", devices.named("auto"))
    print(f"scoring version {version.version} of {version.name} on the test images", flush=True)
    saved = named.saved
    compute = saved.compute(next(saved.model.parameters()).device)
    return elbo_per_image(saved.model, open_images(workspace.images("test")), saved.likelihood, compute)


def record(client: MlflowClient, version: ModelVersion, decision: Decision, sentence: str, mode: str) -> None:
    """The decision and its numbers, into the run of the version; the sentence also as tags."""
    document: dict[str, Any] = {
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
    """Moves the alias `champion`. What breaks off between alias and history is put right by the next call."""
    name, number = version.name, str(version.version)
    before, past = _champions(client, name)
    client.set_registered_model_alias(name, CHAMPION, number)
    if before is not None and past[-1:] != [before]:
        past.append(before)
    _remember(client, name, [*past, number])
    if ROLLED_BACK in version.tags:
        client.delete_model_version_tag(name, number, ROLLED_BACK)


def roll_back(client: MlflowClient, name: str) -> tuple[str | None, str]:
    """Gives the alias back to the champion before, and bars the present one from being promoted by itself again.

    Returns:
        The version that was champion, None where there was none, and the one that is.

    Raises:
        InputError: there is no champion before.
    """
    now, past = _champions(client, name)
    while past and (past[-1] == now or not _exists(client, name, past[-1])):
        past.pop()
    if not past:
        whom = f"version {now}" if now else "any"
        raise InputError(f"{name} has had no champion before {whom}; `vae promote VERSION --force` names one")
    client.set_registered_model_alias(name, CHAMPION, past[-1])
    _remember(client, name, past)
    if now is not None:
        client.set_model_version_tag(name, now, ROLLED_BACK, past[-1])
    return now, past[-1]


def _champions(client: MlflowClient, name: str) -> tuple[str | None, list[str]]:
    """The champion now, and all so far, oldest first."""
    model = client.get_registered_model(name)
    now = model.aliases.get(CHAMPION)
    return None if now is None else str(now), model.tags.get(CHAMPIONS, "").split()


def _remember(client: MlflowClient, name: str, champions: list[str]) -> None:
    client.set_registered_model_tag(name, CHAMPIONS, " ".join(champions[-MOST_CHAMPIONS:]))


def _exists(client: MlflowClient, name: str, number: str) -> bool:
    try:
        client.get_model_version(name, number)
        return True
    except MlflowException as error:
        if error.get_http_status_code() >= 500:
            raise
        return False
