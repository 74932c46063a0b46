"""Times of events: read from every kind of column, refused in one sentence, and divided into sessions."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from clicks import make_schema, make_table, timed_schema, timed_table

from dien_fast.data import ClickDataset, Encoders, Schema, fit_encoders, pad_batch, read_table
from dien_fast.data import columns as columns_module
from dien_fast.data.inspection import warning_lines
from dien_fast.data.sessions import event_times, session_numbers
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged

KEY = "items.session"


def dataset_of(table: pa.Table, schema: Schema, source: str = "t.csv") -> ClickDataset:
    plain = replace(schema, negatives="none")
    return ClickDataset(table, plain, fit_encoders(table, plain), source=source)


def by_hand(times: list[int] | None, gap: float) -> list[int]:
    """The session of each event: one more than that of the event before if the pause is longer than the gap."""
    found: list[int] = []
    for place, time in enumerate(times or []):
        found.append(0 if place == 0 else found[-1] + (time - (times or [])[place - 1] > gap))
    return found


@pytest.mark.parametrize("gap", [0, 977, 1800.0, 1e9])
def test_a_longer_pause_begins_a_session(gap: float) -> None:
    table = timed_table()
    rows = np.array([7, 0, 1, 39, 7])
    batch = dataset_of(table, timed_schema(gap)).batch(rows)
    sessions, history = batch[KEY], batch["hist_item"]
    assert isinstance(sessions, Ragged)
    assert isinstance(history, Ragged)
    times = table["hist_time"].to_pylist()
    assert sessions.values.tolist() == [number for row in rows for number in by_hand(times[row], gap)]
    assert sessions.values.dtype == torch.int64
    assert torch.equal(sessions.offsets, history.offsets)
    assert sessions.max_length == history.max_length
    padded = pad_batch(batch)[KEY]
    assert padded.shape == (5, 50)


@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_times_are_cut_like_the_histories(keep: str) -> None:
    table = timed_table()
    batch = dataset_of(table, timed_schema(max_length=3, keep=keep)).batch(np.arange(40))
    times = [row[-3:] if keep == "newest" else row[:3] for row in table["hist_time"].to_pylist()]
    assert batch[KEY].values.tolist() == [number for row in times for number in by_hand(row, 1800)]  # type: ignore[union-attr]


def test_a_schema_without_times_gives_the_batch_it_always_gave() -> None:
    plain, timed = (
        dataset_of(timed_table(), schema).batch(np.arange(40)) for schema in (make_schema(), timed_schema())
    )
    assert timed.keys() - plain.keys() == {KEY}
    for name, value in pad_batch(plain).items():
        assert torch.equal(value, pad_batch(timed)[name])
    encoders = [fit_encoders(timed_table(), schema) for schema in (make_schema(), timed_schema())]
    assert encoders[0].fingerprint() == encoders[1].fingerprint()


SECONDS = [[], None, [0, 60, 60], [100, 4000]]
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def moments(kind: pa.DataType) -> pa.Array:
    lists = [row if row is None else [START + datetime.timedelta(seconds=s) for s in row] for row in SECONDS]
    return pa.array(lists, pa.list_(pa.timestamp("us", "UTC"))).cast(pa.list_(kind))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(SECONDS, pa.list_(pa.int64())),
        pa.array(SECONDS, pa.large_list(pa.int32())),
        pa.array(SECONDS, pa.list_(pa.float64())),
        pa.array(["", None, "0|60|60", "100|4000"]),
        pa.array(["", None, "0.0|60.0|6e1", "100|4000"]).dictionary_encode(),
        moments(pa.timestamp("s", "UTC")),
        moments(pa.timestamp("ns", "Europe/Oslo")),
        moments(pa.timestamp("ms")),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_time(column: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1 << 17, 2):
        monkeypatch.setattr(columns_module, "SLICE_ROWS", rows)
        times, _, lengths = event_times(column, "|")
        assert lengths.tolist() == [0, 0, 3, 2]
        first = times[0]
        assert (times - first).tolist()[:3] == [0, 60, 60]
        assert times[4] - times[3] == 3900


def test_dates_are_days() -> None:
    days = [[datetime.date(2026, 3, 1), datetime.date(2026, 3, 3)]]
    assert np.diff(event_times(pa.array(days), "|")[0]).tolist() == [2 * 86400]


def test_sessions_of_no_events() -> None:
    assert session_numbers(np.zeros(0), 60).tolist() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "t.csv: no column 'hist_time'"),
        (
            [5] * 4,
            r"t.csv: column 'hist_time': expected lists, or text in which '\|' divides the words, got int64",
        ),
        (
            [["1"], ["2"], ["3"], ["4"]],
            "t.csv: column 'hist_time': expected lists of seconds, timestamps or dates, got",
        ),
        ([[1, 2], [3], [], [4, None]], "'hist_time': expected a time for each event, got none in row 3"),
        ([[1.0, 2.0], [3.0], [], [np.inf, 1.0]], "'hist_time': expected a time for each event, got none in row 3"),
        (["1|2", "3", "", "1|noon"], "t.csv: column 'hist_time': expected seconds, got 'noon' in row 3"),
        (["1|", "3", "", "1|2"], "t.csv: column 'hist_time': expected seconds, got '' in row 0"),
        ([[1, 2], [3], [], [9, 8]], "from the oldest event to the newest, got 8 s behind 9 s in row 3"),
        ([[1, 2], [3], [4], [5, 6]], "'hist' and 'hist_time' of group 'items' have 0 and 1 events in row 2"),
        ([[1, 2], [3], None, [5]], "'hist' and 'hist_time' of group 'items' have 2 and 1 events in row 3"),
    ],
)
@pytest.mark.parametrize("slice_rows", [1 << 17, 1])
def test_wrong_times_are_named(
    values: list[object] | None, message: str, slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "SLICE_ROWS", slice_rows)
    table = pa.table({"item": [1, 2, 1, 2], "hist": [[1, 2], [1], [], [2, 2]], "label": [0, 1, 0, 1]})
    if values is not None:
        table = table.append_column("hist_time", pa.array(values))
    schema = Schema.from_dict(
        {
            "categorical": ["item"],
            "sequences": ["hist"],
            "min_count": 1,
            "groups": [{"name": "items", "pairs": [{"ad": "item", "pos_hist": "hist"}], "time": "hist_time"}],
        }
    )
    encoders = fit_encoders(table, replace(schema, groups=[replace(schema.groups[0], time="")]))
    with pytest.raises(DataError, match=message) as caught:
        ClickDataset(table, schema, encoders, require_label=False, source="t.csv")
    assert "\n" not in str(caught.value)


def test_text_files_keep_the_times_as_text(tmp_path: Path) -> None:
    table = timed_table()
    text = table
    for name in ("hist_item", "hist_category", "hist_time"):
        joined = pa.array([None if row is None else "|".join(map(str, row)) for row in table[name].to_pylist()])
        text = text.set_column(text.column_names.index(name), name, joined)
    pa.csv.write_csv(text, tmp_path / "clicks.csv")
    read = read_table(tmp_path / "clicks.csv", timed_schema())
    assert read.schema.field("hist_time").type == pa.string()
    first, second = (dataset_of(rows, timed_schema()).batch(np.arange(40))[KEY] for rows in (table, read))
    assert torch.equal(first.values, second.values)  # type: ignore[union-attr]


def test_checked_times_that_do_not_fit_are_refused(encoders: Encoders) -> None:
    table = timed_table()
    table = table.set_column(table.column_names.index("hist_time"), "hist_time", pa.array([[1, 2]] * 40))
    schema = timed_schema(negatives="none")
    with pytest.raises(
        DataError, match=r"t\.csv: column 'hist_time': expected a time for each event of 'hist_item'"
    ):
        ClickDataset(table, schema, encoders, checked=True, source="t.csv")


@pytest.mark.parametrize(
    ("gap", "words"), [(1e6, "none of the pauses"), (0, "every pause"), (1800, ""), (900, "")], ids=str
)
def test_times_that_say_nothing_are_warned_of(gap: float, words: str) -> None:
    schema, table = timed_schema(gap, negatives="none"), timed_table()
    encoders = fit_encoders(table, schema)
    lines = [
        line
        for line in warning_lines(ClickDataset(table, schema, encoders), encoders, "training")
        if "session" in line
    ]
    if not words:
        assert lines == []
        return
    assert lines == [
        f"warning: {words} between two events of the training rows in hist_time is longer than session_gap, "
        f"{gap:g} s, so that sessions say nothing; times must be in seconds"
    ]


def test_equal_times_are_warned_of() -> None:
    table = make_table()
    times = [[7] * len(row or []) for row in table["hist_item"].to_pylist()]
    table = table.append_column("hist_time", pa.array(times, pa.list_(pa.int64())))
    schema = timed_schema(negatives="none")
    encoders = fit_encoders(table, schema)
    lines = warning_lines(ClickDataset(table, schema, encoders), encoders, "training")
    assert any("none of the pauses between two events of the training rows in hist_time" in line for line in lines)
