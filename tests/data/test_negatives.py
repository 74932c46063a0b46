from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from clicks import make_schema, make_table

from dien_fast.data import ClickDataset, Encoders, Group, NegativeSampler, Pair, Schema, fit_encoders
from dien_fast.data import negatives as negatives_module
from dien_fast.data.hashing import mix
from dien_fast.errors import DataError

ITEMS = Schema(categorical=["item"], sequences=["hist"], groups=[Group("g", [Pair("item", "hist")])], min_count=1)


def items_table(candidates: list[int], history: list[list[int]]) -> pa.Table:
    filled = candidates + [candidates[0]] * (len(history) - len(candidates))
    return pa.table({"item": filled, "hist": history + [[]] * (len(filled) - len(history))})


def draw(
    sampler: NegativeSampler, dataset: ClickDataset, rows: np.ndarray, epoch: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return clicks, negatives and offsets of the first group."""
    group = dataset.schema.groups[0]
    batch = dataset.batch(rows)
    clicks = [batch[pair.pos_hist].values.numpy() for pair in group.pairs]
    offsets = batch[group.pairs[0].pos_hist].offsets.numpy()
    return clicks, sampler.sample(group, clicks, offsets, rows, epoch), offsets


def fitted(table: pa.Table, schema: Schema, **settings: bool) -> tuple[NegativeSampler, ClickDataset, Encoders]:
    encoders = fit_encoders(table, schema)
    sampler = NegativeSampler.fit(table, schema, encoders, seed=3, **settings)
    return sampler, ClickDataset(table, schema, encoders, require_label=False), encoders


def test_splitmix_known_values() -> None:
    # The first outputs of the published generator from state 1234567.
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_tuples_are_drawn_whole_and_never_the_click() -> None:
    table = make_table(200)
    sampler, dataset, encoders = fitted(table, make_schema())
    (items, categories), (drawn_items, drawn_categories), _ = draw(sampler, dataset, np.arange(200))
    names = encoders["item"].idx2word_
    assert drawn_items.dtype == np.int64
    for item, category in zip(drawn_items, drawn_categories, strict=True):
        assert encoders["category"].idx2word_[category] == "abc"[names[item] % 3]
    assert (drawn_items != items).all()
    assert set(drawn_items) == set(items)
    assert len(categories) == len(drawn_categories)


def test_draws_depend_on_nothing_but_seed_epoch_row_and_step() -> None:
    table, schema = make_table(60), make_schema(exclude_clicked=True)
    sampler, dataset, encoders = fitted(table, schema)
    rows = np.random.default_rng(0).permutation(60)
    _, whole, offsets = draw(sampler, dataset, rows, epoch=4)
    for position, row in enumerate(rows):
        _, alone, _ = draw(sampler, dataset, rows[position : position + 1], epoch=4)
        for one, all_of_them in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(one, all_of_them[offsets[position] : offsets[position + 1]])
        assert row == rows[position]
    _, other_epoch, _ = draw(sampler, dataset, rows, epoch=5)
    assert (other_epoch[0] != whole[0]).mean() > 0.5
    other_seed = NegativeSampler.fit(table, schema, encoders, seed=4)
    assert (draw(other_seed, dataset, rows, epoch=4)[1][0] != whole[0]).mean() > 0.5


def test_fixed_negatives_are_the_same_in_every_epoch() -> None:
    sampler, dataset, _ = fitted(make_table(60), make_schema(), fresh=False)
    first, second = (draw(sampler, dataset, np.arange(60), epoch)[1][0] for epoch in (0, 7))
    np.testing.assert_array_equal(first, second)


def test_groups_draw_apart() -> None:
    groups = [Group("g", [Pair("item", "hist")]), Group("h", [Pair("item", "hist", "neg_2")])]
    schema = Schema(categorical=["item"], sequences=["hist"], groups=groups, min_count=1)
    table = items_table(list(range(1, 50)), [list(range(1, 50))])
    sampler, _, _ = fitted(table, schema)
    clicks, offsets, rows = np.arange(1, 50), np.array([0, 49]), np.array([0])
    first, second = (sampler.sample(group, [clicks], offsets, rows)[0] for group in groups)
    assert (first != second).mean() > 0.5


@pytest.mark.parametrize("large", [False, True])
def test_exclude_clicked_avoids_the_history_up_to_the_step(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(negatives_module, "_TABLE_SIZE", 0)
        monkeypatch.setattr(negatives_module, "_TABLE_SIZE_PER_TUPLE", 0)
    sampler, dataset, _ = fitted(make_table(300), make_schema(exclude_clicked=True))
    (items, _), (drawn, _), offsets = draw(sampler, dataset, np.arange(300))
    later = 0
    for row in range(300):
        clicks, negatives = items[offsets[row] : offsets[row + 1]], drawn[offsets[row] : offsets[row + 1]]
        for step, negative in enumerate(negatives):
            assert negative not in clicks[: step + 1]
            later += negative in clicks[step + 1 :]
    assert later > 0  # later clicks are not known at that step


def test_without_exclusion_earlier_clicks_are_drawn() -> None:
    sampler, dataset, _ = fitted(make_table(300), make_schema())
    (items, _), (drawn, _), offsets = draw(sampler, dataset, np.arange(300))
    earlier = [
        drawn[step] in items[offsets[row] : step] for row in range(300) for step in range(*offsets[row : row + 2])
    ]
    assert any(earlier)


def test_exhausted_histories_still_avoid_the_click() -> None:
    # From the second step on every item was clicked.
    schema = Schema.from_dict(ITEMS.to_dict() | {"exclude_clicked": True})
    table = items_table([1, 2], [[1, 2, 1, 2, 2]] * 50)
    sampler, dataset, _ = fitted(table, schema)
    [clicks], [drawn], _ = draw(sampler, dataset, np.arange(50))
    assert (clicks != drawn).all()


def test_uniform_frequencies() -> None:
    # Item 1 is a candidate often; uniform draws do not care. Item 5 was only ever in a history.
    table = items_table([1] * 97 + [2, 3, 4], [[5] * 100] * 100)
    sampler, dataset, _ = fitted(table, Schema.from_dict(ITEMS.to_dict() | {"max_length": 100}))
    _, [drawn], _ = draw(sampler, dataset, np.arange(100))
    share = np.bincount(drawn, minlength=6)[1:6] / len(drawn)
    np.testing.assert_allclose(share, [0.25, 0.25, 0.25, 0.25, 0], atol=0.02)


def test_popularity_frequencies() -> None:
    schema = Schema.from_dict(ITEMS.to_dict() | {"max_length": 100, "negatives": "popularity"})
    table = items_table([1] * 60 + [2] * 30 + [3] * 10, [[4] * 100] * 50 + [[1] * 100] * 50)
    sampler, dataset, _ = fitted(table, schema)
    [clicks], [drawn], _ = draw(sampler, dataset, np.arange(100))
    share = np.bincount(drawn[clicks == 4], minlength=5)[1:5] / (clicks == 4).sum()
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1, 0], atol=0.03)
    # Where the click itself is left out, an item that was never a candidate has weight 1.
    share = np.bincount(drawn[clicks == 1], minlength=5)[1:5] / (clicks == 1).sum()
    np.testing.assert_allclose(share, np.array([0, 30, 10, 1]) / 41, atol=0.03)


def test_one_item_that_is_nearly_all_of_the_popularity() -> None:
    schema = Schema.from_dict(ITEMS.to_dict() | {"negatives": "popularity"})
    table = items_table([1] * 100_000 + [2, 3], [[1, 1, 1]] * 200)
    sampler, dataset, _ = fitted(table, schema)
    _, [drawn], _ = draw(sampler, dataset, np.arange(200))
    assert set(drawn) == {2, 3}
    np.testing.assert_allclose((drawn == 2).mean(), 0.5, atol=0.1)


def test_unknown_is_drawn_as_often_as_rare_items_occur() -> None:
    # Items 1 and 2 are frequent, 8 others occur once: 8 of 10 tuples are unknown to the encoders.
    schema = Schema.from_dict(ITEMS.to_dict() | {"min_count": 5, "max_length": 100})
    table = items_table([1] * 50 + [2] * 50 + list(range(11, 19)), [[1] * 100] * 50)
    sampler, dataset, encoders = fitted(table, schema)
    assert encoders.dimensions()["item"] == 4
    _, [drawn], _ = draw(sampler, dataset, np.arange(50))
    np.testing.assert_allclose((drawn == 3).mean(), 8 / 9, atol=0.02)


def test_a_click_that_training_never_saw() -> None:
    sampler, _, encoders = fitted(make_table(100), make_schema(exclude_clicked=True))
    unknown = [np.full(30, encoders[name].dimension() - 1) for name in ("item", "category")]
    for size in (1 << 22, 0):
        drawn = sampler.sample(make_schema().groups[0], unknown, np.array([0, 30]), np.array([5]))
        assert drawn[0].shape == (30,), size
        assert (drawn[0] != unknown[0]).all()


def test_empty_batches_and_histories() -> None:
    sampler, _, _ = fitted(make_table(), make_schema(exclude_clicked=True))
    group, empty = make_schema().groups[0], [np.zeros(0, np.int64)] * 2
    assert sampler.sample(group, empty, np.array([0, 0, 0]), np.array([0, 1]))[0].shape == (0,)
    assert sampler.sample(group, empty, np.array([0]), np.array([], np.int64))[1].shape == (0,)


def test_a_large_catalogue_agrees_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table, schema = make_table(100), make_schema(exclude_clicked=True)
    sampler, dataset, encoders = fitted(table, schema)
    _, expected, _ = draw(sampler, dataset, np.arange(100))
    monkeypatch.setattr(negatives_module, "_TABLE_SIZE", 0)
    monkeypatch.setattr(negatives_module, "_TABLE_SIZE_PER_TUPLE", 0)
    searching = NegativeSampler.fit(table, schema, encoders, seed=3)
    assert searching._catalogues["items"].table is None
    for first, second in zip(draw(searching, dataset, np.arange(100))[1], expected, strict=True):
        np.testing.assert_array_equal(first, second)
    unknown = [np.array([10, 3]), np.array([4, 4])]
    assert searching._catalogues["items"].index_of(unknown).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (items_table([1], [[1, 1]]), {}, "group 'g' has 1 item that the encoders can tell apart"),
        (items_table([1, 2], [[3]]), {"min_count": 5}, "group 'g' has 1 item that the encoders can tell apart"),
        (items_table([1, 2], [[1]]), {"negatives": "none"}, "negatives='none' draws nothing"),
        (items_table([1, 2], [[1]]), {"negatives": "columns"}, "negatives='columns' draws nothing"),
    ],
)
def test_impossible_draws_are_refused(table: pa.Table, settings: dict[str, object], message: str) -> None:
    schema = Schema.from_dict(ITEMS.to_dict() | settings)
    table = table.append_column("neg_hist", table["hist"])
    with pytest.raises(DataError, match=message):
        NegativeSampler.fit(table, schema, fit_encoders(table, schema))


def test_too_many_possible_tuples_are_refused() -> None:
    names = [f"c{number}" for number in range(8)]
    words = {name: range(300) for name in names} | {f"h_{name}": [[word] for word in range(300)] for name in names}
    group = Group("g", [Pair(name, f"h_{name}") for name in names])
    schema = Schema(categorical=names, sequences=[f"h_{name}" for name in names], groups=[group], min_count=1)
    table = pa.table(words)
    with pytest.raises(DataError, match="group 'g' has too many possible tuples of 8 columns to draw from"):
        NegativeSampler.fit(table, schema, fit_encoders(table, schema))


def test_pairs_of_different_lengths_are_refused() -> None:
    table = make_table()
    table = table.set_column(
        table.column_names.index("hist_category"), "hist_category", pa.array([["a"] * 9] * table.num_rows)
    )
    with pytest.raises(DataError, match="the histories of group 'items' differ in length"):
        NegativeSampler.fit(table, make_schema(), fit_encoders(table, make_schema(), checked=True))
