"""The native operators against the reference loop, on shapes that hurt, and what the dispatcher asks of them."""

import os
import threading

import pytest
import torch
from comparison import assert_within_twice
from recurrence_cases import SHAPES, outcome, problem

import dien_fast
from dien_fast.functional import GATES, attention_gru
from dien_fast.ops import attention_gru as operator
from dien_fast.ops import backend
from dien_fast.ops.cells import CELLS

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def test_library_was_built():
    """Otherwise every test of this suite would quietly compare the reference with itself."""
    assert backend.LIBRARY.exists(), "no native library; DIEN_FAST_BACKEND=reference tests without it"
    assert dien_fast.backend().name == "native"


@pytest.mark.parametrize("optional", [True, False], ids=["biases and h0", "neither"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
class TestAgainstReference:
    def test_float64(self, cell, shape, optional):
        leaves, lengths = problem(shape, cell, bias=optional, initial=optional)
        expected = outcome("reference", leaves, lengths, cell)
        for name, value in outcome("native", leaves, lengths, cell).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)

    def test_float32(self, cell, shape, optional):
        if shape == (1, 1, 1, 1):
            pytest.skip("a single number's error is luck, not a property of the kernel")
        exact = outcome("reference", *problem(shape, cell, bias=optional, initial=optional), cell)
        single = problem(shape, cell, torch.float32, bias=optional, initial=optional)
        assert_within_twice(outcome("native", *single, cell), outcome("reference", *single, cell), exact)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_computed_again(cell, dtype, monkeypatch):
    """Above the limit, forward keeps only states, and backward computes the gates again, to the same bits."""
    leaves, lengths = problem((40, 30, 12, 20), cell, dtype)
    saved = outcome("native", leaves, lengths, cell)
    monkeypatch.setattr(operator, "SAVED_GATES_LIMIT", 0)
    for name, value in outcome("native", leaves, lengths, cell).items():
        assert torch.equal(value, saved[name]), name


def test_threads(monkeypatch):
    """Results of two threads differ from those of one by rounding alone, and repeat to the same bits."""
    leaves, lengths = problem((300, 20, 32, 32), "augru", torch.float32)
    exact = outcome("reference", *problem((300, 20, 32, 32), "augru"), "augru")
    reference = outcome("reference", leaves, lengths, "augru")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = (outcome("native", leaves, lengths, "augru") for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert_within_twice(first, reference, exact)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_from_several_python_threads():
    leaves, lengths = problem((60, 20, 16, 16), "augru")
    expected = outcome("native", leaves, lengths, "augru")
    results = [None] * 4

    def run(index):
        results[index] = outcome("native", leaves, lengths, "augru")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result[name], expected[name]) for result in results for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_history(cell, dtype, bad):
    leaves, _ = problem((30, 8, 10, 12), cell, dtype)
    lengths = torch.full((30,), 8)
    clean, _ = attention_gru(**leaves, lengths=lengths, cell=cell)
    with torch.no_grad():
        leaves["x"][4, 3, 0] = bad
    states, last = attention_gru(**leaves, lengths=lengths, cell=cell)
    others = torch.arange(30) != 4
    assert torch.equal(states[others], clean[others])
    assert torch.equal(states[4, :3], clean[4, :3])
    if bad != bad:
        assert states[4, 3].isnan().all()
        assert last[4].isnan().all()


class TestDispatcher:
    def arguments(self, cell="augru", dtype=torch.float32):
        """Every row belongs to a history: the operator leaves the saved gates of other rows uninitialised."""
        leaves, _ = problem((5, 4, 3, 6), cell, dtype)
        rows = dict(leaves)
        rows["x"] = leaves["x"].detach().reshape(20, 3).requires_grad_()
        rows["att"] = None if cell == "gru" else leaves["att"].detach().reshape(20).requires_grad_()
        return (*rows.values(), None, torch.arange(6) * 4, None, None, CELLS[cell], True, True)

    @pytest.mark.parametrize("cell", GATES)
    def test_opcheck(self, cell):
        torch.library.opcheck(torch.ops.dien_fast.attention_gru.default, self.arguments(cell))

    def test_second_derivative_is_refused(self):
        leaves, lengths = problem((3, 4, 3, 5), "augru")
        with dien_fast.use_backend("native"):
            states, _ = attention_gru(**leaves, lengths=lengths)
        (gradient,) = torch.autograd.grad(states.sum(), leaves["x"], create_graph=True)
        with pytest.raises(NotImplementedError, match="attention_gru has no second derivative"):
            gradient.sum().backward()

    def test_forward_mode_is_refused(self):
        leaves, lengths = problem((3, 4, 3, 5), "augru")
        with dien_fast.use_backend("native"), torch.autograd.forward_ad.dual_level():
            leaves["x"] = torch.autograd.forward_ad.make_dual(leaves["x"].detach(), torch.ones(3, 4, 3).double())
            with pytest.raises((NotImplementedError, RuntimeError), match="forward"):
                attention_gru(**leaves, lengths=lengths)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({8: torch.tensor([0, 4, 8, 12, 16, 21])}, "offsets must rise from 0 to 20"),
            ({8: torch.tensor([0, 4, 8, 12, 16, 19])}, "offsets must rise from 0 to 20"),
            ({8: torch.tensor([0, 4, 2**63 - 1, 12, 16, 20])}, "offsets must rise from 0 to 20"),
            ({8: torch.tensor([-1, 4, 8, 12, 16, 20])}, "offsets must rise from 0 to 20"),
            ({8: torch.empty(0, dtype=torch.int64)}, "offsets must rise from 0 to 20"),
            ({8: torch.ones(6)}, "offsets must have an integer dtype"),
            ({8: None}, "exactly one of lengths, offsets and batch_sizes must be given, got 0"),
            ({7: torch.full((5,), 4)}, "exactly one of lengths, offsets and batch_sizes must be given, got 2"),
            ({7: torch.full((5,), 4), 8: None}, r"x must have shape \(\*, \*, \*\), got \(20, 3\)"),
            ({8: None, 9: torch.tensor([5, 5, 5])}, "batch_sizes must fall, be positive and sum to 20"),
            ({8: None, 9: torch.tensor([5, 5, 5, 4, 2])}, "batch_sizes must fall, be positive and sum to 20"),
            ({8: None, 9: torch.tensor([2**63 - 1, 5])}, "batch_sizes must fall, be positive and sum to 20"),
            ({8: None, 9: torch.tensor([5, 5, 5, 6])}, "batch_sizes must fall, be positive and sum to 20"),
            ({8: None, 9: torch.tensor([10, 10])}, "h0 must have at least 10 rows, got 5"),
            (
                {10: torch.arange(5) + 17},
                "x_start must leave history 0 inside the 20 rows of x, got 17 for 4 steps",
            ),
            ({10: torch.arange(5) - 1}, "x_start must leave history 0 inside the 20 rows of x, got -1 for"),
            ({10: torch.full((5,), 2**63 - 1)}, f"inside the 20 rows of x, got {2**63 - 1} for 4 steps"),
            ({10: torch.zeros(4, dtype=torch.int64)}, r"x_start must have shape \(5,\), got \(4,\)"),
            ({8: None, 9: torch.tensor([5] * 4), 10: torch.arange(5)}, "x_start must come with offsets"),
            ({11: len(CELLS)}, rf"cell must lie in \[0, {len(CELLS) - 1}\], got {len(CELLS)}"),
            ({1: torch.zeros(19)}, r"att must have shape \(20,\), got \(19,\)"),
            ({1: None}, "att must be given for this cell, got none"),
            ({2: torch.zeros(18, 4)}, r"x must have shape \(\*, 4\), got \(20, 3\)"),
            ({2: torch.zeros(3, 18).t()}, "weight_ih must be contiguous"),
            ({3: torch.zeros(18, 7)}, r"weight_ih must have shape \(21, \*\), got \(18, 3\)"),
            ({4: torch.zeros(17)}, r"bias_ih must have shape \(18,\), got \(17,\)"),
            ({6: torch.zeros(5, 6).double()}, "h0 must have the dtype of x"),
            ({6: torch.zeros(4, 6)}, r"h0 must have shape \(5, 6\), got \(4, 6\)"),
            ({0: torch.zeros(20, 3).half()}, "x must have dtype float32 or float64"),
        ],
    )
    def test_the_operator_checks_before_it_touches_memory(self, changes, message):
        arguments = list(self.arguments())
        for position, value in changes.items():
            arguments[position] = value
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dien_fast.attention_gru(*arguments)

    def test_shared_rows(self):
        """Histories that share rows of x give the results of copied rows, and refuse a gradient."""
        arguments = list(self.arguments())
        x, offsets, starts = (
            torch.randn(7, 3, requires_grad=True),
            torch.arange(6) * 4,
            torch.tensor([0, 3, 0, 1, 2]),
        )
        shared = [x, *arguments[1:8], offsets, None, starts, *arguments[11:]]
        states, last, _ = torch.ops.dien_fast.attention_gru(*shared)
        copies = torch.cat([x[start : start + 4] for start in starts.tolist()])
        expected = torch.ops.dien_fast.attention_gru(copies, *arguments[1:])
        assert torch.equal(states, expected[0])
        assert torch.equal(last, expected[1])
        with pytest.raises(NotImplementedError, match="no gradient where histories share rows of x"):
            last.sum().backward()


