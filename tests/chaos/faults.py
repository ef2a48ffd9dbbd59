"""Other faults, each caused on purpose: what the user sees, and that nothing finished is lost.

`make chaos` runs it after the kills and prints a table. Each fault prepares the workspace, causes its trouble, looks
at what was printed, ends the trouble, and runs once more: the results have to be those of an undisturbed run, bit for
bit.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from chaos import EPOCHS, PROMISED_SECONDS, clean, gone, hashes, start
from helpers.workspaces import (
    START_DEPLOYMENT,
    Done,
    Running,
    Workspace,
    copy_project,
    edit,
    free_ports,
    wait_for,
)


class NotTried(Exception):
    """This machine does not allow what the fault needs."""


def said(output: str, *words: str) -> str:
    """The first line that has one of these words, without what Prefect's log puts before it."""
    for line in output.splitlines():
        if any(word in line for word in words):
            return re.sub(r"^(.* \| )?((Task|Flow) run '[^']*' - )?", "", line).strip()
    raise AssertionError(f"none of {words} in:\n{output[-3000:]}")


def ends(place: Workspace) -> float:
    """Seconds until no process works for a run any more; as many as promised at most."""
    seconds = gone(place)
    assert seconds <= PROMISED_SECONDS, f"a process survived for {seconds:.1f} s"
    return seconds


