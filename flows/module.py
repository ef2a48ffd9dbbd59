"""`python -m flows.module NAME ARGUMENTS…`: `python -m NAME ARGUMENTS…` of a library, loaded as our own programs are.

See `tasks/__init__.py`: it is up sooner, and gone sooner. Not for MLflow's server: `tasks` removes MLFLOW_SERVER_*,
which configure it.
"""

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
