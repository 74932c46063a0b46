from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dien_fast.data import ClickDataset, NegativeSampler, fit_encoders, shuffle_histories, synthetic_clicks
from dien_fast.data.synthetic import SyntheticClicks, click_probability, topic_belief
from dien_fast.errors import DataError

DIGEST = "a7c3ba4ab478a9fe75bf93e45dac86e4f471e6ff408ff0401d581c057ba6d33a"
TOPIC_OF = np.array([0, 1, 2, 0, 1, 2, 0])  # topics of different size


def topic_of_items(items: int, topics: int, seed: int) -> np.ndarray:
    """The first draw of the generator: which topic each item has."""
    return np.random.default_rng(seed).permutation(np.arange(items) % topics)


@pytest.mark.parametrize("history", [[], [0], [2, 2], [0, 1, 1], [2, 0, 1, 2]])
def test_belief_equals_the_sum_over_all_paths(history: list[int]) -> None:
    drift, noise = 0.3, 0.2
    topics = TOPIC_OF[history] if history else np.zeros(0, int)
    sizes = np.bincount(TOPIC_OF)
    weights = np.zeros(3)
    for path in itertools.product(range(3), repeat=max(1, len(history))):
        weight = 1 / 3
        for step, state in enumerate(path):
            if step:
                weight *= 1 - drift if state == path[step - 1] else drift / 2
            if history:
                weight *= noise / 7 + (1 - noise) / sizes[state] * (topics[step] == state)
        weights[path[-1]] += weight
    belief = topic_belief(topics, np.array([0, len(history)]), TOPIC_OF, drift, noise)
    np.testing.assert_allclose(belief[0], weights / weights.sum(), rtol=1e-12)


def test_click_probability_by_hand() -> None:
    # Candidate of topic 1 (2 of 7 items), belief 0.5 in it: likelihoods 0.5 / 2 + 0.5 / 7 and 0.5 / 7.
    inside, outside = 0.5 * (0.25 + 0.5 / 7), 0.5 * 0.5 / 7
    match = inside / (inside + outside)
    result = click_probability(np.array([[0.3, 0.5, 0.2]]), np.array([1]), TOPIC_OF)
    np.testing.assert_allclose(result, [match * 0.92 + (1 - match) * 0.08])


def test_best_auc_is_known_and_order_matters() -> None:
    clicks = synthetic_clicks(rows=40_000)
    labels = clicks.table["label"].to_numpy()
    best = roc_auc_score(labels, clicks.best_probability)
    assert 0.85 < best < 0.92
    # A true posterior is calibrated: no shift or stretch of its log-odds loses less.
    assert abs(clicks.best_probability.mean() - labels.mean()) < 0.01
    odds = np.log(clicks.best_probability / (1 - clicks.best_probability))
    for scale in (0.8, 1.25):
        assert log_loss(labels, 1 / (1 + np.exp(-scale * odds))) > log_loss(labels, clicks.best_probability)

    shuffled = shuffle_histories(clicks.table)["histItemIds"].combine_chunks()
    offsets = shuffled.offsets.to_numpy()
    topic_of = topic_of_items(80, 8, 0)
    topics = topic_of[shuffled.flatten().to_numpy() - 1]
    candidates = topic_of[clicks.table["itemId"].to_numpy() - 1]
    belief = topic_belief(topics, offsets, topic_of, drift=0.15, noise=0.1)
    assert roc_auc_score(labels, click_probability(belief, candidates, topic_of)) < best - 0.05
    # Nor does counting, which needs no order, come near.
    rows = np.repeat(np.arange(len(labels)), np.diff(offsets))
    share = np.bincount(rows, topics == candidates[rows], len(labels)) / np.maximum(np.diff(offsets), 1)
    assert roc_auc_score(labels, share) < best - 0.05


def test_the_table_is_complete() -> None:
    clicks = synthetic_clicks(rows=1001, items=30, topics=5, length=6, seed=2)
    table = clicks.table
    assert table.num_rows == 1001
    np.testing.assert_array_equal(table["bestProbability"].to_numpy(), clicks.best_probability)
    lengths = np.array([len(row) for row in table["histItemIds"].to_pylist()])
    assert lengths.min() == 0
    assert lengths.max() == 6
    np.testing.assert_array_equal(lengths, np.minimum(table["timestamp"].to_numpy(), 6))
    assert table["userId"].to_numpy().max() == 125
    assert set(table["itemId"].to_pylist()) == set(range(1, 31))
    encoders = fit_encoders(table, clicks.schema)
    dataset = ClickDataset(
        table, clicks.schema, encoders, negatives=NegativeSampler.fit(table, clicks.schema, encoders)
    )
    assert {"itemId", "histItemIds", "neg_histItemIds", "label"} < set(dataset[[0, 1]])


