import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny networks gain nothing from a second thread, and lose much beside another program."""
    torch.set_num_threads(1)
