"""Studies and measurements; `tasks` decides the environment before PyTorch is loaded."""

import tasks  # noqa: F401  # for what it does when it is loaded
