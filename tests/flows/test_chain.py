"""The whole pipeline, both ways, in copies of the project with real servers and stores."""

import re
import shlex
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.workspaces import ByDVC, ByFlow, Done, Workspace
from mlflow import MlflowClient
from PIL import Image

from flows.vae_train import STAGES
from tasks import overlay

# The first test waits for both ways to end, which is long on a busy machine.
pytestmark = pytest.mark.timeout(600)


def assert_calm(output: str) -> None:
    for word in ("Traceback", "Warning", "WARNING", "warning:", "ERROR", "error:"):
        assert word not in output, output


def test_it_is_the_copy_that_runs(by_flow: ByFlow) -> None:
    code = "import flows.stage as a, tasks.train as b, vae as c; print(a.__file__, b.__file__, c.__file__, sep='\\n')"
    files = by_flow.place.python("-c", code).output.splitlines()
    assert len(files) == 3
    assert all(file.startswith(str(by_flow.place.folder)) for file in files)


def test_a_run_ends_with_verdict_numbers_report_and_where_to_look_next(by_flow: ByFlow) -> None:
    done, folder = by_flow.first, by_flow.place.folder
    assert done.code == 0, done.output
    assert_calm(done.output)
    closing = done.output.splitlines()[-6:]
    assert any(line.startswith("verdict    healthy: ") for line in closing)
    assert any(re.match(r"test +ELBO [\d.-]+ +KL [\d.]+ +active units \d+", line) for line in closing)
    assert f"report     {folder / 'reports/report.html'}" in closing
    assert any("make up" in line for line in closing)
    assert (folder / "reports/report.html").stat().st_size > 10_000


