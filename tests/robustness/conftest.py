import pytest
from shop import make_shop

from dien_fast.training.runs import load


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A folder with a table, its schema, and a run."""
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def run(shop):
    """The run of the shop, opened."""
    return load(shop / "run")
