"""The stages and the commands. The environment is decided here, before anything imports a library."""

import os
from pathlib import Path

from tasks.host import environment

PROJECT = Path(__file__).resolve().parent.parent

__path__.append(str(PROJECT / "tasks" / "old_names"))  # `python -m tasks.zoo` and other former names

# The same as `tasks.workspace.root`, which imports too much for this place.
environment.changes += environment.apply(Path(os.environ.get("DVC_ROOT") or PROJECT).resolve())