def test_prefect_holds_the_flow_run_and_six_task_runs_all_completed(by_flow: ByFlow, served: Workspace) -> None:
    run = served.flow_run(by_flow.first.flow_run)
    assert (run["state"]["type"], run["state"]["name"]) == ("COMPLETED", "Completed")
    assert list(served.task_states(run["id"]).items()) == [(stage, "Completed") for stage in STAGES]

    artifacts = served.ask_prefect("artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    assert by_key["training"]["type"] == "progress" and by_key["training"]["data"] == 100.0
    assert by_key["monitor"]["type"] == "table" and '"verdict"' in by_key["monitor"]["data"]
    assert by_key["verdict"]["type"] == "markdown" and "MLflow run" in by_key["verdict"]["data"]
    assert "](data:image/png;base64," in by_key["verdict"]["data"]
    assert by_key["training"]["description"].startswith("kept epoch 3 of the 3 trained")
    assert "/#/experiments/1/runs/" in by_key["mlflow-run"]["data"]
    assert run["name"] in by_key["mlflow-run"]["description"], "with commit, train stage and flow run"
    assert run["tags"] == ["data:digits", "verdict:healthy"]
    with urllib.request.urlopen(by_key["reconstructions"]["data"], timeout=20) as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"


def test_both_ways_leave_the_same_lock_and_a_clean_status(by_flow: ByFlow, by_dvc: ByDVC) -> None:
    assert by_dvc.repro.code == 0, by_dvc.repro.output
    assert by_dvc.repro.ran() == list(STAGES)
    assert "verdict: healthy" in by_dvc.repro.output
    assert_calm(by_dvc.repro.output)
    assert by_flow.lock == by_dvc.lock
    assert by_flow.status.strip() == "Data and pipelines are up to date."
    # The committed lock is that of the defaults, and these are smaller.
    assert by_flow.git_status == " M dvc.lock\n"


def test_a_flow_run_is_kept_as_an_experiment_of_its_name_and_a_cached_one_is_not_kept_again(
    by_flow: ByFlow, served: Workspace
) -> None:
    name = served.flow_run(by_flow.first.flow_run)["name"]
    assert f"kept as the DVC experiment {name}; `dvc exp apply {name}` restores it" in by_flow.first.output
    logs = served.ask_prefect("logs/filter", logs={"flow_run_id": {"any_": [by_flow.deployment.flow_run]}})
    assert f"these results are kept as the DVC experiment {name}" in [log["message"] for log in logs]


def test_a_second_run_finds_every_task_cached(by_flow: ByFlow, served: Workspace) -> None:
    """By the worker, so that a deployment's run is seen as well."""
    done = by_flow.deployment
    assert done.code == 0 and "Completed" in done.output.splitlines()[-1], done.output
    assert served.task_states(done.flow_run) == dict.fromkeys(STAGES, "Cached")
    artifacts = served.ask_prefect("artifacts/filter", flow_runs={"id": {"any_": [done.flow_run]}})
    assert {artifact["key"] for artifact in artifacts} == {
        "curve",
        "monitor",
        "reconstructions",
        "verdict",
        "mlflow-run",
    }, "nothing trained"


# MLflow


@pytest.fixture(scope="module")
def store(by_flow: ByFlow) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{by_flow.place.folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def run(by_flow: ByFlow, store: MlflowClient) -> Any:
    """The MLflow run of the first flow run."""
    experiment = store.get_experiment_by_name("vae-train")
    assert experiment is not None
    found = f"tags.`prefect.flow_run_id` = '{by_flow.first.flow_run}'"
    runs = store.search_runs([experiment.experiment_id], found)
    assert len(runs) == 1, "one run for one trained model, and none for what was cached or restored"
    return runs[0]


def test_mlflow_holds_the_curves_of_the_history(store: MlflowClient, run: Any) -> None:
    assert run.info.status == "FINISHED"
    history = pd.read_csv(store.download_artifacts(run.info.run_id, "history.csv"))
    assert len(history) == 3
    for name in history.columns.drop("epoch"):
        points = store.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == [1, 2, 3], name
        assert np.allclose([point.value for point in points], history[name]), name
    assert len(store.get_metric_history(run.info.run_id, "images_per_second")) == 3
    assert "test/elbo" in run.data.metrics and "final_valid/kl" in run.data.metrics
    assert (run.data.params["train.epochs"], run.data.params["seed"]) == ("3", "0")
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"digits-train", "digits-valid"}


def test_mlflow_holds_images_report_and_plots(store: MlflowClient, run: Any) -> None:
    root = Path(store.download_artifacts(run.info.run_id, ""))
    names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    assert {"report.html", "metrics.json", "monitor.json", "preflight.json", "validation.json"} <= set(names)
    assert any(name.startswith("plots/") and name.endswith(".png") for name in names)
    steps = [re.fullmatch(r"images/reconstructions\Wstep\W(\d+)\W.*\.png", name) for name in names]
    assert sorted(int(step[1]) for step in steps if step) == [1, 2, 3]
    report = (root / "report.html").read_text(encoding="utf-8")
    assert run.info.run_id in report and "flow-run/" in report
    assert store.get_model_version_by_alias("vae", "candidate").run_id == run.info.run_id


def test_the_tracked_report_names_no_run_and_no_place(by_dvc: ByDVC, run: Any) -> None:
    report = (by_dvc.place.folder / "reports/report.html").read_text(encoding="utf-8")
    for word in (run.info.run_id, "flow-run/", str(by_dvc.place.folder), "127.0.0.1"):
        assert word not in report


def test_the_tags_lead_from_the_run_to_commit_data_weights_stage_and_flow_run(by_flow: ByFlow, run: Any) -> None:
    tags = run.data.tags
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=by_flow.place.folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (tags["git.commit"], tags["git.dirty"]) == (commit, "false")
    assert tags["ended"] == "FINISHED" and tags["verdict"] == "healthy"
    assert tags["prefect.flow_run_url"] in by_flow.first.output
    for name in ("data.sha256", "weights.sha256", "dvc.train"):
        assert re.fullmatch(r"[0-9a-f]{64}", tags[name]), name


# What runs again


def test_edited_epochs_run_all_but_what_makes_the_data_again(by_dvc: ByDVC) -> None:
    """Preflight too: where a ramp crosses the collapse weight follows them."""
    assert by_dvc.edited.code == 0, by_dvc.edited.output
    assert by_dvc.edited.ran() == ["preflight", "train", "monitor", "evaluate"]
    assert by_dvc.place.json("reports/monitor.json")["epochs"] == 2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of two classes, under names that need quoting."""
    folder, random = tmp_path_factory.mktemp("source") / "my phötos", np.random.default_rng(0)
    for label in ("crème brûlée", "it's <b>"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"photo {number} é.png")
    return folder


@pytest.fixture(scope="module")
def collapsed(by_flow: ByFlow, photographs: Path) -> Done:
    """A flow run on a folder of photos with a KL weight that no latent survives."""
    by_flow.place.up()
    return by_flow.place.flow(
        f"data.source=folder data.path='{photographs}' data.image_size=8 data.channels=3 train.batch_size=8 "
        "train.epochs=100 model.latent_dim=4 kl.max_weight=1e5 monitor.on_unhealthy=fail"
    )


def test_an_unhealthy_model_ends_with_exit_code_3_advice_and_everything_recorded(
    served: Workspace, collapsed: Done, photographs: Path
) -> None:
    assert collapsed.code == 3, collapsed.output
    assert "Traceback" not in collapsed.output
    assert collapsed.states() == dict.fromkeys(STAGES, "Completed")
    assert "POSTERIOR COLLAPSE AHEAD" in collapsed.output
    assert "training stopped early" in collapsed.output
    assert re.search(r"^verdict +collapsed: ", collapsed.output, re.MULTILINE)
    suggested = re.search(r"try: (make run SET=.*)", collapsed.output)
    assert suggested
    values = overlay.parse_settings(shlex.split(suggested[1])[-1].removeprefix("SET="))
    assert (values["kl.max_weight"], values["data.path"]) == (1, str(photographs))
    run = served.flow_run(collapsed.flow_run)
    assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Unhealthy")


def test_a_replaced_photo_changes_ingest_and_all_after_it(by_flow: ByFlow, collapsed: Done, photographs: Path) -> None:
    place = by_flow.place
    assert collapsed.code == 3, collapsed.output
    assert place.json("reports/monitor.json")["epochs"] < 100, "it stopped early"
    assert place.dvc("status").output.strip() == "Data and pipelines are up to date."

    victim = photographs / "it's <b>" / "photo 3 é.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (12, 12, 3), np.uint8)).save(victim)
    assert re.findall(r"^(\w+):$", place.dvc("status").output, re.MULTILINE) == ["ingest"]
    assert place.dvc("repro", "ingest").ran() == ["ingest"]
    changed = re.findall(r"^(\w+):$", place.dvc("status").output, re.MULTILINE)
    assert set(changed) == set(STAGES) - {"ingest"}


# Bad input


BAD = {
    "missing folder": (
        "data.source=folder data.path='no such/place'",
        r"data\.path = no such/place does not exist \(looked for /.*\)",
    ),
    "missing frozen network": (
        "objective.align=1 objective.features=no.pt2",
        r"objective\.features = no\.pt2: there is no such file",
    ),
    "batch larger than the training images": (
        "train.batch_size=5000",
        r"train\.batch_size = 5000.*1439",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_line_and_the_file_before_comes_back(served: Workspace, settings: str, said: str) -> None:
    done = served.flow(settings)
    assert done.code not in (0, 3, 130)
    assert "Traceback" not in done.output
    last = done.output.splitlines()[-1]
    assert last.startswith("error: ") and re.search(said, last), done.output
