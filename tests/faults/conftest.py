import shutil
from pathlib import Path

import pytest
from disturbed import KINDS
from faults import Command
from shop import make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run(shop, tmp_path):
    return Path(shutil.copytree(shop / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def undisturbed(shop, tmp_path_factory):
    """A function that makes a kind, and what it gives undisturbed, once."""
    made = {}

    def make(name):
        if name not in made:
            place = tmp_path_factory.mktemp("whole")
            kind = KINDS[name](shop, place)
            kind.begin(place / "whole")
            command = Command(kind.first(place / "whole"), kind.before)
            assert command.wait() == 0, command.printed()
            made[name] = kind, place / "whole", command.seconds
        return made[name]

    return make
