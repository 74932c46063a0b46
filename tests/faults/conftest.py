import shutil
from pathlib import Path

import pytest
from shop import make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run(shop, tmp_path):
    return Path(shutil.copytree(shop / "run", tmp_path / "run"))
