"""Runs one DVC stage in a process of its own.

A CUDA error poisons the process that it happens in, and a killed trainer must not kill the flow.
"""

import re
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.processes import dvc_files, entry
from tasks.processes.owner import OwnedDVC
from vae.config.errors import InputError

Outcome = Literal["Completed", "Cached", "Restored"]

# What DVC prints about itself that no reader of a log needs.
_CHATTER = re.compile(
    r"^(|> .*|Data and pipelines are up to date\.|Running stage '.*':"
    r"|Updating lock file 'dvc\.lock'|Use `dvc push`.*|To track the changes with git, run:"
    r"|\s+git add .*|To enable auto staging, run:|\s+dvc config core\.autostage true|Generating lock file 'dvc\.lock')$"
)
_INVALID = re.compile(r"'\./(.+)' (is invalid|validation failed)\.?")  # the cause is on the next line
_BLOCKER = re.compile(r"\(PID \d+\): .+")
_PLACE = re.compile("No space left on device|Disk quota exceeded|Read-only file system|Permission denied")
_LOCKED = "Unable to acquire lock"
# Errors in code or files, which the same code and files repeat. A CUDA, network or disk error has none of these names.
_REPEATS = re.compile(
    r"(Assertion|Attribute|Import|Index|Key|ModuleNotFound|Name|NotImplemented|Syntax|Type|UnboundLocal|Unicode\w+|Value)Error\b"
)
_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)")
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.M)

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
OUT_OF_MEMORY = (
    "the kernel killed it because memory ran out; lower train.batch_size, model.widths or data.image_size, or end "
    "other programs that use memory, and run again: it resumes from its last checkpoint"
)


class StageFailed(Exception):
    """A stage that did not succeed, with the reason in one line.

    Attributes:
        may_be_retried: where the same command may end otherwise: after a kill, an error of a device or of the
            network, or while another DVC is at work.
    """

    def __init__(self, stage: str, reason: str, may_be_retried: bool) -> None:
        super().__init__(f"{stage}: {reason}")
        self.may_be_retried = may_be_retried

    __repr__ = Exception.__str__  # Prefect logs it so


def run(stage: str, say: Callable[[str], None], environment: Mapping[str, str], dvc: OwnedDVC | None = None) -> Outcome:
    """Runs `dvc repro --single-item STAGE` and passes its output to `say`, line by line.

    dvc: what runs it; by default one for this stage alone.

    Returns:
        Cached if DVC skipped the stage, Restored if it brought its outputs back, else Completed.

    Raises:
        StageFailed: with the reason in one line.
    """
    output, killed_before = _Output(stage), _killed_for_memory()

    def read(line: str) -> None:
        if shown := output.read(line):
            say(shown)

    with nullcontext(dvc) if dvc else OwnedDVC() as ours:
        code = ours.run(["repro", "--single-item", stage], environment, read)
    if code == 0:
        return output.outcome
    reason, may_be_retried = output.reason or output.last or f"ended with exit code {code}", output.may_end_otherwise
    if output.exit_code in KILLED:
        killed = _killed_for_memory()
        exhausted = killed_before is not None and killed is not None and killed > killed_before
        reason, may_be_retried = OUT_OF_MEMORY if exhausted else "it was killed (SIGKILL)", not exhausted
        if killed is not None and not exhausted:
            reason += ", and not by the kernel for memory"
    if output.lock_is_torn:
        try:
            reason, may_be_retried = dvc_files.restore_lock(), True
        except InputError as error:
            raise StageFailed(stage, str(error), may_be_retried=False) from None
    raise StageFailed(stage, reason, may_be_retried or code < 0)


@dataclass
class _Output:
    """What DVC and the stage have printed, as far as it says how the stage ended."""

    stage: str
    outcome: Outcome = "Completed"
    started: bool = False
    blocked: bool = False
    reason: str = ""
    exit_code: int = 0
    lock_is_torn: bool = False
    last: str = ""

    @property
    def may_end_otherwise(self) -> bool:
        """Not where DVC refused to begin, something has to be changed first, or the user stopped it."""
        lasting = _REPEATS.match(self.reason) or _PLACE.search(self.reason)
        stopped = self.exit_code in (entry.INPUT_ERROR, entry.INTERRUPTED)
        return self.blocked or (self.started and not lasting and not stopped)

    def read(self, line: str) -> str:
        """Takes a line in; returns what the log gets of it."""
        if line == f"Stage '{self.stage}' didn't change, skipping":
            self.outcome = "Cached"
        elif line == f"Stage '{self.stage}' is cached - skipping run, checking out outputs":
            self.outcome = "Restored"
        elif line == f"Running stage '{self.stage}':":
            self.started = True
        elif line.startswith("error: "):
            self.reason = line.removeprefix("error: ")  # the last: a failed validation names its broken rules first
            return line
        elif found := _INVALID.match(line):
            self.reason, self.lock_is_torn = line, found[1] == "dvc.lock"
        elif blocker := _BLOCKER.search(line):
            # DVC names the holder of its lock on a line of its own.
            busy = self.reason.split(": ", 1)[-1].removesuffix(", it is being blocked by:")
            self.reason, self.blocked = f"{busy}, blocked by {blocker[0]}", True
            return f"another DVC is running here: {blocker[0]}"
        elif line.startswith("ERROR: "):
            if found := _EXIT.search(line):
                self.exit_code = int(found[1])
            self.blocked |= _LOCKED in line
            # A program that crashed ends with the last line of its traceback; a killed one prints nothing.
            crash = self.last if self.exit_code > 0 else ""
            self.reason = self.reason or crash or line.removeprefix("ERROR: ")
        elif not _CHATTER.match(line):
            if _INVALID.fullmatch(self.reason):
                self.reason = f"{self.reason.removesuffix('.')}: {line}"
            self.last = line
            return line
        return ""


def _killed_for_memory() -> int | None:
    """How many processes the kernel has killed since boot because memory ran out; None if it does not say.

    Of the whole machine: if another container's process is killed at the same time, a user's kill is taken for one.
    """
    try:
        found = _OOM_KILLS.search(Path("/proc/vmstat").read_text())
        return int(found[1]) if found else None
    except OSError:
        return None
