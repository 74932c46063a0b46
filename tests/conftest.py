import gc
import os
from pathlib import Path

import pytest
import torch

from dien_fast.files import write_atomically
from dien_fast.training import plots

# Doctests would import these, which have one module name, after another was loaded under it.
collect_ignore_glob = ["*/conftest.py"]

# The tensors are tiny: a second thread only waits at barriers, 30 times as long on a busy machine. This holds for
# processes that tests start, too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

HAS_GPU = torch.cuda.is_available()
RENDER = plots._save


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Hide from the garbage collector all that is collected, which it would look through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """Start long tests first: at the end of the run, one worker would wait for the other's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _seeded():
    # torch.manual_seed notes the stack for every kind of device that is not there.
    torch.default_generator.manual_seed(0)
    if HAS_GPU:
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session", autouse=True)
def _pictures_composed():
    """Pictures are composed but not rendered, which takes longer than a small training."""

    def save(figure, path):
        with write_atomically(path):
            return Path(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        yield


@pytest.fixture
def _pictures_rendered(monkeypatch):
    monkeypatch.setattr(plots, "_save", RENDER)


@pytest.fixture
def _float64():
    """Everything that the test creates without naming a dtype is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
