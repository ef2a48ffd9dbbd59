"""What a flow run reads from MLflow and records there. Imported late: MLflow takes seconds to load.

MLflow may be unreachable: then a warning says what is missing, and the flow continues.
"""

from contextlib import suppress

from mlflow.exceptions import MlflowException
from prefect.artifacts import create_image_artifact, create_link_artifact
from sqlalchemy.exc import SQLAlchemyError

from flows.artifacts import RECONSTRUCTIONS, Links
from tasks import workspace
from tasks.host import addresses
from tasks.processes import services
from tasks.tracking import registry, store
from vae.config.errors import InputError
from vae.models.files import weights_hash


def connect() -> None:
    """Connects to the store once, before anything is run for it.

    Raises:
        InputError: MLFLOW_TRACKING_URI is set, and there is no store that can be used.
    """
    named = addresses.tracking_uri()
    try:
        if named and named.startswith("http") and (reason := services.silence(named)):
            raise ConnectionError(reason)  # MLflow's client would try for longer
        store.connect()
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        if named is None:
            raise
        raise InputError(
            f"MLFLOW_TRACKING_URI = {addresses.shown(named)}: no usable MLflow there ({store.reason_of(error)}); start "
            "it, correct the address, or unset MLFLOW_TRACKING_URI: runs then go to this folder's own store"
        ) from None


def prepare() -> None:
    """Loads MLflow's store, and creates it before the first run; what is wrong with it, the stages that use it say."""
    with suppress(Exception):
        store.connect()


def end_dead_runs() -> None:
    """A stage that was killed could not end its run in MLflow."""
    with store.away("a run of the stage may stay RUNNING until the next run starts"):
        store.connect()


def point_candidate(name: str) -> None:
    """DVC may have restored the results of an earlier run: the registry's `candidate` follows them."""
    with store.away(f"the alias candidate of {name} stays where it was"):
        registry.point_candidate(weights_hash(workspace.MODEL), name)


def results() -> Links:
    """The MLflow run that made the model, even if this flow run has found it cached, and a picture of its results.

    The picture is at its address in MLflow: Prefect stores no images. Returns `links`.
    """
    with store.away("the flow run has no links to its MLflow run, and no picture"):
        run = store.run_here()
        if RECONSTRUCTIONS.exists():
            create_image_artifact(
                store.artifact_url(run, RECONSTRUCTIONS.relative_to(workspace.REPORTS).as_posix()),
                key="reconstructions",
                description="Test images of median error above their reconstructions",
            )
        create_link_artifact(
            store.run_url(run),
            key="mlflow-run",
            link_text=f"MLflow run {run.info.run_name}",
            description="\n".join(f"- {what}: {value}" for what, value in store.described(run)),
        )
        return store.links(run)
    return []


def links() -> Links:
    """(label, URL) of the model's MLflow run and of what that came from; empty where MLflow does not answer."""
    with store.away("there are no links to its run"):
        return store.links(store.run_here())
    return []
