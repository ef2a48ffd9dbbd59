"""The stages and the commands. The environment is decided here, before anything imports a library."""

import atexit
import gc
import os
from pathlib import Path

from tasks.host import environment

PROJECT = Path(__file__).resolve().parent.parent

# Loading libraries makes hundreds of thousands of objects and no garbage. Collecting it as often as Python does by
# default takes a sixth of the time of loading, and once more at exit half a second where PyTorch is loaded.
gc.set_threshold(10_000)
atexit.register(gc.freeze)

__path__.append(str(PROJECT / "tasks" / "old_names"))  # `python -m tasks.zoo` and other former names

# The same as `tasks.workspace.root`, which imports too much for this place.
environment.changes += environment.apply(Path(os.environ.get("DVC_ROOT") or PROJECT).resolve())
