"""Prepared data give the batches of the table that they were made from, bit for bit."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from clicks import make_schema, timed_schema, timed_table
from full_disk import files_of_at_most
from prepared_clicks import small_pieces, write_clicks
from same_batches import assert_same_batches, assert_same_epoch

from dien_fast.data import (
    ArrowEncoder,
    EpochLoader,
    Group,
    NegativeSampler,
    Pair,
    PreparedData,
    Schema,
    fit_encoders,
    prepare,
    split_table,
)
from dien_fast.data import ClickDataset as TableDataset
from dien_fast.data.prepared import shards
from dien_fast.errors import DataError

PARTS = ("train", "valid", "test")


@pytest.fixture
def _small(monkeypatch):
    small_pieces(monkeypatch)


def in_memory(table, schema, seed=0):
    """The three parts of a table, split by user in time, as data sets."""
    parts = split_table(table, "user", user="user", time="time")
    encoders = fit_encoders(parts[0], schema)
    negatives = None
    if schema.negatives in ("uniform", "popularity"):
        negatives = NegativeSampler.fit(parts[0], schema, encoders, seed=seed)
    return encoders, [TableDataset(part, schema, encoders, negatives=negatives) for part in parts]


SETTINGS = [
    {},
    {"negatives": "popularity", "exclude_clicked": True, "min_count": 70, "max_length": 3},
    {"negatives": "none", "keep": "oldest", "max_length": 2, "share_vocabulary": False},
]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", SETTINGS, ids=["defaults", "popularity", "oldest"])
def test_batches_are_those_of_the_table(settings, tmp_path):
    table, schema, pattern = write_clicks(tmp_path / "clicks", **settings)
    prepared = prepare(pattern, schema, tmp_path / "prepared")
    encoders, expected = in_memory(table, schema, seed=3)
    assert prepared.encoders.fingerprint() == encoders.fingerprint()
    assert len(list((tmp_path / "prepared").glob("train-*.arrow"))) == 3
    negatives = prepared.negatives(seed=3)
    for part, dataset in zip(PARTS, expected, strict=True):
        found = prepared.dataset(part, negatives=negatives)
        assert len(found) == len(dataset) == prepared.rows[part]
        assert_same_batches(found, dataset)
        assert found.unknown == dataset.unknown
        assert np.array_equal(found.labels, dataset.labels)
        loaders = [EpochLoader(data, 48, shuffle=part == "train", seed=5) for data in (found, dataset)]
        assert_same_epoch(*loaders, epoch=2)
    assert "items.session" in expected[0].batch(np.array([0]))


@pytest.mark.usefixtures("_small")
def test_text_and_lists_and_folders_give_the_same(tmp_path):
    table, schema, pattern = write_clicks(tmp_path / "lists")
    texts = table
    for name in ("hist_item", "hist_category", "hist_time"):
        rows = ["|".join(map(str, row or [])) for row in table[name].to_pylist()]
        texts = texts.set_column(texts.column_names.index(name), name, pa.array(rows))
    pa.csv.write_csv(texts, tmp_path / "clicks.csv")
    for label in (0, 1):
        for user in range(5):
            chosen = (table["user"].to_numpy() == user) & (table["label"].to_numpy() == label)
            folder = tmp_path / f"folders/user={user}/label={label}"
            folder.mkdir(parents=True)
            pa.parquet.write_table(table.filter(pa.array(chosen)).drop(["user", "label"]), folder / "a.parquet")
    (tmp_path / "folders/user=0/label=0/.hidden.parquet").write_bytes(b"half")
    made = {
        name: prepare(source, schema, tmp_path / f"prepared-{name}")
        for name, source in {
            "lists": pattern,
            "csv": tmp_path / "clicks.csv",
            "folders": tmp_path / "folders",
        }.items()
    }
    assert_same_batches(made["lists"].dataset("train"), made["csv"].dataset("train"))
    rows = {name: data.rows for name, data in made.items()}
    assert rows["folders"] == rows["lists"]
    # The files of folders come in another order; within a user they are in order of time, by label.
    clicks = {name: np.sort(data.dataset("train").column("item")) for name, data in made.items()}
    assert np.array_equal(clicks["folders"], clicks["lists"])


@pytest.mark.usefixtures("_small")
def test_validation_and_test_files(tmp_path):
    table, schema, pattern = write_clicks(tmp_path / "clicks")
    pa.parquet.write_table(timed_table(60, seed=1), tmp_path / "valid.parquet")
    pa.parquet.write_table(timed_table(80, seed=2), tmp_path / "test.parquet")
    files = {"valid": tmp_path / "valid.parquet", "test": tmp_path / "test.parquet"}
    prepared = prepare(pattern, schema, tmp_path / "prepared", **files)
    assert prepared.rows == {"train": 400, "valid": 60, "test": 80}
    encoders = fit_encoders(table, schema)
    assert prepared.encoders.fingerprint() == encoders.fingerprint()
    assert_same_batches(prepared.dataset("test"), TableDataset(timed_table(80, seed=2), schema, encoders))
    assert prepared.split.startswith("split: none, since validation and test rows are files")


def test_splits_by_chance(tmp_path):
    _, schema, pattern = write_clicks(tmp_path / "clicks", rows=4000)
    rows = prepare(pattern, schema, tmp_path / "random", split="random", seed=1).rows
    assert 3000 < rows["train"] < 3400
    assert 300 < rows["valid"] < 500
    assert 300 < rows["test"] < 500
    again = prepare(pattern, schema, tmp_path / "again", split="random", seed=1)
    other = prepare(pattern, schema, tmp_path / "other", split="random", seed=2)
    assert again.rows == rows != other.rows


@pytest.mark.usefixtures("_small")
def test_negatives_of_columns(tmp_path):
    table = timed_table(400)
    table = table.append_column("neg_hist_item", table["hist_item"])
    table = table.append_column("neg_hist_category", table["hist_category"])
    pa.parquet.write_table(table, tmp_path / "clicks.parquet")
    schema = timed_schema(negatives="columns")
    prepared = prepare(tmp_path / "clicks.parquet", schema, tmp_path / "prepared")
    encoders, expected = in_memory(table, schema)
    assert prepared.encoders.fingerprint() == encoders.fingerprint()
    assert_same_batches(prepared.dataset("train"), expected[0])
    with pytest.raises(DataError, match="negatives = 'columns' was fixed when the data were prepared"):
        prepared.schema_with({"negatives": "uniform"})


@pytest.mark.usefixtures("_small")
def test_large_vocabularies_are_arrow_files(tmp_path, monkeypatch):
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    plain = prepare(pattern, schema, tmp_path / "plain")
    monkeypatch.setattr("dien_fast.data.fitting._JSON_WORDS", 4)
    large = prepare(pattern, schema, tmp_path / "large")
    assert (tmp_path / "large/encoders/words-0.arrow").exists()
    assert not list((tmp_path / "plain/encoders").glob("*.arrow"))
    item, history = large.encoders.category("item"), large.encoders.sequence("neg_hist_item")
    assert item.vocabulary_ is history.vocabulary_
    assert plain.encoders.fingerprint() == large.encoders.fingerprint()
    monkeypatch.setattr("dien_fast.data.fitting._JSON_WORDS", 1 << 20)
    assert plain.encoders.fingerprint() == large.encoders.fingerprint()


@pytest.mark.usefixtures("_small")
def test_the_encoder_of_batches_gives_the_ids_of_prepare(tmp_path):
    table, schema, pattern = write_clicks(tmp_path / "clicks")
    prepared = prepare(pattern, schema, tmp_path / "prepared", valid=tmp_path / "clicks", test=tmp_path / "clicks")
    encoder = ArrowEncoder(schema, prepared.encoders)
    batches = list(encoder.map(table.to_batches(max_chunksize=70)))
    assert all(batch.schema == encoder.output_schema for batch in batches)
    encoded, dataset = pa.Table.from_batches(batches), prepared.dataset("train")
    for name in ("label", "age", "item", "category", "__user__"):
        assert np.array_equal(encoded[name].to_numpy(), dataset.column(name)), name
    for name in ("tags", "hist_item", "hist_category", "items.session"):
        values = encoded[name].combine_chunks().flatten().to_numpy()
        assert np.array_equal(values, dataset.events(name)[0]), name
    unlabelled = ArrowEncoder(schema, prepared.encoders, require_label=False)
    assert "label" not in unlabelled(table.drop(["label", "user", "time"])).column_names


def snapshot(directory):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.glob("*.arrow")}


@pytest.mark.usefixtures("_small")
def test_an_interruption_loses_one_range(tmp_path, monkeypatch):
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    whole = prepare(pattern, schema, tmp_path / "whole")
    finish, calls = shards.ShardWriter._finish, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 5:
            raise KeyboardInterrupt
        finish(self)

    monkeypatch.setattr(shards.ShardWriter, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(pattern, schema, tmp_path / "cut")
    with pytest.raises(DataError, match="holds no prepared data: its preparation was interrupted"):
        PreparedData(tmp_path / "cut")
    first = snapshot(tmp_path / "cut")
    assert 0 < len(first) < len(snapshot(tmp_path / "whole"))
    assert not list((tmp_path / "cut").glob(".*unfinished*"))
    again = prepare(pattern, schema, tmp_path / "cut")
    after = snapshot(tmp_path / "cut")
    kept = [name for name in first if name.endswith("000000.arrow")]
    assert kept
    assert all(first[name] == after[name] for name in kept)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in snapshot(tmp_path / "whole").items()
    }
    assert again.rows == whole.rows
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "cut")]
    assert manifests[0] == manifests[1]
    assert not (tmp_path / "cut/.progress").exists()


@pytest.mark.usefixtures("_small")
def test_other_files_do_not_go_on_with_an_interrupted_preparation(tmp_path, monkeypatch):
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    with monkeypatch.context() as broken:
        broken.setattr(shards.ShardWriter, "_finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(pattern, schema, tmp_path / "out")
    with pytest.raises(
        DataError, match="preparation of other files or settings that was interrupted; --overwrite"
    ):
        prepare(pattern, schema, tmp_path / "out", split="global")
    assert prepare(pattern, schema, tmp_path / "out", split="global", overwrite=True).rows["train"] == 320
    with pytest.raises(DataError, match="out holds prepared data already; --overwrite replaces them"):
        prepare(pattern, schema, tmp_path / "out")


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    with pytest.raises(DataError, match="clicks is not empty and holds no prepared data"):
        prepare(pattern, schema, tmp_path / "clicks")
    assert len(list((tmp_path / "clicks").glob("*.parquet"))) == 3


@pytest.mark.usefixtures("_small")
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    with files_of_at_most(9000), pytest.raises(OSError, match="File too large") as caught:
        prepare(pattern, schema, tmp_path / "out", split="random")
    assert str(caught.value.filename).endswith(".arrow")
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").glob(".*unfinished*"))
    assert sum(prepare(pattern, schema, tmp_path / "out", split="random").rows.values()) == 400


def damaged(tmp_path, change):
    """Prepare, change the directory, and return what reading all rows of it raises."""
    _, schema, pattern = write_clicks(tmp_path / "clicks")
    prepare(pattern, schema, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(DataError) as caught:
        read_all(tmp_path / "out")
    return str(caught.value)


def read_all(directory):
    data = PreparedData(directory)
    for part in PARTS:
        list(EpochLoader(data.dataset(part, negatives=data.negatives()), 100))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(directory, **entries):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


SHARD = "train-0-000001.arrow"


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: flip_a_byte(out / SHARD), rf"{SHARD}: the shard is damaged: the checksum of block \d"),
        (
            lambda out: os.truncate(out / SHARD, 900),
            rf"{SHARD}: the shard is damaged: it has 900 bytes, the manifest",
        ),
        (lambda out: (out / SHARD).unlink(), rf"{SHARD}: the shard cannot be read: No such file"),
        (
            lambda out: flip_a_byte(out / "encoders/item.json"),
            r"encoders/item\.json: the file is damaged: its checksum",
        ),
        (
            lambda out: flip_a_byte(out / "negatives-0.arrow"),
            r"negatives-0\.arrow: the file is damaged: its checksum",
        ),
        (lambda out: edit_manifest(out, version=7), r"manifest\.json: the data were prepared in version 7 .*anew"),
        (lambda out: edit_manifest(out, shards=3), r"manifest\.json: the manifest is damaged"),
        (lambda out: edit_manifest(out, format="x"), r"manifest\.json: not the manifest of prepared data"),
        (
            lambda out: (out / "manifest.json").write_text("{"),
            r"manifest\.json: the manifest is damaged: it is not JSON",
        ),
        (lambda out: (out / "manifest.json").unlink(), r"out holds no prepared data: it has no manifest\.json"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    assert re.search(message, damaged(tmp_path, change))


@pytest.mark.usefixtures("_small")
def test_rows_that_do_not_fit_the_schema(tmp_path):
    table, schema, _ = write_clicks(tmp_path / "clicks")
    bad = table.set_column(table.column_names.index("label"), "label", pa.array([0] * 170 + [3] + [1] * 229))
    pa.parquet.write_table(bad, tmp_path / "bad.parquet")
    message = r"bad\.parquet: column 'label': expected 0 or 1, got 3 in row 170"
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "bad.parquet", schema, tmp_path / "out")
    with pytest.raises(
        DataError, match=r"\(validation rows\): there are none among its 400 rows with --split global"
    ):
        prepare(tmp_path / "clicks", schema_without_user(schema, time="label"), tmp_path / "out")


def test_text_in_a_column_of_numbers_is_told_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("dien_fast.data.prepared.files._TEXT_BYTES", 2048)
    lines = ["label,item,age", *(f"{row % 2},{row},{row}" for row in range(1000))]
    lines[901] = "1,900,old"
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    message = (
        r"clicks\.csv \(rows counted from its row (\d+)\): column 'age': expected a number, got 'old' in row (\d+)"
    )
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path / "clicks.csv", Schema(numeric=["age"], categorical=["item"]), tmp_path / "out")
    assert sum(map(int, re.search(message, str(caught.value)).groups())) == 900


def schema_without_user(schema, **settings):
    return Schema.from_dict(schema.to_dict() | {"user": None} | settings)


@pytest.mark.usefixtures("_small")
def test_zeros_are_padding_or_an_item(tmp_path):
    """Whether 0 is an item is known after all rows were read: here the last candidate has it."""
    group = Group("items", [Pair("item", "hist_item")])
    schema = make_schema(numeric=[], categorical=["item"], sequences=["hist_item"], groups=[group])
    table = timed_table(400).select(["user", "time", "label", "item"])
    padded = table.append_column("hist_item", pa.array([[5, 0]] * 400))
    pa.parquet.write_table(padded, tmp_path / "padded.parquet", row_group_size=100)
    with pytest.raises(DataError, match=r"padded\.parquet: column 'hist_item': row 0 is padded with 0 behind its"):
        prepare(tmp_path / "padded.parquet", schema, tmp_path / "out")
    items = pa.array([*table["item"].to_pylist()[:-1], 0])
    pa.parquet.write_table(padded.set_column(3, "item", items), tmp_path / "item.parquet", row_group_size=100)
    assert prepare(tmp_path / "item.parquet", schema, tmp_path / "out", overwrite=True).rows["train"] == 320
