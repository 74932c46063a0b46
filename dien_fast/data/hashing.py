"""Hashes of numbers and words, which are the same in every process and on every machine."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dien_fast.data.columns import as_column, is_text
from dien_fast.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """Return the splitmix64 finaliser of uint64 ``x``: a bijection whose output looks random.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unit(hashes: np.ndarray) -> np.ndarray:
    """Return float64 in [0, 1), uniform for uniform uint64 ``hashes``."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_texts(column: pa.Array) -> np.ndarray:
    """Return ``[N]`` uint64 hashes of text; those of nulls are that of an empty text."""
    import pandas as pd

    return pd.util.hash_array(column.fill_null("").to_numpy(zero_copy_only=False), categorize=False)


def hash_names(column: pa.Array | pa.ChunkedArray, what: str) -> np.ndarray:
    """Return ``[N]`` int64, equal for equal names, such as those of users; nulls are equal to one another.

    Whole numbers give different hashes. Two texts among 10^8 have the same one with a probability of 3e-4.

    Args:
        column: one name a row.
        what: what a row names, for the message.

    Raises:
        DataError: the column holds lists or the like.
    """
    column = as_column(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_nested(kind):
        raise DataError(f"expected one {what} a row, got {kind}")
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if is_text(kind) or not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        hashes = hash_texts(column.cast(pa.large_string()))
    else:
        bits = pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
        hashes = mix(column.cast(bits).fill_null(0).to_numpy(zero_copy_only=False).astype(np.uint64))
    hashes[missing] = 0
    return hashes.view(np.int64)
