"""Every library that `accelerate` knows stands in all the places that name the libraries."""

from pathlib import Path

import pytest
from compare import ENVIRONMENTS, PEERS
from peer_models import BUILDERS
from tables import NAMES

from dien_fast.patches import accelerate
from dien_fast.patches.registry import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]


def lines_of(path):
    return (ROOT / path).read_text().splitlines() if (ROOT / path).exists() else []


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_no_place_is_forgotten(library):
    name, file = library.name, library.name.replace("-", "_")
    assert name in BUILDERS, "BUILDERS of benchmarks/peer_models.py"
    assert name in NAMES, "NAMES of benchmarks/tables.py"
    assert name in ENVIRONMENTS, "ENVIRONMENTS of tests/peers/compare.py"
    pins = {f"{library.distribution}=={version}" for version in library.versions}
    requirements = PEERS / "requirements" / f"{ENVIRONMENTS[name]}.txt"
    assert pins & set(lines_of(requirements)), f"one of {sorted(pins)} in {requirements.name}"
    assert (PEERS / f"train_{file}.py").exists()
    assert (ROOT / "tests" / "patches" / f"test_{file}.py").exists()
    assert f'``"{name}"``' in accelerate.__doc__
    for page in ("README.md", "docs/accelerate.md"):
        rows = [line for line in lines_of(page) if line.startswith("|") and f'`"{name}"`' in line]
        assert any(version in row for row in rows for version in library.versions), f"a row of {page}"
    assert NAMES[name] in (ROOT / "CHANGELOG.md").read_text()
