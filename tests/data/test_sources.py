"""Where rows come from, how they are divided, and that scores are written whole."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from dien_fast.data import sources, synthetic_clicks
from dien_fast.data.sources import Source, cache_directory
from dien_fast.data.sources import movielens as movielens_source
from dien_fast.errors import CheckpointError, DataError

SCHEMA = """
label = "clicked"
categorical = ["item"]
sequences = ["past"]
min_count = 1
[[groups]]
name = "items"
pairs = [{ ad = "item", pos_hist = "past" }]
"""


def shop_table(rows=100, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "who": [f"u{number % 10}" for number in range(rows)],
            "when": pa.array(np.arange(rows)),
            "clicked": pa.array(rng.integers(0, 2, rows)),
            "item": [f"i{number}" for number in rng.integers(0, 9, rows)],
            "past": [
                "|".join(f"i{number}" for number in rng.integers(0, 9, count))
                for count in rng.integers(0, 4, rows)
            ],
        }
    )


@pytest.fixture
def shop(tmp_path):
    """Write a table and a schema; returns a function that makes a source of them."""
    pa.csv.write_csv(shop_table(), tmp_path / "clicks.csv")
    pa.parquet.write_table(shop_table(20, seed=1), tmp_path / "later.parquet")

    def source(columns="", **settings):
        (tmp_path / "clicks.toml").write_text(columns + SCHEMA)
        return Source(str(tmp_path / "clicks.csv"), schema=str(tmp_path / "clicks.toml"), **settings)

    return source


def sizes(tables):
    return tables.train.num_rows, tables.valid.num_rows, tables.test.num_rows


def test_by_user_where_user_and_time_are_known(shop):
    tables = shop('user = "who"\ntime = "when"\n').load()
    assert sizes(tables) == (80, 10, 10)
    train, test = tables.train.to_pandas(), tables.test.to_pandas()
    last_seen = train.groupby("who")["when"].max()
    assert (test.set_index("who")["when"] > last_seen).all()


def test_by_time_where_only_that_is_known(shop):
    tables = shop('time = "when"\n').load()
    assert sizes(tables) == (80, 10, 10)
    assert tables.test["when"].to_pylist() == list(range(90, 100))


def test_by_chance_otherwise_the_same_for_the_same_seed(shop):
    tables = shop().load(seed=3)
    assert sizes(tables) == (80, 10, 10)
    whole = pa.concat_tables([tables.train, tables.valid, tables.test])
    assert sorted(map(int, whole["when"].to_pylist())) == list(range(100))
    kept = [int(when) for when in tables.test["when"].to_pylist()]
    assert kept == sorted(kept)
    assert tables.test.equals(shop().load(seed=3).test)
    assert not tables.test.equals(shop().load(seed=4).test)


def test_files_of_ones_own_for_validation_and_test(shop, tmp_path):
    later = str(tmp_path / "later.parquet")
    tables = shop(valid=later, test=later).load()
    assert sizes(tables) == (100, 20, 20)
    assert tables.names == (str(tmp_path / "clicks.csv"), later, later)
    assert sizes(shop(valid=later).load()) == (90, 20, 10)
    assert sizes(shop('time = "when"\n', test=later).load()) == (90, 10, 20)
    assert sizes(shop('time = "when"\n', valid=later, test=later).load()) == (100, 20, 20)


@pytest.mark.parametrize(
    ("columns", "settings", "line"),
    [
        (
            'user = "who"\ntime = "when"\n',
            {},
            "split: user, each user's own rows in the order of 'when', since the schema names user and time",
        ),
        (
            'time = "when"\n',
            {},
            "split: global, all rows in the order of 'when', since the schema names a time but no user",
        ),
        (
            'user = "who"\n',
            {},
            "split: random, by chance, since the schema names no time column: "
            "training may know what comes after the test rows",
        ),
        ('user = "who"\ntime = "when"\n', {"split": "random"}, "split: random, by chance, as asked for"),
    ],
)
def test_the_split_that_was_used_is_told_with_its_reason(shop, columns, settings, line):
    assert shop(columns, **settings).load().split == line


def test_files_of_ones_own_are_told_as_the_split(shop, tmp_path):
    later = str(tmp_path / "later.parquet")
    line = f"split: none, since validation and test rows are files ({later}, {later})"
    assert shop(valid=later, test=later).load().split == line


def test_the_schema_may_be_overridden(shop):
    schema = shop(overrides={"min_count": 3, "negatives": "popularity"}).load().schema
    assert schema.min_count == 3
    assert schema.negatives == "popularity"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "user"}, "--split user needs a user column"),
        ({"split": "global"}, "--split global needs a time column"),
        ({"split": "weekly"}, "split must be one of user, users, global, random, got 'weekly'"),
        ({"valid": "nothing.csv"}, "nothing.csv: no such file"),
        ({"overrides": {"min_count": 0}}, "min_count must be a whole number"),
    ],
)
def test_bad_settings_are_named(shop, settings, message):
    with pytest.raises(DataError, match=message):
        shop(**settings).load()


FAULTS = {
    "price": ("9,5", "column 'price': expected a number, got '9,5' in row 95"),
    "clicked": ("2", "column 'clicked': expected 0 or 1, got 2 in row 95"),
    "tags": ("a|__PAD__", "column 'tags': row 95 holds the word '__PAD__'"),
    "past": ("i1|0", "column 'past': row 95 is padded with 0 behind its events"),
    "brands": ("b|b|b|b|b", "columns 'past' and 'brands' of group 'items' have 1 and 5 events in row 95"),
    "negatives": ("i1|i2", "columns 'past' and 'negatives' of group 'items' have 1 and 2 events in row 95"),
}


@pytest.mark.parametrize("column", FAULTS)
@pytest.mark.parametrize("split", ["user", "global", "random"])
def test_rows_are_numbered_as_in_the_file(tmp_path, column, split):
    rows = 100
    table = {
        "who": [f"u{number % 10}" for number in range(rows)],
        "when": list(range(rows)),
        "price": ["1.5"] * rows,
        "clicked": ["0", "1"] * (rows // 2),
        "item": ["i1", "i2"] * (rows // 2),
        "brand": ["b"] * rows,
        "tags": ["a|c"] * rows,
        "past": ["i1"] * rows,
        "brands": ["b"] * rows,
        "negatives": ["i2"] * rows,
    }
    value, message = FAULTS[column]
    table[column][95] = value
    pa.csv.write_csv(pa.table(table), tmp_path / "t.csv")
    (tmp_path / "t.toml").write_text("""
        label = "clicked"
        user = "who"
        time = "when"
        numeric = ["price"]
        categorical = ["item", "brand"]
        sequences = ["tags", "past", "brands"]
        negatives = "columns"
        [[groups]]
        name = "items"
        pairs = [{ ad = "item", pos_hist = "past", neg_hist = "negatives" }, { ad = "brand", pos_hist = "brands" }]
    """)
    source = Source(str(tmp_path / "t.csv"), schema=str(tmp_path / "t.toml"), split=split)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source.load()
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}: ")


def test_too_few_rows_to_divide(shop, tmp_path):
    pa.csv.write_csv(shop_table(3), tmp_path / "clicks.csv")
    with pytest.raises(DataError, match="there are none; the table has 3 rows, too few to divide"):
        shop().load()


def table_of(tmp_path, users, times):
    """Write a table with these users and times, and return where."""
    rows = len(users)
    table = {
        "who": users,
        "when": times,
        "clicked": [0, 1] * (rows // 2),
        "item": ["i1"] * rows,
        "past": [""] * rows,
    }
    pa.csv.write_csv(pa.table(table), tmp_path / "clicks.csv")


@pytest.mark.parametrize("rows_of_a_user", [1, 2, 4])
def test_users_with_few_rows_are_no_reason_to_give_up(shop, tmp_path, rows_of_a_user):
    table_of(tmp_path, np.arange(200) // rows_of_a_user, np.arange(200))
    columns = 'user = "who"\ntime = "when"\n'
    part = "test" if rows_of_a_user == 4 else "validation"
    times = "1 different time" if rows_of_a_user == 1 else f"{rows_of_a_user} different times"
    with pytest.raises(
        DataError,
        match=rf"\({part} rows\): there are none; --split user puts the last tenths of each user.s rows aside, "
        f"but no user has rows at more than {times}; --split global works for this table$",
    ):
        shop(columns).load()
    assert sizes(shop(columns, split="global").load()) == (160, 20, 20)


def test_rows_of_one_time_are_no_reason_to_give_up(shop, tmp_path):
    table_of(tmp_path, np.arange(200) % 4, [7] * 200)
    columns = 'user = "who"\ntime = "when"\n'
    with pytest.raises(DataError, match=r"at more than 1 different time; --split random works for this table$"):
        shop(columns).load()
    with pytest.raises(DataError, match=r"too many have the same time; --split random works for this table$"):
        shop(columns, split="global").load()
    assert sizes(shop(columns, split="random").load()) == (160, 20, 20)


def test_an_empty_file_of_test_rows_is_named(shop, tmp_path):
    (tmp_path / "none.csv").write_text("clicked,item,past\n")
    with pytest.raises(DataError, match=r"none\.csv: there are none; the table has no rows"):
        shop(test=str(tmp_path / "none.csv")).load()


def test_unknown_places_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or directory; --dataset also takes ml-100k and synthetic"):
        Source(str(tmp_path / "nothing.csv")).load()
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="needs a schema file"):
        Source(str(tmp_path / "t.csv")).load()
    with pytest.raises(DataError, match="expected MovieLens files"):
        Source(str(tmp_path)).load()
    with pytest.raises(DataError, match="--schema goes with a table of your own"):
        Source("synthetic", schema="s.toml").load()
    with pytest.raises(DataError, match="rows must be at least 100"):
        Source("synthetic", rows=3).load()


def movielens(directory):
    """A directory in the layout of ml-latest with 10 users of 20 ratings each."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame(
        {
            "userId": np.repeat(np.arange(1, 11), 20),
            "movieId": rng.integers(1, 13, 200),
            "rating": rng.integers(1, 6, 200).astype(float),
            "timestamp": np.arange(200) * 60,
        }
    )
    ratings.to_csv(directory / "ratings.csv", index=False)
    movies = pd.DataFrame({"movieId": range(1, 13), "title": "film", "genres": "Drama|War"})
    movies.to_csv(directory / "movies.csv", index=False)
    return directory


