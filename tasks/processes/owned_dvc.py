"""`python -m tasks.processes.owned_dvc COMMAND…`: DVC, ended when the program that runs it is gone.

A stage watches both by itself; this covers what DVC does before and after one: hashing, restoring and caching outputs.
"""

import signal
import sys

from dvc.cli import main

from tasks.processes import owner

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & had it ignored
    owner.end_with_program()
    sys.exit(main(sys.argv[1:]))
