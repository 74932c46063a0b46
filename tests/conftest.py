"""What holds for all tests. The controller of several workers loads this file too, so it does not import torch."""

import gc
import os
from pathlib import Path

import pytest

# Doctests would import these, which have one module name, after another was loaded under it.
collect_ignore_glob = ["*/conftest.py"]

# The tensors are tiny: a second thread only waits at barriers, 30 times as long on a busy machine. This holds for
# processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Hide from the garbage collector all that is collected, which it would look through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


def pytest_collection_modifyitems(items):
    """Start long tests first: at the end of the run, one worker would wait for the other's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _seeded(_has_gpu):
    import torch

    # torch.manual_seed notes the stack for every kind of device that is not there.
    torch.default_generator.manual_seed(0)
    if _has_gpu:
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session", autouse=True)
def _render():
    """Pictures are composed but not rendered, which takes longer than a small training; returns what renders."""
    from dien_fast.files import write_atomically
    from dien_fast.training import plots

    def save(figure, path):
        with write_atomically(path):
            return Path(path)

    render = plots._save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        yield render


@pytest.fixture
def _rendered(_render, monkeypatch):
    monkeypatch.setattr("dien_fast.training.plots._save", _render)


@pytest.fixture
def _float64():
    """Everything that the test creates without naming a dtype is float64."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
