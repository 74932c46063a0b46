"""The CUDA kernels as nvcc compiles them, executed as PTX by GPGPU-Sim, against the reference loop in float64.

They run where GPGPUSIM_ROOT names a simulator that build.sh has built. The emulated tests stay the first net: here
an asynchronous copy lands at once, so that a missing wait goes unseen, and so do races. Only these tests see
nvcc's code and the inline PTX.
"""

import itertools
import re
import shutil

import pytest
import torch
from cuda_cases import EMPTY, LAYOUTS, assert_close, empty, incoming, largest_errors, make, outside
from simulated import Simulated, driver
from simulator_build import ROOT, build, simulator

from dien_fast.functional import GATES
from dien_fast.ops.cells import CELLS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(simulator() is None, reason="GPGPUSIM_ROOT names no simulator"),
]

SHAPE = (9, 3, 6, 36)  # B, T, I, H
SMALL = {3: 19 * 1024, 2: 12 * 1024}  # bytes for a block that the weights of SHAPE do not fit in, by gates


@pytest.fixture
def simulated():
    return Simulated(driver(build(simulator()), simulator()))


def check(simulated, record_property, leaves, arguments, cell):
    """States, last states and every gradient are as close to the loop's as those of the emulator must be."""
    gradients = incoming(leaves, arguments)
    got = simulated.outcome(leaves, CELLS[cell], **arguments, **gradients)
    errors = largest_errors(got, leaves, arguments, cell, gradients)
    record_property("errors", (str(leaves["x"].dtype).removeprefix("torch."), errors))
    assert_close(got, leaves, arguments, cell, gradients)
    return simulated.driver.launched()


def cases():
    """Every cell, layout and type, and of each type every scan: 4 or 8 histories, resident or streamed weights."""
    for number, (cell, layout) in enumerate(itertools.product(GATES, LAYOUTS)):
        variants = list(itertools.product((4, 8), (True, False)))
        for i in range(2):
            yield cell, layout, torch.float32, *variants[(number + i) % 4]
        yield cell, layout, torch.float64, 4, number % 2 == 0
    for cell in ("augru", "agru"):
        for number, variant in enumerate(itertools.product((4, 8), (True, False))):
            yield cell, LAYOUTS[number % 3], torch.float16, *variant


@pytest.mark.parametrize(
    ("cell", "layout", "dtype", "rows", "resident"),
    list(cases()),
    ids=lambda value: str(value).replace("torch.", ""),
)
def test_against_reference(simulated, record_property, cell, layout, dtype, rows, resident):
    simulated.multiprocessors = 1 if rows == 8 else 64
    if not resident:
        simulated.shared_bytes = SMALL[GATES[cell]] * (2 if dtype == torch.float64 else 1)
    # One multiprocessor has enough warps for blocks of 8 only with more histories.
    shape = (15, *SHAPE[1:]) if rows == 8 else SHAPE
    leaves, arguments = make(shape, cell, layout, dtype)
    kernels = check(simulated, record_property, leaves, arguments, cell)
    scans = {name for name in kernels if re.search("forward_kernel|backward_kernel", name)}
    variant = rf"I\w+Li{GATES[cell]}ELi{rows}ELb{int(resident)}E"
    assert len(scans) == 2
    assert all(re.search(variant, name) for name in scans), scans


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["augru", "agru"])
def test_two_chunks(simulated, record_property, cell, layout):
    _, _, inputs, hidden = SHAPE
    leaves, arguments = make(SHAPE, cell, layout, torch.float32)
    half = leaves["x"].shape[:-1].numel() // 2 + 1
    gates = GATES[cell]
    # What forward.cuh and backward.cuh take for a row, and backward for its sums.
    sums = gates * hidden * (inputs + hidden + 2) * 4
    simulated.chunk_bytes = {
        "forward": half * (gates * hidden * 4 + 8),
        "backward": sums + half * ((gates + 1) * hidden * 4 + 24),
    }
    kernels = check(simulated, record_property, leaves, arguments, cell)
    assert sum("chunk_kernel" in name for name in kernels) == 4  # forward and backward


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (257, 2, 5, 3), (5, 2, 40, 64), (3, 2, 7, 136)], ids=str)
def test_shapes(simulated, record_property, shape):
    """The smallest; many tiles; more than one tile of the products; two blocks of columns, which are streamed."""
    leaves, arguments = make(shape, "augru", "ragged", torch.float32)
    check(simulated, record_property, leaves, arguments, "augru")


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty(simulated, record_property, shape, layout):
    check(simulated, record_property, *empty(shape, layout), "augru")


@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_values_outside_of_the_arrays(simulated, layout):
    """Lengths and offsets are cut, and no memory beside the tensors is written."""
    leaves, arguments, gradients = outside("augru", layout)
    got = simulated.outcome(leaves, CELLS["augru"], **arguments, **gradients)
    assert all(name in got for name in ("states", "dx"))


@pytest.mark.xfail(run=False, reason="NOT RUN: bfloat16, as GPGPU-Sim has no .bf16 (instructions or registers)")
def test_bfloat16():
    raise AssertionError


PLATFORM = "cuda/common/platform/platform.h"
# Wrong operands of the inline PTX: where a copy of 16 bytes lands; where that of one number comes from; how many
# bytes it has, which only numbers of 8 bytes tell.
WRONG = [
    ('16;" ::"r"(shared)', '16;" ::"r"(shared ^ 16)', torch.float32),
    ('%2;" ::"r"(shared), "l"(from)', '%2;" ::"r"(shared), "l"((const char*)from + 4)', torch.float32),
    ('"n"(kBytes)', '"n"(4)', torch.float64),
]


@pytest.mark.parametrize(("right", "wrong", "dtype"), WRONG, ids=["to", "from", "bytes"])
def test_wrong_operands_are_noticed(tmp_path, right, wrong, dtype):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc" / PLATFORM
    assert header.read_text().count(right) == 1
    header.write_text(header.read_text().replace(right, wrong))
    leaves, arguments = make((3, 2, 3, 18), "augru", "ragged", dtype)
    changed = "kernels_double" if dtype == torch.float64 else "kernels_float"
    changed = {f"attention_gru/{changed}": tmp_path / "csrc"}
    process = driver(build(simulator(), changed), simulator())
    got = Simulated(process).outcome(leaves, CELLS["augru"], **arguments)
    process.close()
    gradients = {"dstates": None, "dlast": None}
    with pytest.raises(AssertionError):
        assert_close(got, leaves, arguments, "augru", gradients)
