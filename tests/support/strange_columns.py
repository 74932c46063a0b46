"""Arrow columns of every type, for campaigns: whatever a table may hold in place of what its schema says."""

import decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st


def _views(count):
    return pa.ListViewArray.from_arrays(
        pa.array(np.arange(count)[::-1] % 3, pa.int32()), pa.array([2] * count, pa.int32()), pa.array(["i1"] * 5)
    )


def _map(count):
    return pa.array([[("i1", 1)]] * count, pa.map_(pa.string(), pa.int64()))


def _union(count):
    kinds = pa.array([0] * count, pa.int8())
    return pa.UnionArray.from_sparse(kinds, [pa.array([1] * count, pa.int64()), pa.array(["a"] * count)])


def _run_ends(count):
    return pa.RunEndEncodedArray.from_arrays(pa.array([count] if count else [], pa.int32()), ["i1"][:count])


def _extension(count):
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"] * count, pa.binary(16)))


def _invalid_text(count):
    """Text whose bytes are not UTF-8, which Arrow does not look at."""
    return pa.array([b"i\xff\xfe"] * count, pa.binary()).view(pa.string())


def _alternating(*values):
    return lambda count: pa.array([values[row % len(values)] for row in range(count)])


def _typed(kind, *values):
    return lambda count: pa.array([values[row % len(values)] for row in range(count)], kind)


BIG = decimal.Decimal("9" * 70)
COLUMNS = {
    "lists of lists": _alternating([["i1"], ["i2", None]], [], None),
    "structs": _alternating({"item": "i1", "n": 1}),
    "lists of structs": _alternating([{"item": "i1"}], []),
    "a map": _map,
    "a union": _union,
    "run ends": _run_ends,
    "an extension": _extension,
    "list views": _views,
    "text that is not UTF-8": _invalid_text,
    "bytes": _alternating(b"i1", b"\xff"),
    "bytes of one size": _typed(pa.binary(2), b"i1"),
    "byte views": _typed(pa.binary_view(), b"i1"),
    "times of a day": _typed(pa.time32("s"), 1, 2),
    "durations": _typed(pa.duration("ns"), 1, 2**62),
    "intervals": lambda count: pa.array([pa.MonthDayNano([1, 2, 3])] * count),
    "timestamps": _typed(pa.timestamp("ns"), -(2**62), 2**62),
    "timestamps of a zone": _typed(pa.timestamp("ms", "Asia/Kathmandu"), 0, None),
    "dates": _typed(pa.date64(), 0, 86_400_000 * 10**6),
    "decimals": _typed(pa.decimal256(76, 0), BIG, -BIG),
    "decimals with a point": _typed(pa.decimal128(5, 2), decimal.Decimal("1.25"), None),
    "half floats": lambda count: pa.array(np.arange(count), pa.float16()),
    "largest unsigned": _typed(pa.uint64(), 2**64 - 1, 0),
    "smallest signed": _typed(pa.int64(), -(2**63), 2**63 - 1),
    "bools": _alternating(True, False, None),
    "nulls": lambda count: pa.nulls(count),
    "lists of nulls": _typed(pa.list_(pa.null()), [None], []),
    "lists of bools": _typed(pa.list_(pa.bool_()), [True, False], None),
    "lists of floats": _alternating([1.0, float("nan")], [0.5]),
    "lists of dictionaries": _typed(pa.list_(pa.dictionary(pa.int8(), pa.string())), ["i1", None]),
    "lists of one size": _typed(pa.list_(pa.string(), 2), ["i1", "i2"], None),
    "lists of decimals": _typed(pa.list_(pa.decimal128(5, 1)), [decimal.Decimal("1.0")]),
    "lists of timestamps": _typed(pa.list_(pa.timestamp("s")), [1, 2]),
    "lists with nulls": _alternating(["i1", None], [None]),
    "NaN": _alternating(float("nan"), 1.0),
    "infinity": _alternating(float("inf"), -float("inf")),
    "whole floats": _alternating(1.0, 0.0),
    "halves": _alternating(0.5, 1.5),
    "huge floats": _alternating(1e308, -1e308),
    "tiny floats": _alternating(5e-324, 0.0),
    "numbers as text": _alternating("1", "0"),
    "numbers as strange text": _alternating("1e400", " 1", "0x10", "1_0", "\uff11"),
    "empty text": _alternating(""),
    "separators": _alternating(";", ";;", "i1;"),
    "padding": _alternating("__PAD__", "i1;__PAD__", "0;i1"),
    "lists written as text": _alternating("['i1', 'i2']", "[]"),
    "long text": _alternating("i" * 100_000),
    "a long list": _alternating(["i1"] * 5000, []),
    "text with zero bytes": _alternating("i\x001", "\x00"),
    "a dictionary with nulls": lambda count: pa.DictionaryArray.from_arrays(
        pa.array([row % 3 for row in range(count)], pa.int8()), pa.array(["i1", None, "i1"])
    ),
    "zero and one as text": _alternating("0", "1"),
}


def chunked(draw, column):
    """The same column in one chunk or in several, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(column)), max_size=3)))
    ends = [0, *cuts, len(column)]
    return pa.chunked_array([column[a:b] for a, b in pairwise(ends)], column.type)


@st.composite
def spoiled_tables(draw, table):
    """A table with some of its columns replaced, dropped, repeated, renamed or cut into chunks."""
    table = table.slice(0, draw(st.integers(0, table.num_rows)))
    for _ in range(draw(st.integers(0, 2))):
        if not table.num_columns:
            break
        place = draw(st.integers(0, table.num_columns - 1))
        name = table.column_names[place]
        change = draw(st.sampled_from(["replace"] * 6 + ["drop", "repeat", "rename", "alike"]))
        if change == "replace":
            made = COLUMNS[draw(st.sampled_from(sorted(COLUMNS)))](table.num_rows)
            table = table.set_column(place, name, chunked(draw, made))
        elif change == "drop":
            table = table.remove_column(place)
        elif change == "repeat":
            table = table.append_column(name, table[place])
        elif change == "rename":
            new = draw(st.sampled_from(["", "label", "__row__", name.upper(), f"{name} ", "neg_past_items"]))
            table = table.rename_columns(
                [new if at == place else old for at, old in enumerate(table.column_names)]
            )
        else:
            table = table.set_column(place, name, table[draw(st.integers(0, table.num_columns - 1))])
    return table
