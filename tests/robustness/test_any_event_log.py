"""Any log of events: its own events, or a refusal that names the file."""

import shutil

import pytest
from campaign import Tally, amounts, attempt, campaign
from event_logs import FORMATS
from hypothesis import given
from hypothesis import strategies as st
from spoiled_bytes import spoil

from dien_fast.data import read_events
from dien_fast.data.sources import Source

WHOLE = [(f"u{number % 7}", f"i{number * 5 % 11}", 100 * number) for number in range(60)]


@st.composite
def damaged_logs(draw, directory):
    """A format, one of the files that it has, and what that file holds instead."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    folder = directory / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    FORMATS[name](folder, WHOLE)
    file = draw(st.sampled_from(sorted(folder.iterdir())))
    return name, file.name, spoil(draw, file.read_bytes())


@amounts(quick=30, slow=4000)
def test_damaged_logs_are_read_or_refused(count, tmp_path):
    tally = Tally("damaged logs of events")

    @campaign(count)
    @given(damaged_logs(tmp_path), st.sampled_from([None, 2, 3]))
    def check(case, first):
        name, file, content = case
        (tmp_path / name / file).write_bytes(content)
        task = {} if name == "official" else {"task": "next", "first_event": first}
        parts, sentence = attempt(Source(str(tmp_path / name), **task).load, 0)
        tally["right" if sentence is None else "refused"] += 1
        if sentence is not None:
            assert str(tmp_path / name) in sentence, sentence
        else:
            assert parts.train.num_rows > 0

    check()
    tally.check()


@st.composite
def logs(draw):
    """Events whose words hold nothing that a format gives a meaning."""
    words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=3)
    return draw(st.lists(st.tuples(words, words, st.integers(0, 2**31 - 1)), min_size=1, max_size=9))


@pytest.mark.parametrize("name", ["inter", "lines", "reviews", "newer_reviews"])
@amounts(quick=10, slow=1000)
def test_whole_logs_have_their_events(count, name, tmp_path):
    @campaign(count)
    @given(logs())
    def check(events):
        path = FORMATS[name](tmp_path, events)
        found, sentence = attempt(read_events, path)
        assert sentence is None, sentence
        users, items = (found.table[column].to_pylist() for column in (found.user, found.item))
        assert list(zip(users, items, strict=True)) == [(user, item) for user, item, _ in events]
        if found.time is not None:
            times = found.table[found.time]
            seconds = (
                times.cast("timestamp[s]").cast("int64") if str(times.type).startswith("timestamp") else times
            )
            assert seconds.to_pylist() == [time for _, _, time in events]

    check()