def test_a_movielens_directory_is_recognised_and_ml_100k_is_fetched_once(tmp_path, monkeypatch):
    directory = movielens(tmp_path / "ml-latest-small")
    assert Source(str(directory)).is_movielens
    tables = Source(str(directory), overrides={"max_length": 5}).load()
    assert sizes(tables) == (160, 20, 20)
    assert max(map(len, tables.test["histHighRatedMovieIds"].to_pylist())) == 5
    fetched = []
    monkeypatch.setenv("DIEN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(movielens_source, "fetch_ml_100k", lambda place: fetched.append(place) or directory)
    assert sizes(Source("ml-100k", split="global").load()) == (160, 20, 20)
    assert fetched == [tmp_path / "cache" / "ml-100k"]
    with pytest.raises(DataError, match="--valid goes with a table of your own"):
        Source("ml-100k", valid="v.csv").load()


def test_a_new_kind_of_source_is_a_class_and_a_line(tmp_path, monkeypatch):
    class Reversed(sources.SourceKind):
        takes = ("valid",)

        def matches(self, settings):
            return settings.dataset.endswith(".reversed")

        def read(self, settings, seed):
            clicks = synthetic_clicks(rows=settings.rows, seed=seed)
            return sources.SourceRows(clicks.table.take(np.arange(settings.rows)[::-1]), clicks.schema)

    monkeypatch.setattr(sources, "KINDS", (Reversed(), *sources.KINDS))
    source = Source("clicks.reversed", rows=200, split="global")
    assert sum(sizes(source.load())) == 200
    assert not source.is_movielens
    with pytest.raises(DataError, match=r"--test goes with a table of your own, not with --dataset clicks\."):
        Source("clicks.reversed", test="t.csv").load()


def test_a_folder_of_the_name_of_ml_100k_may_be_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ml-100k").mkdir()
    pa.parquet.write_table(shop_table(), tmp_path / "ml-100k" / "a.parquet")
    (tmp_path / "s.toml").write_text(SCHEMA)
    assert sizes(Source("ml-100k", schema="s.toml").load()) == (80, 10, 10)
    (tmp_path / "ml-100k" / "a.parquet").unlink()
    (tmp_path / "ml-100k").rmdir()
    with pytest.raises(DataError, match="--schema goes with a table of your own, not with --dataset ml-100k"):
        Source("ml-100k", schema="s.toml").load()


def test_the_cache_is_in_the_home_directory_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("DIEN_FAST_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "dien-fast"


def test_a_stored_source_is_read_back_or_refused(tmp_path):
    source = Source("synthetic", rows=300)
    assert Source.from_dict(vars(source), tmp_path) == source
    with pytest.raises(CheckpointError, match=r"config\.json does not say where the run's rows came from"):
        Source.from_dict({"dataset": "synthetic"}, tmp_path)
