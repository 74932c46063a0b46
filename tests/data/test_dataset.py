from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from clicks import make_schema, make_table
from torch.utils.data import DataLoader

from dien_fast.data import (
    ClickDataset,
    Encoders,
    EpochBatches,
    EpochLoader,
    NegativeSampler,
    Schema,
    fit_encoders,
    pad_batch,
    read_table,
)
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged


def make_dataset(table: pa.Table, schema: Schema, **settings: object) -> ClickDataset:
    encoders = fit_encoders(table, schema)
    drawn = schema.negatives in ("uniform", "popularity")
    negatives = NegativeSampler.fit(table, schema, encoders) if drawn else None
    return ClickDataset(table, schema, encoders, negatives=negatives, **settings)  # type: ignore[arg-type]


def assert_equal(first: dict[str, torch.Tensor | Ragged], second: dict[str, torch.Tensor | Ragged]) -> None:
    assert first.keys() == second.keys()
    for name, value in pad_batch(first).items():
        assert torch.equal(value, pad_batch(second)[name]), name


def test_a_batch_equals_its_rows_encoded_one_by_one(table: pa.Table, schema: Schema) -> None:
    dataset = make_dataset(table, schema)
    encoders = fit_encoders(table, schema)
    rows = np.array([7, 0, 1, 39, 7])
    batch = dataset.batch(rows)
    assert set(batch) == {*schema.numeric, *schema.categorical, *schema.sequence_features(), "label", "__row__"}
    for position, row in enumerate(rows):
        one = table.slice(row, 1)
        assert batch["age"][position] == encoders.numeric("age").transform(one["age"])[0]
        for name in schema.categorical:
            assert batch[name][position] == encoders.category(name).transform(one[name])[0]
        for name in schema.sequences:
            value = batch[name]
            assert isinstance(value, Ragged)
            ids = value.values[value.offsets[position] : value.offsets[position + 1]]
            assert ids.tolist() == encoders.sequence(name).transform(one[name])[0].as_py()
        assert batch["label"][position] == one["label"][0].as_py()
    assert torch.equal(batch["__row__"], torch.from_numpy(rows))
    assert {batch[name].dtype for name in ("age", "label")} == {torch.float32}
    assert {batch[name].dtype for name in ("item", "__row__")} == {torch.int64}
    for name in schema.sequence_features():
        assert batch[name].values.dtype == batch[name].offsets.dtype == torch.int64
        assert batch[name].max_length == 50


def test_negatives_follow_their_history(table: pa.Table, schema: Schema) -> None:
    batch = make_dataset(table, schema).batch(np.arange(40))
    for name in ("hist_item", "hist_category"):
        clicks, negatives = batch[name], batch[f"neg_{name}"]
        assert torch.equal(clicks.offsets, negatives.offsets)
        assert clicks.max_length == negatives.max_length
    assert bool((batch["hist_item"].values != batch["neg_hist_item"].values).all())


def test_negatives_from_columns() -> None:
    table = pa.table({"item": [1, 2], "hist": [[1, 2], []], "neg_hist": [[2, 1], []], "label": [0, 1]})
    schema = make_schema(
        numeric=[],
        categorical=["item"],
        sequences=["hist"],
        negatives="columns",
        user=None,
        groups=Schema.from_dict(
            {
                "categorical": ["item"],
                "sequences": ["hist"],
                "groups": [{"name": "g", "pairs": [{"ad": "item", "pos_hist": "hist"}]}],
            }
        ).groups,
    )
    batch = make_dataset(table, schema).batch(np.array([0, 1]))
    assert batch["neg_hist"].values.tolist() == [2, 1]
    predicted = make_dataset(table, schema, require_label=False).batch(np.array([0]))
    assert "neg_hist" not in predicted
    longer = table.set_column(2, "neg_hist", pa.array([[2], []]))
    with pytest.raises(DataError, match="columns 'hist' and 'neg_hist' of group 'g' have 2 and 1 events in row 0"):
        make_dataset(longer, schema)


def test_without_negatives(table: pa.Table) -> None:
    dataset = make_dataset(table, make_schema(negatives="none"))
    assert "neg_hist_item" not in dataset.batch(np.array([0]))


def test_labels_users_and_lengths(table: pa.Table, schema: Schema) -> None:
    dataset = make_dataset(table, schema)
    assert len(dataset) == 40
    assert dataset.labels is not None
    assert dataset.labels.dtype == np.float32
    assert dataset.labels.tolist() == table["label"].to_pylist()
    assert dataset.users is not None
    assert dataset.users.tolist() == [row % 5 for row in range(40)]
    assert dataset.lengths("hist_item").tolist() == [len(row or []) for row in table["hist_item"].to_pylist()]
    assert make_dataset(table, make_schema(user=None)).users is None


