"""MovieLens-100K as padded arrays, for the peers that take arrays: was the movie liked, given those liked before?

    python tests/peers/ml_100k.py ml-100k.npz

writes the file with dien_fast.data; reading it takes numpy alone, as the peers' environments have no pyarrow of
ours.

Each part (train, valid, test; 80/10/10 of every user's own ratings in time) has

    user      [N] int64      1..943, dense
    movie     [N] int64      1..1682, dense
    history   [N, 50] int64  movies liked before, oldest first, 0 behind the end
    negatives [N, 50] int64  for each of them another movie, uniform
    length    [N] int64      0..50
    label     [N] float32    rating of 4 or 5
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = ("train", "valid", "test")
COLUMNS = ("user", "movie", "history", "negatives", "length", "label")
USERS, MOVIES, MAX_LENGTH = 943, 1682, 50


@dataclass
class Part:
    user: np.ndarray
    movie: np.ndarray
    history: np.ndarray
    negatives: np.ndarray
    length: np.ndarray
    label: np.ndarray

    def __len__(self):
        return len(self.label)

    def rows(self, keep):
        """The rows of a boolean mask or of a slice."""
        return Part(*(getattr(self, name)[keep] for name in COLUMNS))


def load(path):
    """Return the three parts of a file that `build` wrote."""
    with np.load(path) as arrays:
        return [Part(*(arrays[f"{part}.{name}"] for name in COLUMNS)) for part in PARTS]


def build(path):
    from dien_fast import data

    tables = data.read_movielens(data.fetch_ml_100k(Path(os.environ.get("DIEN_FAST_CACHE", ".cache")) / "ml-100k"))
    table = data.click_table(*tables, max_length=MAX_LENGTH)
    random = np.random.default_rng(0)
    arrays = {}
    for name, rows in zip(PARTS, data.split_table(table), strict=True):
        histories = rows["histHighRatedMovieIds"].combine_chunks()
        clicks = histories.flatten().to_numpy()
        length = histories.value_lengths().to_numpy().astype(np.int64)
        # Uniform over the movies that are not the click itself.
        others = random.integers(1, MOVIES, len(clicks))
        columns = {
            "user": rows["userId"].to_numpy(),
            "movie": rows["movieId"].to_numpy(),
            "history": padded(clicks, length),
            "negatives": padded(others + (others >= clicks), length),
            "length": length,
            "label": rows["label"].to_numpy().astype(np.float32),
        }
        # ML-100K's own ids are dense; anything else would have to be encoded here.
        assert columns["user"].min() >= 1, "user 0"
        assert columns["user"].max() <= USERS, "more users than ML-100K has"
        assert clicks.min() >= 1, "movie 0"
        assert max(columns["movie"].max(), clicks.max()) <= MOVIES, "more movies than ML-100K has"
        arrays |= {f"{name}.{column}": array for column, array in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def padded(values, length):
    """Return the [N, MAX_LENGTH] rows whose first length[i] places hold values in order."""
    rows = np.zeros((len(length), MAX_LENGTH), np.int64)
    rows[np.arange(MAX_LENGTH) < length[:, None]] = values
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    build(parser.parse_args().output)
