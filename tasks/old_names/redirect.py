"""Commands under their former names: they still work, with a warning."""

import logging
import runpy
import sys

from tasks.processes import entry

log = logging.getLogger(__name__)


def to(command: str, module: str, *arguments: str) -> None:
    """Runs a module in place of this one, with its arguments before those of the command line."""
    entry.log_to("stderr")
    name = getattr(sys.modules["__main__"].__spec__, "name", "")
    log.warning("`python -m %s` is deprecated; use `%s`", name, command)
    sys.argv[1:1] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
