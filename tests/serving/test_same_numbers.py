"""One model trained on MovieLens-100K, 10,000 rows, and every way to serve it: all give the numbers of predict."""

import os

import numpy as np
import pandas as pd
import pytest
from served import Server, arguments_of, cpp_example

from dien_fast.cli import main
from dien_fast.data.sources import Source
from dien_fast.errors import DataError
from dien_fast.ops.backend import LIBRARY
from dien_fast.serving import OnnxModel, Package
from dien_fast.training.runs import load

ROWS = 10_000
HISTORY, ITEM = "histHighRatedMovieIds", "movieId"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
    ),
]


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    """A run, its rows and their probabilities."""
    try:
        table = Source("ml-100k").load().test.to_pandas()
    except DataError as error:
        if "cannot fetch MovieLens-100K" not in str(error):
            raise
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("ml-100k")
    words = ["--dataset", "ml-100k", "--output", str(directory / "run"), "--epochs", "1", "--cpu", "--quiet"]
    assert main(["train", *words]) == 0
    for form in ("pt2", "onnx"):
        assert main(["export", str(directory / "run"), "--output", str(directory / f"model.{form}")]) == 0
    table = pd.concat([table, table])[:ROWS].reset_index(drop=True)
    table = table.drop(columns=["label", "histTimestamps"])
    table[HISTORY] = [hard(list(map(int, row)), number) for number, row in enumerate(table[HISTORY])]
    table.loc[table.index % 11 == 0, ITEM] = 999_999
    table.loc[table.index % 13 == 0, "occupation"] = "never seen"
    table.loc[table.index % 17 == 0, "age"] = np.nan
    lengths = table[HISTORY].map(len)
    assert ((lengths == 0).sum() > 1000, (lengths > 100).sum() > 100, (lengths == 1).sum() > 1000) == (True,) * 3
    run = load(directory / "run")
    return directory, run, table, run.predict(table, allow_unknown=True)


def hard(history, number):
    """An empty, a short, a long or a changed history."""
    if number % 5 == 0:
        return []
    if number % 5 == 1:
        return history[:1] or [50]
    if number % 5 == 2:
        return history * 3
    return [999_999, *history] if number % 5 == 3 else history


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def requests(table):
    """Users with one candidate each, and their offsets."""
    users = table.drop(columns=[ITEM])
    return users, table[ITEM].tolist(), np.arange(len(table) + 1)


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_exported(movielens, form):
    directory, run, table, expected = movielens
    exported = OnnxModel(directory / "model.onnx") if form == "onnx" else Package(directory / "model.pt2")
    arguments = arguments_of(exported.inputs("candidates"), run, *requests(table))
    assert_same(exported.run("candidates", arguments).numpy(), expected)
    if form == "pt2":
        assert_same(exported.run("rows", arguments_of(exported.inputs("rows"), run, *requests(table))), expected)


def test_without_python(movielens, tmp_path):
    directory, _, table, expected = movielens
    written = table.assign(**{HISTORY: ["|".join(map(str, row)) for row in table[HISTORY]]})
    written.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "build").mkdir()
    done = cpp_example(tmp_path / "build")(directory / "model.pt2", LIBRARY, tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr
    assert_same([float(line) for line in done.stdout.splitlines()], expected)


def test_over_http(movielens):
    directory, run, table, expected = movielens
    server = Server(directory / "run")
    users, items, _ = requests(table[[*run.schema.numeric, *run.schema.categorical, *run.schema.sequences]])
    users = users.astype(object).where(users.notna(), None).to_dict("records")
    try:
        for start in range(0, ROWS, 250):
            rows = slice(start, start + 250)
            status, answer = server.score({"users": users[rows], "items": [[item] for item in items[rows]]})
            assert status == 200, answer
            assert_same(np.concatenate(answer["probabilities"]), expected[rows])
    finally:
        status, printed = server.end()
    assert status == 0, printed
