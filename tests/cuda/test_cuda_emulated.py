"""The CUDA kernels, on the host (see tests/cuda/emulator), against the reference loop in float64.

Every cell, layout, type and shape is in some case that is not marked slow; all combinations are in make test-all.
"""

import itertools

import pytest
import torch
from cuda_cases import DTYPES, EMPTY, LAYOUTS, SHAPES, assert_close, empty, incoming, make, outside
from emulator.build import build, find_compiler, load
from emulator.harness import Emulated
from recurrence_cases import problem
from selection import slow_but

from dien_fast.functional import GATES
from dien_fast.ops.cells import CELLS

# 7 shapes, 3 layouts, 4 types and the cells meet each other as the number of the case grows.
NAMES = tuple(GATES)
FEW = [
    (NAMES[i % len(NAMES)], LAYOUTS[i % 3], DTYPES[0 if i % 2 else i // 2 % 4], SHAPES[i % 7]) for i in range(42)
]
CASES = FEW + [case for case in itertools.product(GATES, LAYOUTS, DTYPES, SHAPES) if case not in FEW]


@pytest.fixture(scope="session")
def module():
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    return load(build())


@pytest.fixture
def emulated(module):
    return Emulated(module)


@pytest.mark.parametrize(
    ("cell", "layout", "dtype", "shape"), slow_but(FEW, CASES), ids=lambda value: str(value).replace("torch.", "")
)
def test_against_reference(emulated, cell, layout, dtype, shape):
    number = CASES.index((cell, layout, dtype, shape))
    # Everything that is no part of the problem varies with the case.
    emulated.order = ("forward", "reverse", "random")[number // 2 % 3]
    emulated.multiprocessors = (1, 64)[number // 3 % 2]
    if number % 4 == 1:
        emulated.chunk_bytes = 30_000
    leaves, arguments = make(shape, cell, layout, dtype, optional=number % 5 != 0)
    gradients = incoming(leaves, arguments, states=number % 7 != 0)
    got = emulated.outcome(leaves, CELLS[cell], **arguments, **gradients)
    assert_close(got, leaves, arguments, cell, gradients)


def assert_same_bits(got, want, but=()):
    for name, value in want.items():
        if name not in but:
            assert torch.equal(got[name].nan_to_num(nan=7.0), value.nan_to_num(nan=7.0)), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["augru", "agru"])
class TestSameBits:
    """However the blocks run and the work is cut, the numbers are added in the same order."""

    def run(self, module, cell, layout, shape=(11, 6, 5, 36), **settings):
        leaves, arguments = make(shape, cell, layout, torch.float32)
        gradients = incoming(leaves, arguments)
        return Emulated(module, **settings).outcome(leaves, CELLS[cell], **arguments, **gradients)

    def test_order_of_threads(self, module, cell, layout):
        want = self.run(module, cell, layout)
        for order, seed in (("reverse", 0), ("random", 0), ("random", 1)):
            assert_same_bits(self.run(module, cell, layout, order=order, seed=seed), want)

    def test_rows_of_a_tile(self, module, cell, layout):
        shape = (15, 6, 5, 36)  # blocks of 8 histories on one multiprocessor, of 4 on many
        want = self.run(module, cell, layout, shape, multiprocessors=64)
        assert_same_bits(self.run(module, cell, layout, shape, multiprocessors=1), want)

    @pytest.mark.parametrize("multiprocessors", [1, 64])
    def test_streamed_weights(self, module, cell, layout, multiprocessors):
        """The weights of H = 100 take 80 to 130 KB, a ring of three stages less."""
        settings = {"shape": (7, 4, 5, 100), "multiprocessors": multiprocessors}
        want = self.run(module, cell, layout, **settings)
        for kilobytes in (76, 48):
            got = self.run(module, cell, layout, order="random", shared_bytes=kilobytes * 1024, **settings)
            assert_same_bits(got, want)

    @pytest.mark.parametrize("kilobytes", [23, 24])
    def test_steps_fetched_ahead(self, module, cell, layout, kilobytes):
        """One or two of them where there is no room for four."""
        want = self.run(module, cell, layout, multiprocessors=64)
        got = self.run(module, cell, layout, multiprocessors=64, shared_bytes=kilobytes * 1024)
        assert_same_bits(got, want)

    @pytest.mark.parametrize("chunk_bytes", [1, 9_000, 30_000])
    def test_chunks(self, module, cell, layout, chunk_bytes):
        """Sums over rows are cut in other places; all else is the same."""
        want = self.run(module, cell, layout)
        got = self.run(module, cell, layout, chunk_bytes=chunk_bytes)
        sums = {"dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh"}
        assert_same_bits(got, want, but=sums)
        for name in sums:
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_states_only(emulated, layout):
    leaves, arguments = make((9, 5, 4, 20), "augru", layout, torch.float32)
    want = emulated.outcome(leaves, CELLS["augru"], **arguments)
    got = emulated.outcome(leaves, CELLS["augru"], **arguments, return_states=False)
    assert "states" not in got
    assert torch.equal(got["last"], want["last"])


@pytest.mark.parametrize("wanted", [(), ("x",), ("att",), ("weights",), ("h0",)])
def test_wanted(emulated, wanted):
    leaves, arguments = make((9, 5, 4, 20), "augru", "padded", torch.float32)
    gradients = incoming(leaves, arguments)
    want = emulated.outcome(leaves, CELLS["augru"], **arguments, **gradients)
    got = emulated.outcome(leaves, CELLS["augru"], **arguments, **gradients, wanted=wanted)
    assert_same_bits(got, {name: want[name] for name in got})


@pytest.mark.parametrize("cell", ["augru", "gru"])
@pytest.mark.parametrize("chunk_bytes", [256 << 20, 2_000])
def test_histories_that_share_rows(emulated, cell, chunk_bytes):
    """As copies of them would run, projected once or, where that takes too much memory, each for itself."""
    emulated.chunk_bytes = chunk_bytes
    leaves, _ = make((7, 4, 3, 10), cell, "ragged", torch.float32)
    x = torch.randn(9, 3)
    starts, lengths = torch.tensor([0, 3, 0, 9, 5, 8, 2]), torch.tensor([4, 2, 0, 0, 4, 1, 3])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    att = torch.randn(int(offsets[-1]))
    copies = torch.cat([x[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)])
    shared = emulated.outcome(leaves | {"x": x, "att": att}, CELLS[cell], offsets=offsets, x_start=starts)
    want = emulated.outcome(leaves | {"x": copies, "att": att}, CELLS[cell], offsets=offsets)
    assert_same_bits(shared, want)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("cell", GATES)
def test_values_outside_of_the_arrays(emulated, cell, layout):
    """Lengths and offsets are cut, and no memory beside the arrays is touched: the guard zones show it."""
    leaves, arguments, gradients = outside(cell, layout)
    for chunk_bytes in (256 << 20, 3_000):
        emulated.chunk_bytes = chunk_bytes
        got = emulated.outcome(leaves, CELLS[cell], **arguments, **gradients)
        if layout == "padded":
            arguments["lengths"] = arguments["lengths"].clamp(0, 4)
            assert_same_bits(got, emulated.outcome(leaves, CELLS[cell], **arguments, **gradients))


@pytest.mark.parametrize("shape", EMPTY, ids=["no history", "no step", "no input"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty(emulated, shape, layout):
    leaves, arguments = empty(shape, layout)
    gradients = incoming(leaves, arguments)
    got = emulated.outcome(leaves, CELLS["augru"], **arguments, **gradients)
    assert_close(got, leaves, arguments, "augru", gradients)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_history(emulated, cell, bad):
    leaves, _ = problem((10, 6, 5, 12), cell, torch.float32)
    lengths = torch.full((10,), 6)
    clean = emulated.outcome(leaves, CELLS[cell], lengths=lengths)
    with torch.no_grad():
        leaves["x"][4, 3, 0] = bad
    got = emulated.outcome(leaves, CELLS[cell], lengths=lengths)
    others = torch.arange(10) != 4
    assert torch.equal(got["states"][others], clean["states"][others])
    assert torch.equal(got["states"][4, :3], clean["states"][4, :3])
    if bad != bad:
        assert got["states"][4, 3].isnan().all()
        assert got["last"][4].isnan().all()


def test_many_steps_of_a_packed_batch(emulated):
    """More than the integers that travel in one launch."""
    leaves, arguments = make((2, 700, 1, 2), "gru", "packed", torch.float64)
    gradients = incoming(leaves, arguments)
    got = emulated.outcome(leaves, CELLS["gru"], **arguments, **gradients)
    assert_close(got, leaves, arguments, "gru", gradients)


@pytest.mark.parametrize("shared_kilobytes", slow_but([99], [99, 163, 227]))
def test_large_hidden_size(emulated, shared_kilobytes):
    """H = 1024 in the shared memory of every supported device."""
    emulated.shared_bytes = shared_kilobytes * 1024
    emulated.multiprocessors = 1
    leaves, arguments = make((5, 2, 3, 1024), "augru", "ragged", torch.float32)
    gradients = incoming(leaves, arguments)
    got = emulated.outcome(leaves, CELLS["augru"], **arguments, **gradients)
    assert_close(got, leaves, arguments, "augru", gradients)


def test_double_in_little_shared_memory(emulated):
    """The largest hidden size in float64 where a block has 99 KB, and the sentence beyond it."""
    emulated.shared_bytes = 99 * 1024
    leaves, arguments = make((5, 2, 3, 560), "augru", "ragged", torch.float64)
    gradients = incoming(leaves, arguments)
    got = emulated.outcome(leaves, CELLS["augru"], **arguments, **gradients)
    assert_close(got, leaves, arguments, "augru", gradients)
    leaves, arguments = make((2, 1, 1, 700), "augru", "ragged", torch.float64)
    with pytest.raises(RuntimeError, match="hidden size 700 needs more shared memory than a block has"):
        emulated.outcome(leaves, CELLS["augru"], **arguments)
