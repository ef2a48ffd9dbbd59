"""`python -m flows.module NAME ARGUMENTS…`: another project's `python -m NAME ARGUMENTS…`, loaded as our own.

See `tasks/__init__.py`: it is up sooner, and ends sooner.
"""

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