class TestBackend:
    def test_block(self):
        with dien_fast.use_backend("reference"):
            assert dien_fast.backend().name == "reference"
            with dien_fast.use_backend("native"):
                assert dien_fast.backend().name == "native"
            assert dien_fast.backend().name == "reference"
        assert dien_fast.backend().name == "native"

    def test_unknown(self):
        with (
            pytest.raises(ValueError, match="name must be 'native' or 'reference', got 'cuda'"),
            dien_fast.use_backend("cuda"),
        ):
            pass

    def test_another_thread_keeps_its_own(self):
        seen = []
        with dien_fast.use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(dien_fast.backend().name))
            thread.start()
            thread.join()
        assert seen == ["native"]

    def test_environment(self, monkeypatch):
        monkeypatch.setattr(backend, "_ENVIRONMENT", "reference")
        assert dien_fast.backend().name == "reference"
        monkeypatch.setattr(backend, "_ENVIRONMENT", "fastest")
        with pytest.raises(ValueError, match="DIEN_FAST_BACKEND must be 'native' or 'reference', got 'fastest'"):
            dien_fast.backend()

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setattr(backend, "LOADED", False)
        monkeypatch.setattr(backend, "_warned", False)
        with pytest.warns(RuntimeWarning, match="dien-fast runs without its native library"):
            assert dien_fast.backend().name == "reference"
        assert "no native library was built" in str(dien_fast.backend())
        with pytest.raises(RuntimeError, match="which was not built"), dien_fast.use_backend("native"):
            pass
        monkeypatch.setattr(backend, "_ENVIRONMENT", "native")
        with pytest.raises(RuntimeError, match="which was not built"):
            dien_fast.backend()

    def test_library_that_cannot_be_loaded(self, monkeypatch, tmp_path):
        broken = tmp_path / "libdien_fast_cpu.so"
        broken.write_bytes(b"not a library")
        monkeypatch.setattr(backend, "LIBRARY", broken)
        with pytest.raises(
            ImportError, match=r"dien-fast's native library cannot be loaded: .*libdien_fast_cpu\.so"
        ):
            backend._load()
