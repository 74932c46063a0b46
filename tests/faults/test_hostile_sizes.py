"""Sizes that a file claims are compared with the file before memory is taken for them."""

import json
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from prepared_clicks import small_pieces, write_clicks
from shop import SCHEMA, failure

from dien_fast.data import EpochLoader, PreparedData, prepare
from dien_fast.errors import CheckpointError, DataError
from dien_fast.training.checkpoints import load_checkpoint
from dien_fast.training.runs import load

HUGE = 1 << 40


@pytest.fixture
def data(tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    _, schema, pattern = write_clicks(tmp_path / "clicks", rows=100)
    prepare(pattern, schema, tmp_path / "prepared")
    return tmp_path / "prepared"


def edit(path, change):
    content = json.loads(path.read_text())
    content.pop("checksum", None)  # which whoever changes the rest can compute, too
    change(content)
    path.write_text(json.dumps(content))


def block(content):
    return content["shards"][0]["blocks"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: block(content).__setitem__(0, 1 << 60),
        lambda content: block(content).__setitem__(0, -1),
        lambda content: block(content).__setitem__(0, 1 << 70),
        lambda content: block(content).__setitem__(0, block(content)[2]),
        lambda content: block(content).__setitem__(1, HUGE),
        lambda content: block(content).__setitem__(1, -8),
        lambda content: block(content).__setitem__(2, HUGE),
        lambda content: content["rows"].update(train=1 << 60),
        lambda content: content["rows"].update(train="many"),
        lambda content: content.update(rows=[1, 2, 3]),
        lambda content: content["shards"][0].update(part="other"),
        lambda content: content["unknown"].update(train={"item": [1]}),
        lambda content: content["unknown"].pop("test"),
    ],
)
def test_a_manifest_whose_numbers_cannot_be(data, change):
    edit(data / "manifest.json", change)
    with pytest.raises(DataError, match=r"manifest\.json: the manifest is damaged \("):
        PreparedData(data)


def rewrite(data, change):
    """Write the first shard of training rows anew, with a block changed, and its manifest to go with it."""
    path = data / "manifest.json"
    content = json.loads(path.read_text())
    shard = next(shard for shard in content["shards"] if shard["part"] == "train")
    with pa.ipc.open_file(data / shard["file"]) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    changed = change(batches[0])
    (data / shard["file"]).unlink()
    with (data / shard["file"]).open("wb") as file, pa.ipc.new_file(file, changed.schema) as writer:
        blocks = []
        for batch in [changed, *batches[1:]] if changed.schema == batches[0].schema else [changed]:
            file.flush()
            begin = file.tell()
            writer.write_batch(batch)
            file.flush()
            blocks.append([batch.num_rows, begin, file.tell() - begin])
    written = (data / shard["file"]).read_bytes()
    shard["blocks"] = [[*one, zlib.crc32(written[one[1] : one[1] + one[2]])] for one in blocks]
    shard["size"] = len(written)
    del shard["rest_crc32"], content["checksum"]
    content["rows"]["train"] = sum(
        one[0] for shard in content["shards"] if shard["part"] == "train" for one in shard["blocks"]
    )
    path.write_text(json.dumps(content))


def with_column(batch, name, column):
    return batch.set_column(batch.schema.get_field_index(name), name, column)


def offsets(batch, *values):
    """A history whose offsets are not what they should be; Arrow does not look when it makes or writes it."""
    column = batch.column("hist_item")
    given = np.resize(np.array(values, np.int32), batch.num_rows + 1)
    buffers = [None, pa.py_buffer(given.tobytes())]
    bad = pa.Array.from_buffers(column.type, batch.num_rows, buffers, children=[column.values])
    return with_column(batch, "hist_item", bad)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: offsets(batch, 0, 1 << 30), "the shard is damaged or cannot be read"),
        (lambda batch: offsets(batch, 5, 0), "the shard is damaged or cannot be read"),
        (
            lambda batch: with_column(batch, "item", pa.array(["a"] * batch.num_rows)),
            "column 'item' of block 0 holds string",
        ),
        (
            lambda batch: with_column(batch, "age", pa.nulls(batch.num_rows, pa.float32())),
            "column 'age' of block 0 holds float with 32 nulls",
        ),
        (
            lambda batch: with_column(batch, "item", pa.array([1 << 30] * batch.num_rows, pa.int32())),
            "feature 'item' has ids from",
        ),
        (
            lambda batch: with_column(batch, "item", pa.array([-1] * batch.num_rows, pa.int32())),
            "feature 'item' has ids from -1 to",
        ),
    ],
)
def test_a_shard_that_leads_out_of_itself(data, change, said):
    """Its checksum is right: whoever wrote the shard wrote the manifest as well."""
    rewrite(data, change)
    dataset = PreparedData(data).dataset("train")
    with pytest.raises(DataError, match=said):
        list(EpochLoader(dataset, 16))