def best_aucs(clicks: SyntheticClicks) -> tuple[float, float]:
    labels = clicks.table["label"].to_numpy()
    return roc_auc_score(labels, clicks.best_probability), roc_auc_score(labels, clicks.best_probability_in_time)


def test_times_tell_more_than_order() -> None:
    clicks = synthetic_clicks(rows=40_000)
    best, in_time = best_aucs(clicks)
    assert in_time > best + 0.001  # Seen: 0.0023. What a click is of tells most already.
    labels = clicks.table["label"].to_numpy()
    odds = np.log(clicks.best_probability_in_time / (1 - clicks.best_probability_in_time))
    for scale in (0.8, 1.25):
        calibrated = log_loss(labels, clicks.best_probability_in_time)
        assert log_loss(labels, 1 / (1 + np.exp(-scale * odds))) > calibrated


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_times_tell_nothing_of_a_topic_that_never_or_always_changes(drift: float) -> None:
    clicks = synthetic_clicks(rows=400, drift=drift)
    np.testing.assert_allclose(clicks.best_probability_in_time, clicks.best_probability, rtol=1e-12)


def test_topics_change_over_long_pauses() -> None:
    clicks = synthetic_clicks(rows=20_000, noise=0.0)
    topic_of = topic_of_items(80, 8, 0)
    changed, long = [], []
    for items, times in zip(
        clicks.table["histItemIds"].to_pylist(), clicks.table["histTimes"].to_pylist(), strict=True
    ):
        assert len(items) == len(times)
        changed += np.diff(topic_of[np.array(items, np.int64) - 1]).astype(bool).tolist()
        long += (np.diff(times) > 1800).tolist()
    assert np.mean(np.array(long)[changed]) == pytest.approx(0.9, abs=0.02)
    assert np.mean(np.array(long)[~np.array(changed)]) == pytest.approx(0.1, abs=0.02)


def test_times_change_nothing_else() -> None:
    """The digest of the columns as they were before there were times."""
    table = synthetic_clicks(rows=1000, seed=3).table
    content = [table[name].to_pylist() for name in ("userId", "timestamp", "label", "itemId", "histItemIds")]
    content.append(table["bestProbability"].to_pylist())
    assert hashlib.sha256(repr(content).encode()).hexdigest() == DIGEST


def test_later_histories_continue_earlier_ones() -> None:
    table = synthetic_clicks(rows=80, length=100).table
    rows = table.to_pylist()
    for first, second in itertools.pairwise(rows):
        if first["userId"] == second["userId"] and second["timestamp"] <= 100:
            assert second["histItemIds"][: len(first["histItemIds"])] == first["histItemIds"]


def test_seeds() -> None:
    first, again, other = (synthetic_clicks(rows=200, seed=seed) for seed in (1, 1, 2))
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_shuffling_keeps_each_rows_events() -> None:
    table = synthetic_clicks(rows=200).table
    shuffled = shuffle_histories(table, seed=1)
    assert shuffled.column_names == table.column_names
    before, after = table["histItemIds"].to_pylist(), shuffled["histItemIds"].to_pylist()
    assert [sorted(row) for row in before] == [sorted(row) for row in after]
    assert before != after
    assert shuffle_histories(table.slice(50, 20))["histItemIds"].combine_chunks().flatten().to_pylist()
    with pytest.raises(DataError, match="no column 'hist'"):
        shuffle_histories(table, "hist")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"topics": 1}, r"topics must be in \[2, items\] = \[2, 80\], got 1"),
        ({"items": 5}, r"topics must be in \[2, items\] = \[2, 5\], got 8"),
        ({"drift": 1.5}, r"drift must be in \[0, 1\], got 1.5"),
        ({"noise": -0.1}, r"noise must be in \[0, 1\], got -0.1"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_clicks(**settings)  # type: ignore[arg-type]
