"""What every test runs under: one thread, and the same hypothesis examples each time."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded; processes that tests start inherit it

import pytest
from hypothesis import settings

# Derandomized: a failure on one machine is a failure on all. `pytest --hypothesis-profile=default` explores.
settings.register_profile("same-each-time", deadline=None, derandomize=True)
settings.load_profile("same-each-time")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors: more threads only get in the way of the other test processes."""
    torch = sys.modules.get("torch")  # not imported for tests that do without
    if torch is not None:
        torch.set_num_threads(1)
