"""The CUDA kernels of the interest layer's operators in GPGPU-Sim, with cases and checks of the emulated tests.

Beside the kernels run the sources of the operators, which check tensors and choose the launchers.
"""

import pytest
import torch
from comparison import assert_same
from interest_cases import (
    CODES,
    DTYPES,
    FEW_SCORES,
    KIND_NAMES,
    KINDS,
    LOSS_SHAPES,
    MODES,
    OUTSIDE,
    ROW_DTYPES,
    ROW_LENGTHS,
    ROW_TAILS,
    ROW_WIDTHS,
    SOME,
    loss_outcome,
    native,
    native_loss,
    outcome,
    pairs,
    plain,
    plain_loss,
    plain_sum,
    scoring,
    scoring_of,
    seeded,
    sum_outcome,
    summands,
)
from interest_checks import (
    check_against_plain,
    check_offsets_outside,
    check_padding,
    check_padding_of,
    check_shared_keys,
)
from interest_operators import use_operators
from simulated import driver
from simulated_operators import NAMESPACE, Operators
from simulator_build import build_operators, simulator

from dien_fast.ops import rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(simulator() is None, reason="GPGPUSIM_ROOT names no simulator"),
]
TYPES = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


@pytest.fixture(scope="session")
def operators():
    return Operators(driver(build_operators(simulator()), simulator())).defined()


@pytest.fixture
def simulated(operators, monkeypatch):
    """What runs the operators; their public functions, on tensors of the CPU, run the simulated kernels."""
    use_operators(getattr(torch.ops, NAMESPACE), monkeypatch)
    for name in ("multiprocessors", "chunk_bytes"):
        monkeypatch.setattr(operators, name, getattr(operators, name))
    return operators


@pytest.fixture
def check(simulated, record_property):
    """Compares an operator with plain PyTorch, and notes the largest errors of its outcomes."""

    def check_and_record(outcome, compute, plain, arguments, most=1):
        found, exact = check_against_plain(outcome, compute, plain, arguments, most)
        errors = {}
        for name, value in exact.items():
            kind = "gradients of parameters" if "parameter" in name else name
            scale = max(1.0, value.abs().max().item() if value.numel() else 0.0)
            error = (found[name].double() - value).abs().max().item() / scale if value.numel() else 0.0
            errors[kind] = max(error, errors.get(kind, 0.0))
        dtype = next(iter(arguments.leaves().values())).dtype
        record_property("errors", (str(dtype).removeprefix("torch."), errors))

    return check_and_record


@TYPES
@pytest.mark.parametrize(("shape", "kind"), FEW_SCORES)
def test_scores(check, shape, kind, dtype):
    # Eight layers leave rows nearly equal, so that gradients are small differences: a slope's had 4.1 times the
    # allowed error, and 6.6 times under the emulator.
    most = 8 if shape == "eight layers" else 1
    check(outcome, native, plain, scoring_of(shape, *KINDS[KIND_NAMES.index(kind)], dtype=dtype), most)


@TYPES
@MODES
@pytest.mark.parametrize("activation", CODES)
def test_options(check, activation, training, dtype):
    """Normalised layers with every activation."""
    check(outcome, native, plain, scoring(SOME, 8, activation=activation, training=training, dtype=dtype))


@TYPES
def test_dropout(simulated, monkeypatch, dtype):
    """The masks are the CPU's."""
    s = scoring(SOME, 8, dropout=0.4, dtype=dtype)
    found = outcome(lambda s: seeded(s, torch.tensor([77])), s)
    monkeypatch.undo()
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert_same(found, outcome(lambda s: seeded(s, torch.tensor([77])), s), tolerance, tolerance)


@TYPES
@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_shared_keys(simulated, activation, dtype):
    check_shared_keys(activation, dtype)


@TYPES
def test_scores_in_chunks_of_histories(check, simulated, dtype):
    """The matrices of one history at a time; another number of multiprocessors cuts sums into other parts."""
    simulated.chunk_bytes, simulated.multiprocessors = 1, 64
    check(outcome, native, plain, scoring(SOME, 8, dtype=dtype))


@TYPES
@pytest.mark.parametrize("shape", LOSS_SHAPES)
def test_loss(check, shape, dtype):
    check(loss_outcome, native_loss, plain_loss, pairs(*LOSS_SHAPES[shape], dtype=dtype))


@TYPES
def test_loss_in_chunks(check, simulated, dtype):
    """Several chunks of rows, and sums cut into other parts."""
    simulated.chunk_bytes, simulated.multiprocessors = 20_000, 64
    check(loss_outcome, native_loss, plain_loss, pairs([60, 3, 0, 1, 41, 2], 18, (30, 20), dtype=dtype))


@TYPES
@pytest.mark.parametrize("depth", [1, 18, 257])
@pytest.mark.parametrize("shape", ROW_LENGTHS)
def test_weighted_sum(check, shape, depth, dtype):
    check(sum_outcome, rows.weighted_sum, plain_sum, summands(ROW_LENGTHS[shape][0], depth, dtype))


@pytest.mark.parametrize("shape", ROW_LENGTHS)
@pytest.mark.parametrize("tail", ROW_TAILS, ids=str)
def test_padding(simulated, tail, shape):
    check_padding(shape, tail)


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("width", ROW_WIDTHS)
def test_padding_of_every_size(simulated, dtype, width):
    check_padding_of(dtype, width)


@pytest.mark.parametrize("offsets", OUTSIDE, ids=str)
def test_values_outside_of_the_arrays(simulated, offsets):
    """Offsets are cut, and no memory beside the arrays is written: the driver looks at guard zones."""
    check_offsets_outside(torch.tensor(offsets))
