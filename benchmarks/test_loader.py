"""The loader that training uses, against a data set that builds every row by itself.

Data of ML-100K's size: 80,000 rows, histories of up to 50 events, a batch of 128, shuffled, with negatives.
Run with ``python -m pytest benchmarks/test_loader.py --benchmark-only``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dien_fast.data import (
    ClickDataset,
    Encoders,
    EpochLoader,
    NegativeSampler,
    Schema,
    SequenceEncoder,
    click_table,
    fit_encoders,
    movielens_schema,
    pad_batch,
)
from dien_fast.data.synthetic import shuffle_histories

ROWS, USERS, MOVIES, BATCH = 80_000, 943, 1682, 128


def movielens_like() -> tuple[pa.Table, Schema]:
    """Return a click table with ML-100K's columns, users, movies and skewed popularity."""
    rng = np.random.default_rng(0)
    ratings = pa.table(
        {
            "userId": rng.integers(1, USERS + 1, ROWS),
            "movieId": np.minimum(rng.exponential(MOVIES / 5, ROWS).astype(np.int64), MOVIES - 1) + 1,
            "rating": rng.integers(1, 6, ROWS),
            "timestamp": np.arange(ROWS),
        }
    )
    names = np.array(["Action", "Comedy", "Drama", "Thriller"])
    genres = ["|".join(names[: 1 + number % 4]) for number in range(MOVIES)]
    movies = pa.table({"movieId": range(1, MOVIES + 1), "genres": genres})
    users = pa.table(
        {
            "userId": range(1, USERS + 1),
            "age": rng.integers(10, 70, USERS).astype(float),
            "gender": rng.choice(["F", "M"], USERS),
            "occupation": rng.choice([f"o{number}" for number in range(21)], USERS),
            "zipCode": rng.choice([f"z{number}" for number in range(795)], USERS),
        }
    )
    table = click_table(ratings, movies, users)
    return table, movielens_schema(table)


@pytest.fixture(scope="module")
def data() -> tuple[pa.Table, Schema, Encoders]:
    table, schema = movielens_like()
    return table, schema, fit_encoders(table, schema)


class RowByRow(Dataset[dict[str, Any]]):
    """A data frame whose every row is looked up cell by cell and padded alone, then stacked by torch."""

    def __init__(self, table: pa.Table, schema: Schema, encoders: Encoders) -> None:
        columns: dict[str, Any] = {"label": table["label"].to_numpy().astype(np.float32)}
        for name in schema.numeric:
            columns[name] = encoders.numeric(name).transform(table[name])
        for name in schema.categorical:
            columns[name] = encoders.category(name).transform(table[name])
        # In this design negatives are a column, drawn once: here another order of the clicks.
        [pair] = schema.pairs()
        source = {pair.neg_hist: shuffle_histories(table, pair.pos_hist)[pair.pos_hist]}
        for name in schema.sequence_features():
            encoded = encoders.sequence(name).transform(source[name] if name in source else table[name])
            columns[name] = [row.values.to_numpy() for row in encoded]
        self.frame = pd.DataFrame(columns)
        self.scalars = ["label", *schema.numeric, *schema.categorical]
        self.widths = {name: encoders.max_length(name) for name in schema.sequence_features()}

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record = {name: self.frame[name].iloc[row] for name in self.scalars}
        for name, width in self.widths.items():
            events = self.frame[name].iloc[row]
            padded = np.zeros(width, np.int32)
            padded[: len(events)] = events
            record[name] = padded
        return record


def endless(loader: EpochLoader) -> Iterator[dict[str, Any]]:
    for epoch in cycle(range(1000)):
        loader.set_epoch(epoch)
        yield from loader


def make_loader(data: tuple[pa.Table, Schema, Encoders], negatives: str, exclude_clicked: bool) -> EpochLoader:
    table, schema, encoders = data
    schema = replace(schema, negatives=negatives, exclude_clicked=exclude_clicked)
    sampler = NegativeSampler.fit(table, schema, encoders)
    return EpochLoader(ClickDataset(table, schema, encoders, negatives=sampler), BATCH, shuffle=True)


@pytest.mark.benchmark(group="a batch of 128 rows")
@pytest.mark.parametrize("exclude_clicked", [False, True], ids=["", "exclude_clicked"])
@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_epoch_loader(
    benchmark: Any, data: tuple[pa.Table, Schema, Encoders], negatives: str, exclude_clicked: bool
) -> None:
    batches = endless(make_loader(data, negatives, exclude_clicked))
    batch = benchmark.pedantic(lambda: next(batches), rounds=1000, warmup_rounds=20)
    assert len(batch["label"]) == BATCH


@pytest.mark.benchmark(group="a batch of 128 rows")
def test_row_by_row(benchmark: Any, data: tuple[pa.Table, Schema, Encoders]) -> None:
    dataset = RowByRow(*data)
    assert_same_rows(dataset, data)
    batches = iter(DataLoader(dataset, batch_size=BATCH, shuffle=True))
    batch = benchmark.pedantic(lambda: next(batches), rounds=100, warmup_rounds=3)
    assert len(batch["label"]) == BATCH


def assert_same_rows(dataset: RowByRow, data: tuple[pa.Table, Schema, Encoders]) -> None:
    """The gate: both give the same rows, but for the negatives."""
    table, schema, encoders = data
    rows = np.random.default_rng(0).integers(0, len(dataset), BATCH)
    ours = pad_batch(ClickDataset(table, schema, encoders).batch(rows))
    theirs = torch.utils.data.default_collate([dataset[int(row)] for row in rows])
    for name in ("label", *schema.numeric, *schema.categorical, *schema.sequences):
        assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name


@pytest.mark.benchmark(group="a million sequences of 50 words")
@pytest.mark.parametrize("kind", ["lists", "text"])
def test_encode_a_million_sequences(benchmark: Any, kind: str) -> None:
    rows, length = 1_000_000, 50
    words = np.random.default_rng(0).zipf(1.2, rows * length) % 50_000
    column: pa.Array | pa.ChunkedArray = pa.LargeListArray.from_arrays(
        pa.array(np.arange(0, rows * length + 1, length)), pa.array(words)
    )
    if kind == "text":
        column = joined(column)
    encoder = SequenceEncoder(sep="|")
    encoded = benchmark.pedantic(lambda: encoder.fit_transform(column), rounds=1)
    assert len(encoded) == rows
    assert len(encoded.values) == rows * length


def joined(column: pa.LargeListArray) -> pa.ChunkedArray:
    """Return the lists as text, in pieces that stay below two gigabytes."""
    pieces = []
    for start in range(0, len(column), 100_000):
        part = column.slice(start, 100_000)
        words = part.flatten().cast(pa.string())
        offsets = pa.array(np.arange(0, len(words) + 1, len(words) // len(part)), pa.int32())
        pieces.append(pc.binary_join(pa.ListArray.from_arrays(offsets, words), "|"))
    return pa.chunked_array(pieces)
