"""The order of rows that do not fit into memory: each once, few blocks at a time, by (seed, epoch) alone."""

import numpy as np
import pytest
from prepared_clicks import small_pieces, write_clicks
from same_batches import assert_same_batch

from dien_fast.data import BlockBatches, EpochBatches, EpochLoader, prepare
from dien_fast.data import ClickDataset as TableDataset

BLOCKS = np.array([16, 16, 5, 16, 16, 1, 16, 16, 16, 9])


def order(epoch=0, first_batch=0, **settings):
    batches = BlockBatches(BLOCKS, **({"window": 3, "batch_size": 10, "shuffle": True, "seed": 4} | settings))
    batches.set_epoch(epoch, first_batch)
    return list(batches), batches


def test_every_row_once_in_another_order_each_epoch():
    first, again, other = order()[0], order()[0], order(epoch=1)[0]
    rows = np.concatenate(first)
    assert np.array_equal(np.sort(rows), np.arange(BLOCKS.sum()))
    assert np.array_equal(rows, np.concatenate(again))
    assert not np.array_equal(rows, np.concatenate(other))
    assert not np.array_equal(rows, np.concatenate(order(seed=5)[0]))
    assert [len(batch) for batch in first] == [10] * 12 + [7]


def test_few_blocks_are_needed_at_a_time():
    ends = np.cumsum(BLOCKS)
    for batch in order()[0]:
        assert len(np.unique(np.searchsorted(ends, batch, side="right"))) <= 6
    spread = [len(np.unique(np.searchsorted(ends, batch, side="right"))) for batch in order()[0]]
    assert np.mean(spread) > 2


def test_the_window_of_a_block_is_the_one_it_is_shuffled_in():
    batches = order(epoch=3)[1]
    window = batches.blocks_with(4, epoch=3)
    assert 4 in window
    assert len(window) <= 3
    assert (np.diff(window) > 0).all()
    assert batches.blocks_with(int(window[0]), epoch=3).tolist() == window.tolist()
    assert BlockBatches(BLOCKS, 3, 10).blocks_with(4, 0).tolist() == [3, 4, 5]
    assert BlockBatches(BLOCKS, 3, 10).blocks_with(9, 0).tolist() == [9]


@pytest.mark.parametrize("first", [0, 1, 7, 12, 13])
def test_an_epoch_goes_on_from_a_batch(first):
    whole, rest = order(epoch=2)[0], order(epoch=2, first_batch=first)[0]
    assert len(rest) == len(whole) - first
    assert all(np.array_equal(*pair) for pair in zip(whole[first:], rest, strict=True))


def test_a_last_batch_of_one_row_joins_the_one_before():
    batches = order(batch_size=6, world_size=1)[0]
    assert BLOCKS.sum() % 6 == 1
    assert [len(batch) for batch in batches] == [6] * 20 + [7]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_their_own_blocks_and_equal_numbers_of_batches(ranks):
    found = [order(epoch=1, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({len(batches) for batches, _ in found}) == 1
    assert all(len(batches) == len(batches_object) for batches, batches_object in found)
    ends = np.cumsum(BLOCKS)
    blocks = [set(np.searchsorted(ends, np.concatenate(batches), side="right")) for batches, _ in found]
    assert set.union(*blocks) == set(range(10))
    assert sum(map(len, blocks)) == 10
    rows = np.concatenate([np.concatenate(batches) for batches, _ in found])
    assert set(rows) == set(range(BLOCKS.sum()))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_without_shuffling_each_rank_has_a_piece(ranks):
    found = [order(shuffle=False, rank=rank, world_size=ranks)[0] for rank in range(ranks)]
    rows = np.concatenate([batch for batches in found for batch in batches])
    assert rows.tolist() == list(range(BLOCKS.sum()))


@pytest.mark.parametrize("settings", [{}, {"rank": 1, "world_size": 3}])
def test_what_fits_into_memory_has_the_order_of_a_table(settings):
    expected = EpochBatches(int(BLOCKS.sum()), 10, shuffle=True, seed=4, **settings)
    expected.set_epoch(6)
    found = order(epoch=6, window=10, **settings)[0]
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        table, schema, pattern = write_clicks(directory / "clicks", rows=1000)
        return prepare(pattern, schema, directory / "prepared", split="random"), table, schema


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_windows_hold_the_rows_they_name(prepared, workers):
    data, table, schema = prepared
    negatives = data.negatives(seed=1)
    windowed = data.dataset("train", negatives=negatives, window_bytes=20_000)
    assert 1 < windowed._window < len(windowed._block_rows) / 3
    expected = TableDataset(table.take(windowed.source_rows), schema, data.encoders, negatives=negatives)
    loader = EpochLoader(windowed, 30, shuffle=True, seed=2, num_workers=workers)
    loader.set_epoch(3)
    rows = []
    for batch in loader:
        rows += batch["__row__"].tolist()
        assert_same_batch(batch, expected.batch(batch["__row__"].numpy(), epoch=3))
        assert len(windowed._loaded) <= 2
    assert sorted(rows) == list(range(len(windowed)))


def test_rows_in_any_order(prepared):
    data, table, schema = prepared
    windowed = data.dataset("train", window_bytes=20_000)
    expected = TableDataset(table.take(windowed.source_rows), schema, data.encoders)
    rows = np.random.default_rng(0).permutation(len(windowed))[:200]
    assert_same_batch(windowed.batch(rows), expected.batch(rows))
    assert_same_batch(windowed.batch(np.zeros(0, np.int64)), expected.batch(np.zeros(0, np.int64)))
    assert np.array_equal(windowed.category_ids("item"), expected.category_ids("item"))
    assert np.array_equal(windowed.lengths("tags"), expected.lengths("tags"))
    assert np.array_equal(windowed.events("tags", slice(3, 90))[0], expected.events("tags", slice(3, 90))[0])
    assert len(np.unique(windowed.users)) == len(np.unique(expected.users)) == 5


def test_a_sample_is_taken_from_all_over(prepared):
    data, _, _ = prepared
    dataset = data.dataset("train", window_bytes=20_000)
    sample = dataset.sample(300)
    assert 200 <= len(sample) <= 300
    blocks = np.linspace(0, len(dataset._block_rows) - 1, 300 // 32).astype(int)
    rows = np.concatenate([np.arange(32) + 32 * block for block in blocks])[: len(sample)]
    assert len(dataset.sample(10_000)) == len(dataset)
    assert sample.category_ids("item")[:32].tolist() == dataset.category_ids("item")[rows[:32]].tolist()
