"""benchmarks/issue_clocks.py on loops whose instructions and clocks are known by hand (micro_kernels.cu)."""

import json
import shutil
from pathlib import Path

import pytest
from issue_clocks import RESULTS, Scan, Step, clocks_of, find, table
from sass import Kernel, disassemble, kernels, kind_of

HERE = Path(__file__).parent
# What nvdisasm 13.5 printed of it, compiled by nvcc 13.0 for sm_90.
LISTING = (HERE / "micro_kernels.sm_90.txt").read_text(encoding="utf-8")
AROUND = 8  # instructions of a round beside those counted by hand: its counter, comparison, branch and barrier


def figures(listing, name, warps=4, architecture=90):
    return clocks_of(Step(find(kernels(listing), name), None).trace, warps, architecture)


def counted_by_hand(listing, architecture):
    """64 multiply-adds in a chain take four clocks each; independent ones as many as the unit takes; 16 reads."""
    each = {80: 2, 90: 1}[architecture]  # clocks for which a multiply-add of a warp keeps its unit
    chain, independent, reads = (
        figures(listing, name, architecture=architecture) for name in ("chain", "independent", "reads")
    )
    assert chain["kinds"]["multiply-adds"] == independent["kinds"]["multiply-adds"] == 64
    assert reads["kinds"]["multiply-adds"] == reads["kinds"]["shared reads"] == 16
    assert 64 < chain["instructions"] <= 64 + AROUND
    assert 32 < reads["instructions"] <= 32 + AROUND
    assert 4 * 64 <= chain["one warp"] <= 4 * 64 + 20
    assert 64 * each <= independent["one warp"] <= 64 * each + 20
    assert independent["busiest unit"] == {"float": 64 * each}
    assert chain["issue"] == chain["instructions"]  # one warp of each scheduler


def test_counts_and_clocks():
    counted_by_hand(LISTING, 90)


def test_warps_overlap():
    """Four warps of a scheduler hide one another's waits in a chain, and share the issue of independent work."""
    alone, four = (figures(LISTING, "chain", warps) for warps in (4, 16))
    assert four["issue"] == 4 * alone["issue"]
    assert four["modelled"] <= 1.15 * alone["modelled"]
    alone, four = (figures(LISTING, "independent", warps) for warps in (4, 16))
    assert four["modelled"] >= 3.5 * alone["modelled"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("nvdisasm") is None, reason="no nvcc or nvdisasm")
def test_counts_of_this_compiler(tmp_path, architecture):
    counted_by_hand(disassemble(HERE / "micro_kernels.cu", architecture, tmp_path), architecture)


def test_kinds():
    kinds = {"FFMA.RM": "multiply-adds", "IMAD.MOV.U32": "moves", "IMAD": "integers", "LDS.128": "shared reads"}
    kinds |= {"LDGSTS.E": "global memory", "LDG.E": "global memory", "ISETP.GE.AND.EX": "predicates"}
    assert {opcode: kind_of(opcode) for opcode in kinds} == kinds


def test_no_instruction():
    with pytest.raises(ValueError, match="text must be what `nvdisasm -hex` prints of a kernel"):
        Kernel("empty", "nothing")


@pytest.mark.parametrize(("hidden", "kilobytes"), [(32, (15.5, 17.1)), (64, (55.0, 58.1)), (128, (206.0, 212.2))])
def test_shapes_are_those_of_the_scans(hidden, kilobytes):
    """docs/cuda-kernels.md says what the launchers take for 4 histories."""
    got = tuple(Scan(backward, hidden, 4, True).bytes() / 1024 for backward in (False, True))
    assert got == pytest.approx(kilobytes, abs=0.06)


def test_saved_counts():
    results = json.loads(RESULTS.read_text())
    for row in results["rows"]:
        assert sum(row["kinds"].values()) == row["instructions"] <= row["issue"]
    assert table(results, 90).count("\n") > 20
