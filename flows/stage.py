"""Runs one DVC stage in a process of its own.

A process, because a CUDA error poisons the one that it happens in, and a killed trainer must not kill the flow.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.processes import dvc_files, entry
from tasks.processes.owner import owned_dvc

Outcome = Literal["Completed", "Cached", "Restored"]

# What DVC prints of itself and no reader of a log needs.
_CHATTER = re.compile(
    r"^(|> .*|Data and pipelines are up to date\.|Running stage '.*':"
    r"|Updating lock file 'dvc\.lock'|Use `dvc push`.*|To track the changes with git, run:"
    r"|\s+git add .*|To enable auto staging, run:|\s+dvc config core\.autostage true|Generating lock file 'dvc\.lock')$"
)
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.M)
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
OUT_OF_MEMORY = (
    "the kernel killed it because memory ran out; lower train.batch_size, model.widths or data.image_size, or end "
    "what else uses memory, and run again: it goes on from its last checkpoint"
)
_TORN_LOCK = re.compile(r"'\./dvc\.lock' (is invalid|validation failed)")
_BLOCKER = re.compile(r"\(PID \d+\): .+")
_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)")


@dataclass(eq=False, repr=False)  # an exception is one of a kind, and Python writes its traceback into it
class StageFailed(Exception):
    """A stage that did not succeed.

    Attributes:
        reason: the last thing that it said of an error.
        exit_code: of the stage's program, or of DVC where that failed itself.
        exhausted: the machine had no memory or no disk left for it.
    """

    stage: str
    reason: str
    exit_code: int
    exhausted: bool = False

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"

    __repr__ = __str__  # Prefect logs it so

    @property
    def may_be_retried(self) -> bool:
        """Not where the user has to change something, nor where somebody stopped it, nor without memory or disk."""
        return self.exit_code not in (entry.INPUT_ERROR, 130) and not self.exhausted


def run(stage: str, say: Callable[[str], None], environment: Mapping[str, str]) -> Outcome:
    """Runs `dvc repro --single-item STAGE`, each line that it prints given to `say`.

    Returns:
        Cached where DVC skipped the stage, Restored where it brought its outputs back, else Completed.

    Raises:
        StageFailed: with the reason in one line.
    """
    outcome: Outcome = "Completed"
    reason, last, exit_code, torn = "", "", 0, False
    killed_before = _killed_for_memory()
    with owned_dvc(["repro", "--single-item", stage], {**os.environ, **environment}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            if text == f"Stage '{stage}' didn't change, skipping":
                outcome = "Cached"
            elif text == f"Stage '{stage}' is cached - skipping run, checking out outputs":
                outcome = "Restored"
            elif text.startswith("error: "):
                reason = reason or text.removeprefix("error: ")
                say(text)
            elif _TORN_LOCK.match(text):
                torn = True
            elif blocker := _BLOCKER.search(text):
                # DVC says who holds its lock in a line of its own.
                reason = (
                    f"{reason.split(': ', 1)[-1].removesuffix(', it is being blocked by:')} by {blocker[0]}"
                )
                say(f"another DVC is at work here: {blocker[0]}")
            elif text.startswith("ERROR: "):
                found = _EXIT.search(text)
                exit_code = int(found[1]) if found else exit_code
                # A crashed program's last line is that of its traceback; a killed one has said nothing of it.
                reason = reason or (last if exit_code > 0 else "") or text.removeprefix("ERROR: ")
            elif not _CHATTER.match(text):
                last = text
                say(text)
    code = process.returncode
    if code != 0:
        exhausted = "No space left on device" in reason
        if exit_code in KILLED:
            killed_now = _killed_for_memory()
            exhausted = killed_before is not None and killed_now is not None and killed_now > killed_before
            reason = OUT_OF_MEMORY if exhausted else "it was killed (SIGKILL)"
            if killed_now is not None and not exhausted:
                reason += ", and not by the kernel for memory"
        if torn:
            reason = dvc_files.restore_lock()
        raise StageFailed(stage, reason or f"ended with exit code {code}", exit_code or code, exhausted)
    return outcome


def _killed_for_memory() -> int | None:
    """How many processes the kernel has killed since it started because memory ran out; None where it does not say.

    Of the whole machine: where another container is killed in the same minutes, a user's kill is taken for one.
    """
    try:
        found = _OOM_KILLS.search(Path("/proc/vmstat").read_text())
        return int(found[1]) if found else None
    except OSError:
        return None
