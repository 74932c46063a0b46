"""A log of events to make clicks of."""

import numpy as np
import pyarrow as pa


def log(users=40, items=25, seed=0, **columns):
    """Events in random order; an item's category is its number modulo 4."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, 9, users))
    item = rng.integers(0, items, len(user))
    order = rng.permutation(len(user))
    table = {
        "user": [f"u{number}" for number in user[order]],
        "item": item[order],
        "time": rng.integers(0, 6, len(user)),
        "category": [f"c{number % 4}" for number in item[order]],
    }
    return pa.table(table | columns)