def test_rows_to_predict_need_no_label(table: pa.Table, schema: Schema, encoders: Encoders) -> None:
    plain = table.drop_columns(["label", "user", "time"])
    dataset = ClickDataset(plain, schema, encoders, require_label=False)
    assert dataset.labels is None
    assert dataset.users is None
    assert set(dataset[[3]]) == {*schema.numeric, *schema.categorical, *schema.sequences, "__row__"}


def test_unseen_words_and_csv(tmp_path: Path, table: pa.Table, schema: Schema, encoders: Encoders) -> None:
    path = tmp_path / "new.csv"
    path.write_text("age,item,category,tags,hist_item,hist_category\n,77,new,,77|3,new|a\n30,3,a,x|z,,\n")
    dataset = ClickDataset(read_table(path, schema), schema, encoders, require_label=False)
    batch = pad_batch(dataset[[0, 1]])
    unknown = encoders.category("item").dimension() - 1
    assert batch["item"].tolist() == [unknown, encoders["item"].word2idx_[3]]
    assert batch["hist_item"][:, :3].tolist() == [[unknown, encoders["item"].word2idx_[3], 0], [0, 0, 0]]


def test_separated_text_equals_lists(tmp_path: Path, table: pa.Table, schema: Schema) -> None:
    text = table
    for name in ("hist_item", "hist_category"):
        joined = pa.array([None if row is None else "|".join(map(str, row)) for row in table[name].to_pylist()])
        text = text.set_column(text.column_names.index(name), name, joined)
    pa.csv.write_csv(text, tmp_path / "clicks.csv")
    first = make_dataset(table, schema).batch(np.arange(40))
    second = make_dataset(read_table(tmp_path / "clicks.csv", schema), schema).batch(np.arange(40))
    # Ids of one-digit words sort alike as numbers and as text.
    assert_equal(first, second)


def test_access_by_rows(table: pa.Table, schema: Schema) -> None:
    dataset = make_dataset(table, schema)
    dataset.set_epoch(2)
    assert_equal(dataset[[4, 2]], dataset.batch(np.array([4, 2]), epoch=2))
    assert_equal(dataset[5], dataset.batch(np.array([5]), epoch=2))
    assert pad_batch(dataset.batch(np.array([], np.int64)))["hist_item"].shape == (0, 50)
    with pytest.raises(IndexError, match=r"rows must be in \[0, 40\), got 3 to 40"):
        dataset.batch(np.array([3, 40]))
    with pytest.raises(IndexError, match="got -1 to -1"):
        dataset.batch(np.array([-1]))


def test_works_with_a_plain_data_loader(table: pa.Table, schema: Schema) -> None:
    loader = DataLoader(make_dataset(table, schema), batch_size=None, sampler=EpochBatches(40, 16, shuffle=False))
    assert [len(batch["label"]) for batch in loader] == [16, 16, 8]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("label", [2] * 40, r"t.csv: column 'label': expected 0 or 1, got 2 in row 0"),
        ("label", [None] * 40, r"t.csv: column 'label': expected 0 or 1, got no value in row 0"),
        ("label", None, r"t.csv: no column 'label'"),
        ("user", None, r"t.csv: no column 'user'"),
        ("age", ["1"] * 39 + ["old"], r"t.csv: column 'age': expected a number, got 'old' in row 39"),
        (
            "item",
            ["a"] * 40,
            r"t.csv: column 'item': expected whole numbers, as it was fitted on, got",
        ),
        ("hist_item", [3] * 40, r"t.csv: column 'hist_item': expected lists, or text in which '\|' divides"),
        ("hist_item", [[0, 0, 3]] * 40, r"t.csv: column 'hist_item': row 0 is padded with 0 before its events"),
        ("hist_category", ["__PAD__|a"] * 40, r"t.csv: column 'hist_category': row 0 holds the word '__PAD__'"),
        (
            "hist_category",
            [["a"] * 7] * 40,
            r"'hist_item' and 'hist_category' of group 'items' have 0 and 7",
        ),
        ("tags", ["x|__PAD__"] * 40, r"t.csv: column 'tags': row 0 holds the word '__PAD__'"),
        ("tags", None, r"t.csv: no column 'tags'"),
    ],
)
def test_wrong_columns_are_named(
    name: str, values: list[object] | None, message: str, table: pa.Table, schema: Schema, encoders: Encoders
) -> None:
    table = table.drop_columns([name])
    if values is not None:
        table = table.append_column(name, pa.array(values))
    with pytest.raises(DataError, match=message) as caught:
        ClickDataset(table, schema, encoders, source="t.csv")
    assert str(caught.value).count("t.csv") == 1


