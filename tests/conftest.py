import os

import pytest
import torch

# Doctests would import these, which have one module name, after another was loaded under it.
collect_ignore_glob = ["*/conftest.py"]

# The tensors are tiny: a second thread only waits at barriers, 30 times as long on a busy machine. This holds for
# processes that tests start, too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Start long tests first: at the end of the run, one worker would wait for the other's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _float64():
    """Everything that the test creates without naming a dtype is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
