"""The flow and the servers. `tasks` decides the environment, which Prefect reads when it is loaded."""

import os

# No DVC runs a flow: where it is set, another project's stage has started this one.
os.environ.pop("DVC_ROOT", None)

import tasks  # noqa: F401  # for what it does when it is loaded
