"""A file that is cut short while it is read is refused; one that is mapped into memory would end the process."""

import pyarrow as pa
import pytest
from faults import Forked
from prepared_clicks import small_pieces, write_clicks

from dien_fast.data import prepare
from dien_fast.data.fitting import _load_words, _save_words
from dien_fast.data.prepared.manifest import Manifest
from dien_fast.data.prepared.shards import read_blocks
from dien_fast.errors import DataError

LEFT = 4096  # the first page of a file: those behind it would be missing from a map


@pytest.fixture
def data(tmp_path, monkeypatch):
    small_pieces(monkeypatch, range_rows=10_000)
    _, schema, pattern = write_clicks(tmp_path / "clicks", rows=2000)
    prepare(pattern, schema, tmp_path / "prepared")
    return tmp_path / "prepared"


def cut(path):
    assert path.stat().st_size > 2 * LEFT
    with path.open("rb+") as file:
        file.truncate(LEFT)


def read_a_shard_that_is_cut(directory):
    shard = max(Manifest.load(directory).shards, key=lambda shard: shard.size)
    blocks = read_blocks(directory / shard.file, shard, list(range(len(shard.blocks))))
    next(blocks)
    cut(directory / shard.file)
    with pytest.raises(DataError, match=r"the shard is damaged: the checksum of block \d+ is not the manifest's"):
        list(blocks)
    return 0


def test_a_shard_that_is_cut_while_it_is_read(data):
    reading = Forked(read_a_shard_that_is_cut, data)
    assert reading.wait() == 0, reading.printed()


def keep_words_of_a_file_that_is_cut(path):
    words = pa.array([f"word {number}" for number in range(5000)])
    _save_words(words, path)
    loaded = _load_words(path)
    cut(path)
    assert loaded.to_pylist() == words.to_pylist()
    return 0


def test_words_whose_file_is_cut(tmp_path):
    keeping = Forked(keep_words_of_a_file_that_is_cut, tmp_path / "words.arrow")
    assert keeping.wait() == 0, keeping.printed()
