"""The clicks of a shop, the schema that says what its columns mean, and calls of the command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dien_fast import cli
from dien_fast.cli import main

REPOSITORY = Path(cli.__file__).parents[2]

SCHEMA = """
label = "clicked"
user = "who"
time = "when"
numeric = ["price"]
categorical = ["country", "item", "brand"]
sequences = ["words", "past_items", "past_brands"]
separator = ";"
min_count = 2

[[groups]]
name = "items"
pairs = [{ ad = "item", pos_hist = "past_items" }, { ad = "brand", pos_hist = "past_brands" }]
"""


def shop_table(rows=400, seed=0):
    """Clicks of a shop whose users like one brand each."""
    rng = np.random.default_rng(seed)
    users = np.arange(rows) % 20
    items = rng.integers(0, 12, rows)
    clicked = (items % 3 == users % 3) ^ (rng.random(rows) < 0.1)
    histories = [rng.choice(np.flatnonzero(np.arange(12) % 3 == user % 3), rng.integers(0, 6)) for user in users]
    return pa.table(
        {
            "who": [f"u{user}" for user in users],
            "when": pa.array(np.arange(rows) * 60),
            "clicked": pa.array(clicked.astype(np.int64)),
            "price": pa.array(np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)), from_pandas=True),
            "country": rng.choice(["NO", "NA", "IS"], rows),
            "item": [f"i{item}" for item in items],
            "brand": [f"b{item % 3}" for item in items],
            "words": rng.choice(["new;red", "blue", ""], rows),
            "past_items": [";".join(f"i{item}" for item in history) for history in histories],
            "past_brands": [";".join(f"b{item % 3}" for item in history) for history in histories],
        }
    )


def make_shop(directory):
    """Fill a directory with a table, its schema, and the run that the command makes of them."""
    pa.csv.write_csv(shop_table(), directory / "clicks.csv")
    pa.parquet.write_table(shop_table(50, seed=1), directory / "new.parquet")
    (directory / "clicks.toml").write_text(SCHEMA)
    arguments = ["--dataset", str(directory / "clicks.csv"), "--schema", str(directory / "clicks.toml")]
    arguments += ["--output", str(directory / "run"), "--epochs", "2", "--embedding-size", "4", "--cpu", "--quiet"]
    assert main(["train", *arguments]) == 0
    return directory


def failure(capsys, *arguments):
    """Run the command, which must fail with status 2, and return its sentence."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    *before, sentence = captured.err.strip().splitlines()
    # What is known of each column is said before the rows are scored.
    assert all("words are unknown" in line for line in before)
    assert sentence.startswith("dien-fast: error: ")
    return sentence.removeprefix("dien-fast: error: ")


def run_python(*arguments):
    """Run Python in a process of its own, where the package is found and one thread computes."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
