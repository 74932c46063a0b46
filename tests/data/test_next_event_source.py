"""The task "next": from a log of events, or the official code's files, to the rows of a run."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from dien_fast.data.sources import Source
from dien_fast.data.sources.official import TEST, TRAIN
from dien_fast.errors import DataError

EVENTS = """
min_count = 1
[events]
user = "who"
item = "what"
time = "when"
item_columns = ["brand"]
user_columns = ["country", "age"]
numeric = ["age"]
"""


def log(users=60, items=30, seed=0):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(users), rng.integers(2, 9, users))
    what = rng.integers(0, items, len(who))
    return pa.table(
        {
            "who": [f"{number:03}" for number in who],
            "what": [f"i{number}" for number in what],
            "when": rng.permutation(len(who)),
            "brand": [f"b{number % 5}" for number in what],
            "country": [f"c{number % 3}" for number in who],
            "age": who % 50 + 20,
            "noise": rng.random(len(who)),
        }
    )


@pytest.fixture
def shop(tmp_path):
    """Write a log and its schema; returns a function that makes a source of them."""

    def source(schema=EVENTS, table=None, **settings):
        pa.csv.write_csv(log() if table is None else table, tmp_path / "log.csv")
        (tmp_path / "log.toml").write_text(schema)
        return Source(str(tmp_path / "log.csv"), schema=str(tmp_path / "log.toml"), task="next", **settings)

    return source


def test_a_table_of_events_becomes_clicks_of_users_kept_apart(shop):
    parts = shop(first_event=2, sampled=2).load(seed=1)
    assert parts.split == (
        "split: users, all rows of a user in one part, since the next event of users is predicted whom training "
        "does not know, as in the official code"
    )
    users = [set(part["who"].to_pylist()) for part in (parts.train, parts.valid, parts.test)]
    assert [len(names) for names in users] == [48, 6, 6]
    assert len(set.union(*users)) == 60
    assert parts.train["label"].to_pylist()[:3] == [0, 0, 1]
    assert parts.schema.categorical == ["what", "brand", "country"]
    assert parts.schema.numeric == ["age"]
    assert (parts.schema.min_count, parts.schema.lists) == (1, "event")
    # The user's number keeps its zeros, as text does in a table of clicks.
    assert min(set.union(*users)) == "000"


def test_every_event_of_a_list_belongs_to_one_prediction(shop):
    train = shop(first_event=2, sampled=3).load().train.to_pandas()
    lists = train.groupby("event")
    assert (lists["label"].sum() == 1).all()
    assert (lists.size() == 4).all()
    assert (lists["who"].nunique() == 1).all()


def test_splits_in_time_are_possible_too(shop):
    parts = shop(first_event=2, split="global").load()
    assert parts.train["when"].to_numpy().max() <= parts.test["when"].to_numpy().min()
    parts = shop(first_event=2, split="user").load()
    both = (
        parts.train.to_pandas()
        .groupby("who")["when"]
        .max()
        .to_frame("last")
        .join(parts.test.to_pandas().groupby("who")["when"].min(), how="inner")
    )
    assert len(both) > 5
    assert (both["last"] < both["when"]).all()


def test_the_samples_depend_on_the_seed_alone(shop):
    assert shop().load(seed=3).train.equals(shop().load(seed=3).train)
    assert not shop().load(seed=3).train.equals(shop().load(seed=4).train)


def test_histories_in_random_order(shop):
    plain, shuffled = (shop(first_event=4, shuffle_histories=flag).load().train for flag in (False, True))
    moved = 0
    for before, after in zip(plain.to_pylist(), shuffled.to_pylist(), strict=True):
        pairs = list(zip(after["hist_what"], after["hist_brand"], strict=True))
        # Item and brand move together; the times, which tell sessions apart, stay.
        assert sorted(pairs) == sorted(zip(before["hist_what"], before["hist_brand"], strict=True))
        assert after["hist_when"] == before["hist_when"]
        assert after["what"] == before["what"]
        moved += after["hist_what"] != before["hist_what"]
    assert moved > plain.num_rows / 2


def test_histories_that_cannot_be_put_in_random_order(shop, tmp_path):
    with pytest.raises(DataError, match="would leave the rows of --valid and --test as they are"):
        Source("t.csv", schema="t.toml", valid="v.csv", shuffle_histories=True).load()
    with pytest.raises(DataError, match="would leave the test rows of"):
        Source(str(official(tmp_path)), shuffle_histories=True).load()
    pa.csv.write_csv(pa.table({"item": ["a"] * 9, "past": ["b|c"] * 9, "label": [0] * 9}), tmp_path / "t.csv")
    (tmp_path / "t.toml").write_text("""
        categorical = ["item"]
        sequences = ["past"]
        [[groups]]
        name = "items"
        pairs = [{ ad = "item", pos_hist = "past" }]
    """)
    with pytest.raises(DataError, match="column 'past': --shuffle-histories needs lists, not text"):
        Source(str(tmp_path / "t.csv"), schema=str(tmp_path / "t.toml"), shuffle_histories=True).load()


def test_who_is_left_out_is_told(shop):
    table = log()
    alone = pa.table({name: [table[name][0].as_py()] for name in table.column_names})
    alone = alone.set_column(0, "who", pa.array(["alone"]))
    parts = shop(table=pa.concat_tables([table, alone])).load()
    assert parts.notes == (
        "1 of 61 users have fewer than 2 events and are left out; their items can still be drawn",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_event": 1}, "first_event must be at least 2"),
        ({"sampled": 0}, "sampled must be at least 1, got 0"),
        ({"sampling": "luck"}, "sampling must be one of uniform, popularity, got 'luck'"),
        ({"valid": "v.csv"}, "--valid goes with a table of your own, not with --task next"),
        ({"schema": "min_count = 2"}, r"log\.toml: the schema of events lacks the setting 'events'"),
        ({"schema": EVENTS + "tiem = 'when'"}, r"\[events\] has no setting 'tiem'; did you mean 'time'"),
        ({"schema": EVENTS.replace('user = "who"', "")}, r"\[events\] lacks the setting 'user'"),
        ({"schema": EVENTS.replace('"who"', '"whom"')}, "no column 'whom'; the columns are who, what"),
        ({"schema": EVENTS.replace('["brand"]', '"brand"')}, "item_columns must be a list of column names"),
        ({"schema": EVENTS.replace('["brand"]', '["what"]')}, "names the column 'what' twice"),
        ({"schema": EVENTS.replace('numeric = ["age"]', 'numeric = ["brand"]')}, "not among user_columns"),
        ({"schema": EVENTS.replace('item = "what"', "item = 3")}, "item must be the name of a column, got 3"),
        ({"schema": 'label = "x"\n' + EVENTS}, "the schema of events has no setting 'label'"),
        ({"schema": 'negatives = "columns"\n' + EVENTS}, "reads them from rows of clicks, which events are not"),
        ({"schema": "events = 3"}, r"\[events\] must be a table of settings, got 3"),
        ({"schema": EVENTS.replace('"when"', '"brand"').replace('["brand"]', "[]")}, r"got text: 'b\d' in row 0"),
    ],
)
def test_faults_are_named(shop, change, message):
    with pytest.raises(DataError, match=message):
        shop(**change).load()


def test_a_value_that_is_missing_is_named_with_its_row(shop):
    table = log()
    table = table.set_column(1, "what", pa.array([None if row == 7 else "i" for row in range(table.num_rows)]))
    with pytest.raises(DataError, match="column 'what': an event needs a value, row 7 has none"):
        shop(table=table).load()


def test_settings_of_the_task_go_with_it_alone(shop, tmp_path):
    with pytest.raises(DataError, match="--sampled goes with --task next"):
        Source("synthetic", sampled=2).load()
    with pytest.raises(DataError, match="synthetic data are clicks, not events"):
        Source("synthetic", task="next").load()
    with pytest.raises(DataError, match="task must be one of label, next, got 'this'"):
        Source("synthetic", task="this").load()


def official(directory, users=40):
    """Write files as script/split_by_user.py does: a sampled item, then the true one, of each user."""
    rng = np.random.default_rng(0)

    def lines(names):
        for name in names:
            history = rng.integers(0, 20, rng.integers(1, 6))
            joined = [
                "\x02".join(f"{kind}{number % size}" for number in history)
                for kind, size in (("B", 20), ("Sports & Out ", 4))
            ]
            for label, item in enumerate(rng.integers(0, 20, 2)):
                yield "\t".join([str(label), name, f"B{item}", f"Sports & Out {item % 4}", *joined])

    names = [f"A{number}" for number in range(users)]
    for file, part in ((TRAIN, names[4:]), (TEST, names[:4])):
        (directory / file).write_text("".join(f"{line}\n" for line in lines(part)))
    return directory


def test_files_of_the_official_code(tmp_path):
    (official(tmp_path) / "mid_voc.pkl").write_bytes(pickle.dumps({"B1": 1}))
    parts = Source(str(tmp_path)).load()
    assert [part.num_rows for part in (parts.train, parts.valid, parts.test)] == [64, 8, 8]
    assert set(parts.test["uid"].to_pylist()) == {"A0", "A1", "A2", "A3"}
    assert parts.names[2] == str(tmp_path / TEST)
    assert not set(parts.train["uid"].to_pylist()) & set(parts.valid["uid"].to_pylist())
    assert parts.split.startswith("split: users, all rows of a user in one part, since the official code keeps")
    assert parts.notes == ("mid_voc.pkl: pickles, not opened; words are counted in the training rows",)
    row = parts.train.to_pylist()[0]
    assert row["label"] == 0
    assert row["hist_mid"].count("\x02") == row["hist_cat"].count("\x02")
    assert Source(str(tmp_path / TRAIN)).load().train.equals(parts.train)


def test_a_vocabulary_as_text_of_the_official_code(tmp_path):
    official(tmp_path)
    plain = Source(str(tmp_path)).load()
    (tmp_path / "mid_voc.txt").write_text("default_mid\t0\nB1\t1\nB2\t2\n")
    parts = Source(str(tmp_path)).load()
    assert parts.notes == ("mid_voc.txt: 3 words; all others of mid are unknown",)
    encoders = parts.learn(parts.schema)
    assert encoders["mid"].vocabulary_.known.to_pylist() == ["B1", "B2"]
    encoded, before = (
        [encoders[name].transform(table.train[name]) for name in ("mid", "hist_mid")] for table in (parts, plain)
    )
    assert encoded[0].tolist() == before[0].tolist()
    assert encoded[1].to_pylist() == before[1].to_pylist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a word a line, got an empty file"),
        (b"B1\n\nB2\n", "line 2: expected a word, got an empty line"),
        (b"\xff\xfe", "expected UTF-8 text"),
    ],
)
def test_damaged_vocabularies_of_the_official_code(tmp_path, content, message):
    (official(tmp_path) / "cat_voc.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"cat_voc\.txt.*{message}"):
        Source(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\tA1\tB1\tToys\tB2", "expected lines of label, user, item"),
        ("yes\tA1\tB1\tToys\tB2\tToys", "expected lines of label, user, item"),
        (
            "1\tA1\tB1\tToys\tB2\x02B3\tToys",
            "'hist_mid' and 'hist_cat' of group 'items' have 2 and 1 events in row 0",
        ),
    ],
)
def test_damaged_files_of_the_official_code(tmp_path, line, message):
    official(tmp_path)
    (tmp_path / TRAIN).write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        Source(str(tmp_path)).load()


def test_pickles_are_refused_and_missing_files_named(tmp_path):
    official(tmp_path)
    (tmp_path / "mid_voc.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match=r"mid_voc\.pkl is a pickle, which can run any program when opened"):
        Source(str(tmp_path / "mid_voc.pkl")).load()
    (tmp_path / TEST).unlink()
    with pytest.raises(DataError, match=f"{TEST}: cannot be read: "):
        Source(str(tmp_path)).load()
