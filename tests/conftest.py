"""Whole workspaces for the tests: copies of the project with ports, stores and a DVC cache of their own."""

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.workspaces import ByDVC, ByFlow, Workspace, copy_project, run_by_dvc, run_by_flow, stand_in

# A script's `pytest &` starts with Ctrl-C ignored, and so would all that the tests start, and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """A terminated test run ends as an interrupted one does: the fixtures still stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """What the project logs reaches `caplog`; `entry.log_to`, which sets the handlers for good, is undone."""
    loggers = [logging.getLogger(name) for name in ("__main__", "flows", "tasks", "vae", "benchmarks")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield
    for logger in loggers:
        logger.handlers, logger.propagate = [], True


@pytest.fixture(scope="session")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ByFlow, ByDVC]]:
    """Two workspaces, run side by side, one on each core."""
    flow, plain = (copy_project(tmp_path_factory.mktemp(name) / "vae träin's #1 (a&b)") for name in ("flow", "plain"))
    try:
        with ThreadPoolExecutor() as pool:
            by_dvc = pool.submit(run_by_dvc, plain)
            by_flow = run_by_flow(flow)
            yield by_flow, by_dvc.result()
    finally:
        flow.kill()
        plain.kill()


@pytest.fixture(scope="session")
def by_flow(both_ways: tuple[ByFlow, ByDVC]) -> ByFlow:
    return both_ways[0]


@pytest.fixture(scope="session")
def by_dvc(both_ways: tuple[ByFlow, ByDVC]) -> ByDVC:
    return both_ways[1]


@pytest.fixture
def served(by_flow: ByFlow) -> Workspace:
    """The workspace in which the flow has run, its servers up."""
    by_flow.place.up()
    return by_flow.place


@pytest.fixture
def empty_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a stage that is called in this process, with a store of its own and no files yet."""
    stand_in(tmp_path, monkeypatch)
    Path("data/images").mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database as its first use makes it, which takes seconds."""
    from tasks.tracking import store

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.connect()
    return (folder / "mlflow.db").read_bytes()