def test_an_empty_table_is_refused(table: pa.Table, schema: Schema, encoders: Encoders) -> None:
    with pytest.raises(DataError, match=r"t.csv: the table has no rows"):
        ClickDataset(table.slice(0, 0), schema, encoders, source="t.csv")


def test_an_empty_table_may_be_predicted(table: pa.Table, schema: Schema, encoders: Encoders) -> None:
    dataset = ClickDataset(table.slice(0, 0), schema, encoders, require_label=False)
    assert len(dataset) == 0
    assert list(EpochLoader(dataset, 4)) == []


def rows_of(batches: EpochBatches) -> list[list[int]]:
    return [rows.tolist() for rows in batches]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    batches = EpochBatches(50, 8, shuffle=True, seed=1)
    first = rows_of(batches)
    assert rows_of(batches) == first
    assert sorted(row for batch in first for row in batch) == list(range(50))
    batches.set_epoch(1)
    assert rows_of(batches) != first
    batches.set_epoch(0)
    assert rows_of(batches) == first
    assert rows_of(EpochBatches(50, 8, shuffle=True, seed=2)) != first


def test_a_last_batch_of_one_row_joins_in_training_only() -> None:
    assert [len(rows) for rows in EpochBatches(9, 4, shuffle=True)] == [4, 5]
    assert [len(rows) for rows in EpochBatches(9, 4, shuffle=False)] == [4, 4, 1]
    assert [len(rows) for rows in EpochBatches(1, 4, shuffle=True)] == [1]
    assert [len(rows) for rows in EpochBatches(3, 1, shuffle=True)] == [1, 2]
    assert rows_of(EpochBatches(0, 4, shuffle=True)) == []


@pytest.mark.parametrize("rows", [1, 16, 17, 31, 33])
def test_ranks_share_one_order(rows: int) -> None:
    whole = rows_of(EpochBatches(rows, 4, shuffle=True, seed=3))
    parts = [EpochBatches(rows, 4, shuffle=True, seed=3, rank=rank, world_size=3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    dealt = [batch for turn in zip(*map(rows_of, parts), strict=True) for batch in turn]
    assert dealt[: len(whole)] == whole
    assert all(batch in whole for batch in dealt)
    in_order = [
        row for rank in range(3) for batch in EpochBatches(rows, 4, rank=rank, world_size=3) for row in batch
    ]
    assert sorted(in_order) == list(range(rows))


def test_wrong_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EpochBatches(4, 0)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\) = \[0, 2\), got 2"):
        EpochBatches(4, 1, rank=2, world_size=2)


def test_loader_gives_the_batches_of_its_epoch(table: pa.Table, schema: Schema) -> None:
    dataset = make_dataset(table, schema)
    loader = EpochLoader(dataset, 16, shuffle=True, seed=5)
    assert (len(loader), loader.batch_size, loader.dataset) == (3, 16, dataset)
    seen = {}
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batches = list(loader)
        order = EpochBatches(40, 16, shuffle=True, seed=5)
        order.set_epoch(epoch)
        for batch, rows in zip(batches, order, strict=True):
            assert_equal(batch, dataset.batch(rows, epoch))
        if epoch in seen:
            for batch, again in zip(seen[epoch], batches, strict=True):
                assert_equal(batch, again)
        seen[epoch] = batches
    first, second = (dataset.batch(np.arange(40), epoch)["neg_hist_item"].values for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_workers_give_the_same_batches(table: pa.Table, schema: Schema) -> None:
    dataset = make_dataset(table, schema)
    plain, workers = (EpochLoader(dataset, 16, shuffle=True, seed=5, num_workers=number) for number in (0, 1))
    for epoch in (0, 2):
        plain.set_epoch(epoch)
        workers.set_epoch(epoch)
        for first, second in zip(plain, workers, strict=True):
            assert_equal(first, second)


def test_pad_batch_pads_behind() -> None:
    batch = {"hist": Ragged(torch.tensor([5, 6]), torch.tensor([0, 2, 2]), 3), "label": torch.ones(2)}
    padded = pad_batch(batch)
    assert padded["hist"].tolist() == [[5, 6, 0], [0, 0, 0]]
    assert padded["hist"].dtype == torch.int64
    assert padded["label"] is batch["label"]


def test_chunked_tables_give_the_same(table: pa.Table, schema: Schema) -> None:
    chunked = pa.concat_tables([table.slice(0, 11), table.slice(11)])
    first, second = (make_dataset(part, schema).batch(np.arange(40)) for part in (table, chunked))
    assert_equal(first, second)


def test_make_table_is_deterministic() -> None:
    assert make_table().equals(make_table())
