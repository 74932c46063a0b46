"""The mutants of the CUDA kernels (see emulator/mutants.py) are those of today's sources."""

import re

import pytest
from emulator.mutants import FILES, HERE, ROOT, RULES
from mutation import SURVIVED


@pytest.fixture(scope="module")
def sources():
    return [(ROOT / "csrc" / "cuda" / name).read_text() for name in FILES]


def test_every_rule_matches_something(sources):
    patterns = [pattern for _, pattern, _ in RULES]
    assert not [pattern for pattern in patterns if not any(re.search(pattern, source) for source in sources)]


def test_none_survived():
    assert SURVIVED not in (HERE / "mutants.txt").read_text()
