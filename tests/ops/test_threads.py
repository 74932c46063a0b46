"""attention_gru gives the same numbers in threads and worker processes, each of which chooses its backend."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from recurrence_cases import outcome, problem
from torch.utils.data import DataLoader, Dataset

import dien_fast
from dien_fast.functional import GATES, attention_gru

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
SHAPE = (60, 20, 16, 18)
SUMS = ("dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")  # over every history


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def call(cell, dtype=torch.float32, backend="native"):
    """Return states, last states and gradients without a graph, so that another process can receive them."""
    return {name: value.detach() for name, value in outcome(backend, *problem(SHAPE, cell, dtype), cell).items()}


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("cell", GATES)
def test_one_thread_gives_the_bits_of_two_but_in_sums(cell):
    two = call(cell, torch.float64)
    torch.set_num_threads(1)
    one = call(cell, torch.float64)
    assert_same_bits(call(cell, torch.float64), one)
    assert_same_bits(*({name: found[name] for name in found if name not in SUMS} for found in (one, two)))
    for name in SUMS:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.usefixtures("_two_threads")
def test_different_calls_at_once():
    """Run forward and backward in several Python threads, whose kernels use two threads each."""
    kinds = [(cell, dtype) for cell in GATES for dtype in (torch.float32, torch.float64)]
    alone = [call(*kind) for kind in kinds] * 3
    with ThreadPoolExecutor(4) as pool:
        for found, want in zip(pool.map(lambda kind: call(*kind), kinds * 3, timeout=120), alone, strict=True):
            assert_same_bits(found, want)


class Calls(Dataset):
    """Item i is the result of a worker with cell i, and the backend that it used."""

    def __len__(self):
        return len(GATES)

    def __getitem__(self, index):
        cell = list(GATES)[index]
        return cell, dien_fast.backend().name, torch.get_num_threads(), call(cell)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_the_workers_of_a_loader(start):
    """A forked worker inherits the state of a parent whose kernels ran on two threads, but not the threads."""
    call("augru")
    torch.set_num_threads(1)
    expected = {cell: call(cell) for cell in GATES}
    loader = DataLoader(Calls(), batch_size=None, num_workers=1, multiprocessing_context=start, timeout=60)
    seen = []
    for cell, backend, threads, found in loader:
        assert (backend, threads) == ("native", 1)
        assert_same_bits(found, expected[cell])
        seen.append(cell)
    assert seen == list(GATES)


def test_each_thread_has_its_own_backend():
    """All threads are inside their blocks at once, and each gets the numbers of the backend that it chose."""
    leaves, lengths = problem(SHAPE, "augru", torch.float32)
    expected = {name: call("augru", backend=name)["states"] for name in ("native", "reference")}
    assert not torch.equal(*expected.values())  # the backends round differently
    barrier = threading.Barrier(4, timeout=60)

    def run(name):
        with dien_fast.use_backend(name):
            barrier.wait()
            states, _ = attention_gru(**leaves, lengths=lengths)
            barrier.wait()
            assert dien_fast.backend().name == name
        assert dien_fast.backend().name == "native"
        return states

    with dien_fast.use_backend("reference"), ThreadPoolExecutor(4) as pool:
        names = ["native", "reference"] * 2
        for name, states in zip(names, pool.map(run, names), strict=True):
            assert torch.equal(states, expected[name])
        assert dien_fast.backend().name == "reference"


def test_each_task_has_its_own_backend():
    async def task(name, ready, others):
        with dien_fast.use_backend(name):
            ready.set()
            await others.wait()
            return dien_fast.backend().name

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("reference", first, second), task("native", second, first))

    assert asyncio.run(both()) == ["reference", "native"]