@pytest.mark.parametrize("name", ["label", "age"])
def test_a_column_of_another_kind_is_told_when_it_is_read_alone(data, name):
    rewrite(data, lambda batch: with_column(batch, name, pa.array(["a"] * batch.num_rows)))
    with pytest.raises(DataError, match=f"column '{name}' of block 0 holds string"):
        PreparedData(data).dataset("train").column(name)


def words_file(path, length, claimed):
    """An Arrow file of words that claims more of them than it holds."""
    words = pa.array(np.arange(length, dtype=np.int64))
    with path.open("wb") as file, pa.ipc.new_file(file, pa.schema([("word", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch([words], names=["word"]))
    content = path.read_bytes()
    # The length stands in the head of the record batch, and once more as that of its only column.
    marked = content.replace(length.to_bytes(8, "little"), claimed.to_bytes(8, "little"))
    assert marked != content
    path.write_bytes(marked)


def test_a_vocabulary_that_claims_a_billion_words(data):
    length = 12345
    words_file(data / "encoders" / "words-0.arrow", length, HUGE)
    path = data / "encoders" / "item.json"

    def change(content):
        del content["word_by_id"]
        content.update(word_file="words-0.arrow", unknown=1)

    edit(path, change)
    edit(data / "manifest.json", lambda content: content.update(checksums={}))
    with pytest.raises(DataError, match=r"words-0\.arrow: the words of an encoder are missing or damaged"):
        PreparedData(data)


@pytest.mark.parametrize(
    "claim", [{"word_file": "words-0.arrow", "unknown": HUGE}, {"longest": HUGE}, {"longest": 0}]
)
def test_an_encoder_that_claims_too_much(data, claim):
    table = pa.table({"word": pa.array(range(9), pa.int64())})
    with (data / "encoders" / "words-0.arrow").open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    edit(data / "encoders" / "hist_item.json", lambda content: content.update(claim))
    edit(data / "manifest.json", lambda content: content.update(checksums={}))
    with pytest.raises(DataError, match=r"hist_item\.json: "):
        PreparedData(data)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"max_length = {HUGE}", f"max_length must be a whole number from 1 to 2,147,483,647, got {HUGE}"),
        (f"min_count = {HUGE}", "has 1 item that the encoders can tell apart"),
        (f"embedding_sizes = {{ item = {HUGE} }}", f"must be a whole number from 1 to 2,147,483,647, got {HUGE}"),
        (f"embedding_sizes = {{ item = {2**31 - 1} }}", "the model does not fit into memory"),
    ],
)
def test_a_schema_of_enormous_sizes(shop, tmp_path, capsys, line, said):
    schema = SCHEMA.replace("min_count = 2\n", "") if line.startswith("min_count") else SCHEMA
    (tmp_path / "huge.toml").write_text(f"{line}\n{schema}")
    arguments = ["--dataset", shop / "clicks.csv", "--schema", tmp_path / "huge.toml", "--epochs", "1", "--cpu"]
    arguments += ["--output", tmp_path / "run", "--quiet"]
    assert said in failure(capsys, "train", *arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("name", ["embedding_size", "mlp_hidden", "attention_hidden"])
def test_a_run_that_claims_a_model_of_another_size(run, name):
    """The checkpoint agrees with the configuration; its weights say that both are wrong."""
    value = 1 << 24 if name == "embedding_size" else [1 << 24, 8]
    edit(run / "config.json", lambda content: content.update({name: value}))
    content = load_checkpoint(run / "best.pt")
    content["identity"][name] = value
    torch.save(content, run / "best.pt")
    with pytest.raises(CheckpointError, match=rf"must have shape \([^)]*{1 << 24}"):
        load(run)


def test_a_checkpoint_whose_entries_claim_more_than_the_file_has(run):
    """A megabyte of zeros compresses to a thousandth; torch would take memory for all of them."""
    with zipfile.ZipFile(run / "best.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(run / "best.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content + (bytes(1 << 22) if "/data/" in name else b""))
    with pytest.raises(CheckpointError, match=r"its entries claim [\d,]+ bytes, and the file has"):
        load(run)


def test_a_weight_that_claims_more_numbers_than_its_entry_has(run):
    """The number of elements stands in the archive's index, beside the entry with the numbers."""
    content = load_checkpoint(run / "best.pt")
    name, weight = next((name, weight) for name, weight in content["model"].items() if weight.dim() == 2)
    content["model"][name] = torch.zeros(1, dtype=weight.dtype).expand(weight.shape).contiguous()
    torch.save(content, run / "best.pt")
    with zipfile.ZipFile(run / "best.pt") as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    size = weight.numel() * weight.element_size()
    short = next(entry for entry, text in entries.items() if "/data/" in entry and text == bytes(size))
    with zipfile.ZipFile(run / "best.pt", "w", zipfile.ZIP_STORED) as archive:
        for entry, text in entries.items():
            archive.writestr(entry, text[:4] if entry == short else text)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load(run)
