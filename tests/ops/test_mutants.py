"""The mutants of the CPU kernels (see mutants.py) are those of today's sources."""

import importlib.util
import re
from pathlib import Path

import pytest
from mutation import SURVIVED

HERE = Path(__file__).parent
# Without what RULES match; tables; what tests of its own look at: the choice of the instruction set, denormals.
WITHOUT = {"attention_gru.h", "interest.h", "cpu/view.h", "cpu/attention_gru_kernel.cpp", "cpu/schedule.h"}
WITHOUT |= {"cpu/kernel/target.h", "cpu/runtime.h", "cpu/runtime.cpp", "cpu/flush_denormals.h", "library.cpp"}


@pytest.fixture(scope="module")
def mutants():
    # By its path: tests/cuda/emulator has a module of this name.
    spec = importlib.util.spec_from_file_location("cpu_mutants", HERE / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_is_broken(mutants):
    csrc = mutants.ROOT / "csrc"
    files = {str(path.relative_to(csrc)) for path in csrc.rglob("*.*") if "cuda" not in path.parts}
    assert files == mutants.FILES.keys() | WITHOUT
    assert {name for name, _, _ in mutants.mutants()} == mutants.FILES.keys()


def test_every_rule_matches_something(mutants):
    sources = [(mutants.ROOT / "csrc" / name).read_text() for name in mutants.FILES]
    patterns = [pattern for _, pattern, _ in mutants.RULES]
    assert not [pattern for pattern in patterns if not any(re.search(pattern, source) for source in sources)]


def test_none_survived():
    assert SURVIVED not in (HERE / "mutants.txt").read_text()