def training(place: Workspace, way: str = "flow", **environment: str) -> Running:
    """A run in the middle of its training."""
    clean(place)
    running = start(place, way, **environment)
    running.wait_to_say(r"epoch 3/", seconds=200)
    return running


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A small or read-only disk in place of a folder, with the bundled data if the folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = (
        shutil.copytree(folder / "bundled", Path(tempfile.mkdtemp()) / "bundled")
        if (folder / "bundled").exists()
        else None
    )
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotTried("mounting a small disk needs root")
    if kept:
        shutil.move(kept, folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def flow_with(place: Workspace, folder: str, *options: str) -> Done:
    """The flow from nothing, with such a disk in place of a folder."""
    clean(place)
    with mounted(place.folder / folder, *options):
        return start(place, "flow").ended()


def disk_full_at_ingest(place: Workspace) -> str:
    """The disk is full during ingest"""
    done = flow_with(place, "data", "size=150k")
    assert done.code != 0 and "Traceback" not in done.output, done.output
    return said(done.output, "error: ", "No space left")


def disk_full_for_checkpoints(place: Workspace) -> str:
    """The disk is full for checkpoints"""
    done = flow_with(place, ".checkpoints", "size=100k")
    assert done.code == 0, done.output
    return said(done.output, "no checkpoint of epoch")


def disk_full_for_the_report(place: Workspace) -> str:
    """The disk is full for the report"""
    clean(place)
    with mounted(place.folder / "reports", "size=400k"):
        done = start(place, "flow").ended()
        reached = (place.folder / "reports" / "monitor.json").exists()
    assert done.code != 0 and reached and "Traceback" not in done.output, done.output
    return said(done.output, "error: ", "No space left")


def read_only_models(place: Workspace) -> str:
    """The folder of models is read-only"""
    done = flow_with(place, "models", "ro")
    assert done.code != 0 and "Traceback" not in done.output, done.output
    return said(done.output, "error: ", "Read-only")


def read_only_checkpoints(place: Workspace) -> str:
    """The folder of checkpoints is read-only"""
    done = flow_with(place, ".checkpoints", "ro")
    assert "Traceback" not in done.output, done.output
    return said(done.output, "error: ", "no checkpoint")


def _mlflow_server(place: Workspace, port: int) -> Running:
    server = place.start(
        "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--no-serve-artifacts",
        "--backend-store-uri", f"sqlite:///{place.folder / 'other.db'}",
        "--default-artifact-root", (place.folder / "other-runs").as_uri(),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )  # fmt: skip
    server.wait_to_say("startup complete", seconds=120)
    return server


def _stop(server: Running) -> None:
    for process in [*psutil.Process(server.process.pid).children(recursive=True), server.process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.ended(seconds=20)


def _runs(port: int) -> list[Any]:
    from mlflow import MlflowClient

    store = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
    experiment: Any = store.get_experiment_by_name("vae-train")
    return list(store.search_runs([experiment.experiment_id]))


def mlflow_down_at_the_start(place: Workspace) -> str:
    """MLflow's server is down when `dvc repro` starts, and up when the next run comes"""
    (port,) = free_ports(1)
    clean(place)
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    refused = start(place, "flow", **address).ended()
    assert refused.code == 2 and "no usable MLflow there" in refused.output, refused.output
    done = start(place, "dvc", **address).ended()
    assert done.code == 0, done.output
    told = said(done.output, "MLflow at")
    server = _mlflow_server(place, port)
    try:
        _evaluate_again(place, address)
        (run,) = _runs(port)
        assert run.info.status == "FINISHED" and run.data.metrics["valid/kl"] > 0
        assert "test/elbo" in run.data.metrics and run.data.params["train.epochs"] == str(EPOCHS)
    finally:
        _stop(server)
    return told


def _evaluate_again(place: Workspace, address: dict[str, str]) -> None:
    done = place.start_dvc("repro", "--force", "--single-item", "evaluate", **address).ended()
    assert done.code == 0, done.output


def mlflow_down_in_the_middle(place: Workspace) -> str:
    """MLflow's server goes down in mid-training"""
    (port,) = free_ports(1)
    (place.folder / "other.db").unlink(missing_ok=True)  # of the fault before
    server = _mlflow_server(place, port)
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    running = training(place, **address)
    _stop(server)
    done = running.ended()
    assert done.code == 0, done.output
    server = _mlflow_server(place, port)
    try:
        _evaluate_again(place, address)
        (run,) = _runs(port)
        assert run.info.status == "FINISHED" and "test/elbo" in run.data.metrics
        from mlflow import MlflowClient

        history = MlflowClient(f"http://127.0.0.1:{port}").get_metric_history(run.info.run_id, "valid/kl")
        assert sorted(m.step for m in history) == list(range(1, EPOCHS + 1)), "an epoch is lost"
    finally:
        _stop(server)
    return said(done.output, "MLflow at")


def prefect_down_in_the_middle(place: Workspace) -> str:
    """Prefect's server goes down in mid-training"""
    running = training(place)
    note = place.folder / ".run" / "prefect-server.pid"
    server = psutil.Process(int(note.read_text()))
    for process in [*server.children(recursive=True), server]:
        process.kill()
    try:
        done = running.ended(seconds=300)
    finally:
        ends(place)
        place.python("-m", "flows.servers", "up")
    last = [line for line in done.output.splitlines() if line.strip()][-1]
    return f"exit code {done.code}: {last[:200]}"


def dvc_busy(place: Workspace) -> str:
    """Another DVC works in the workspace when a flow starts"""
    running = training(place, "dvc")
    done = start(place, "flow").ended()
    told = said(done.output, "busy", "in use")
    os.killpg(running.process.pid, signal.SIGINT)
    running.ended(seconds=30)
    ends(place)
    return told


def two_flow_runs(place: Workspace) -> str:
    """Two deployment runs at once"""
    clean(place)
    both = [place.python(*START_DEPLOYMENT) for _ in range(2)]
    ids = [done.flow_run for done in both]
    seen: set[tuple[str, ...]] = set()

    def over() -> bool:
        states = tuple(place.flow_run(i)["state"]["name"] for i in ids)
        seen.add(states)
        return all(state in ("Completed", "Failed", "Crashed", "Unhealthy") for state in states)

    wait_for(over, 300, "both runs")
    assert not any(states.count("Running") > 1 for states in seen), seen
    last = tuple(place.flow_run(i)["state"]["name"] for i in ids)
    assert last == ("Completed", "Completed"), last
    waited = {state for states in seen for state in states} - {"Running", "Completed", "Pending", "Scheduled"}
    return f"the second waits ({', '.join(sorted(waited)) or 'Pending'}), then finds every stage cached"


def flow_killed_in_silence(place: Workspace) -> str:
    """The flow is killed while the trainer says nothing"""
    edit(place, {"train.epochs": 2, "train.batch_size": 2})
    try:
        clean(place)
        running = start(place, "flow")
        running.wait_to_say(r"training on", seconds=200)
        running.process.kill()
        seconds = ends(place)
        running.ended()
    finally:
        edit(place, {"train.epochs": EPOCHS, "train.batch_size": 64})
    # As the next run finds them: whoever connects ends the runs of dead processes.
    place.python("-c", "from tasks.tracking import store; store.connect()")
    assert "RUNNING" not in place.mlflow_statuses()
    return f"nothing; no process is left after {seconds:.1f} s"


def orphaned_trainer(place: Workspace) -> str:
    """DVC is ended by SIGTERM and leaves its trainer; a second `dvc repro` follows at once"""
    running = training(place, "dvc")
    running.process.terminate()
    running.process.wait(timeout=20)
    second = start(place, "dvc").ended()
    assert second.code == 0 and "resumed after epoch" in second.output, second.output
    running.ended(seconds=30)
    return said(second.output, "waiting up to", "resumed after")


def torn_rwlock(place: Workspace) -> str:
    """DVC's lock file is empty"""
    clean(place)
    _rwlock(place, "")
    done = start(place, "flow").ended()
    assert done.code == 0, done.output
    return "nothing; the flow goes through"


def torn_dvc_lock(place: Workspace) -> str:
    """dvc.lock is half written, by a DVC that was killed"""
    lock = place.folder / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text[: text.index("preflight:") + 4])
    done = start(place, "flow").ended()
    assert done.code == 0, done.output
    return said(done.output, "half written")


def foreign_rwlock(place: Workspace) -> str:
    """DVC's lock names a living process that is no DVC"""
    clean(place)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        held = {str(place.folder / "data" / "images"): {"pid": stranger.pid, "cmd": "dvc repro"}}
        _rwlock(place, json.dumps({"write": held}))
        done = start(place, "flow").ended()
    finally:
        stranger.kill()
        stranger.wait()
    assert done.code == 0, done.output
    return "nothing; the flow goes through"


def _rwlock(place: Workspace, content: str) -> None:
    path = place.folder / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def stale_server_note(place: Workspace) -> str:
    """The pid file of the Prefect server names another process"""
    clean(place)
    assert place.python("-m", "flows.servers", "down").code == 0
    (place.folder / ".run" / "prefect-server.pid").write_text(str(os.getpid()))
    done = start(place, "flow").ended()
    place.up()
    assert done.code == 0, done.output
    return "nothing; the server is started"


def corrupted_cache(place: Workspace) -> str:
    """Every file of DVC's cache is damaged, and the outputs are gone"""
    clean(place)
    assert start(place, "dvc").ended().code == 0
    for path in (place.folder / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    for name in ("data/images", "models", "reports"):
        shutil.rmtree(place.folder / name)
    (place.folder / "data" / "manifest.parquet").unlink()
    done = start(place, "flow").ended()
    assert done.code == 0, done.output
    return "states: " + ", ".join(f"{name} {state}" for name, state in done.states().items())


def clock_moved(place: Workspace) -> str:
    """The clock goes back by two days in the middle of a run, and stays there"""
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
    if library is None:
        raise NotTried("libfaketime is not installed")
    running = training(place)
    running.process.kill()
    ends(place)
    running.ended()
    done = start(place, "flow", LD_PRELOAD=str(library), FAKETIME="-2d", FAKETIME_DONT_FAKE_MONOTONIC="1").ended()
    assert done.code == 0 and "resumed after epoch" in done.output, done.output
    return said(done.output, "resumed after epoch")


def out_of_memory(place: Workspace) -> str:
    """The kernel kills the trainer because memory ran out"""
    group = Path("/sys/fs/cgroup/memory/vae-train-chaos")
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(2**30))
    except OSError:
        raise NotTried("making a memory cgroup needs root and cgroups v1") from None
    running = training(place)
    try:
        (trainer,) = place.workers()["stage"]
        (group / "cgroup.procs").write_text(str(trainer.pid))
        (group / "memory.force_empty").write_text("0")
        (group / "memory.limit_in_bytes").write_text(str(2**20))
        done = running.ended()
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(process)
        group.rmdir()
    assert done.code == 1, done.output
    return said(done.output, "memory ran out")


def killed_by_a_user(place: Workspace) -> str:
    """A user kills the trainer (SIGKILL), three times"""
    running = training(place)
    for attempt in range(3):
        if attempt:
            wait_for(lambda: place.workers().get("stage"), 60, "the next try")
            running.wait_to_say(rf"(?s)(resumed after.*){{{attempt}}}", seconds=90)
        (trainer,) = place.workers()["stage"]
        trainer.kill()
        wait_for(lambda t=trainer: not t.is_running(), 10, "its end")
    done = running.ended()
    assert done.code == 1, done.output
    assert "RUNNING" not in place.mlflow_statuses(), "a killed run stays RUNNING"
    return said(done.output, "not by the kernel")


def _ended_by(place: Workspace, number: signal.Signals) -> str:
    running = training(place)
    running.process.send_signal(number)
    seconds = ends(place)
    done = running.ended(seconds=30)
    assert "RUNNING" not in place.mlflow_statuses()
    assert "Traceback" not in done.output, done.output
    state = place.flow_run(done.flow_run)["state"]["type"]
    assert state in ("CRASHED", "CANCELLED"), state
    last = [line for line in done.output.splitlines() if line.strip()][-1]
    return f"exit code {done.code}: {last}; gone within {seconds:.1f} s; flow run {state}, MLflow run KILLED"


def interrupted(place: Workspace) -> str:
    """Ctrl-C"""
    return _ended_by(place, signal.SIGINT)


def terminated(place: Workspace) -> str:
    """SIGTERM, which is what `docker stop` sends"""
    return _ended_by(place, signal.SIGTERM)


def _deployed(place: Workspace) -> str:
    clean(place)
    started = place.python(*START_DEPLOYMENT)
    assert started.code == 0, started.output
    wait_for(lambda: place.workers().get("stage"), 120, "the worker to run a stage")
    wait_for(lambda: (place.folder / "reports" / "timing.csv").exists(), 120, "the training")
    return started.flow_run


def cancelled(place: Workspace) -> str:
    """Cancelled in Prefect"""
    run = _deployed(place)
    cancel = place.python("-m", "prefect", "flow-run", "cancel", run)
    assert cancel.code == 0, cancel.output
    seconds = ends(place)
    wait_for(lambda: place.flow_run(run)["state"]["type"] == "CANCELLED", 30, "Cancelled")
    assert "RUNNING" not in place.mlflow_statuses()
    return f"flow run CANCELLED, gone within {seconds:.1f} s, MLflow run KILLED"


def worker_dies(place: Workspace) -> str:
    """The worker is killed (SIGKILL) in mid-training; `make down`, `make up` and a run follow"""
    run = _deployed(place)
    psutil.Process(int((place.folder / ".run" / "prefect-worker.pid").read_text())).kill()
    down = place.python("-m", "flows.servers", "down")
    assert down.code == 0, down.output
    seconds = ends(place)
    place.up()
    state = place.flow_run(run)["state"]["type"]
    assert state in ("CRASHED", "CANCELLED"), state
    return f"flow run {state}, gone within {seconds:.1f} s of `make down`"


FAULTS: tuple[Callable[[Workspace], str], ...] = (
    disk_full_at_ingest, disk_full_for_checkpoints, disk_full_for_the_report, read_only_models, read_only_checkpoints,
    mlflow_down_at_the_start, mlflow_down_in_the_middle, prefect_down_in_the_middle, dvc_busy, two_flow_runs,
    flow_killed_in_silence, orphaned_trainer, torn_rwlock, torn_dvc_lock, foreign_rwlock, stale_server_note,
    corrupted_cache, clock_moved, out_of_memory, killed_by_a_user, interrupted, terminated, cancelled, worker_dies,
)  # fmt: skip


def main(only: str = "") -> None:
    rows = ["| fault | what the user sees | after it, the same command |", "| --- | --- | --- |"]
    lost = 0
    # A shell's & has Ctrl-C ignored, and every process that is started from here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        place = copy_project(Path(temporary) / "vae-train")
        edit(place, {"train.epochs": EPOCHS})
        try:
            place.up()
            first = start(place, "dvc").ended()
            assert first.code == 0, first.output
            expected = hashes(place)
            for fault in FAULTS:
                if not re.search(only, fault.__name__):
                    continue
                try:
                    seen = fault(place)
                    again = start(place, "flow").ended(seconds=300)
                    after = "identical" if hashes(place) == expected else "DIFFERS"
                    after = after if again.code == 0 else f"exit code {again.code}: {again.output[-300:]}"
                except NotTried as reason:
                    seen, after = f"not tried here: {reason}", "–"
                except (Exception, pytest.fail.Exception) as error:
                    seen, after = f"NOT AS EXPECTED: {str(error)[-3000:]}", "?"
                    for process in itertools.chain(*place.workers().values()):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.kill()
                lost += after not in ("identical", "–")
                seen = " ".join(seen.replace(str(place.folder) + "/", "").replace("|", "/").split())
                rows.append(f"| {fault.__doc__} | {seen} | {after} |")
                print(rows[-1], flush=True)
        finally:
            place.kill()
    print("\n" + "\n".join(rows) + f"\n\n{len(rows) - 2} faults, {lost} not as promised")
    if lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
