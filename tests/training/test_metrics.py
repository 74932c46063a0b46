"""AUC, LogLoss and GAUC against scikit-learn and hand-computed values."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from dien_fast.training.metrics import auc, gauc, log_loss, ranking


@pytest.mark.parametrize("levels", [3, 50, 10**9])
def test_auc_equals_scikit_learn_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    labels = rng.integers(0, 2, 2000)
    scores = (rng.random(2000) * levels).astype(np.int64) / levels
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_hand_made_orders():
    assert auc([0, 1], [0.0, 1.0]) == 1.0
    assert auc([0, 1], [1.0, 0.0]) == 0.0
    assert auc([0, 1, 0], [5.0, 5.0, 5.0]) == 0.5


def test_one_class_or_no_rows_has_no_auc():
    assert np.isnan(auc([1, 1], [0.1, 0.2]))
    assert np.isnan(auc([], []))
    assert np.isnan(gauc([1, 0], [0.1, 0.2], [0, 1]))
    assert np.isnan(log_loss([], []))


def test_metrics_take_tensors_and_bool_labels():
    assert auc(torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.3])) == 1.0
    assert auc(np.array([False, True]), np.float32([0.2, 0.3])) == 1.0


def test_gauc_is_the_mean_of_user_aucs_weighted_by_rows():
    rng = np.random.default_rng(1)
    users = rng.integers(0, 40, 3000)
    labels = rng.integers(0, 2, 3000)
    labels[users == 7] = 1
    scores = np.round(rng.random(3000), 2)
    areas, weights = [], []
    for user in range(40):
        mine = users == user
        if user != 7:
            areas.append(roc_auc_score(labels[mine], scores[mine]))
            weights.append(mine.sum())
    assert gauc(labels, scores, users) == pytest.approx(np.average(areas, weights=weights), abs=1e-12)
    assert gauc(labels, scores, users.astype(str)) == pytest.approx(gauc(labels, scores, users), abs=1e-12)


def test_gauc_takes_users_that_do_not_sort():
    users = np.array(["ann", None, "ann", None], dtype=object)
    assert gauc([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.1], users) == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_equals_scikit_learn_at_the_edges_too(dtype):
    labels = np.array([1, 0, 1, 0, 1])
    probabilities = np.array([0.9, 0.2, 1.0, 1.0, 0.0], dtype=dtype)
    ours = log_loss(labels, probabilities)
    if dtype is np.float64:
        assert ours == pytest.approx(sklearn_log_loss(labels, probabilities), rel=1e-9)
    else:
        # scikit-learn rounds 1 - eps in float32; worst case seen 4e-8.
        assert ours == pytest.approx(sklearn_log_loss(labels, probabilities), rel=1e-6)
    assert log_loss([1, 0], [1, 0]) == pytest.approx(0.0, abs=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"one length, got \(2,\) and \(3,\)"):
        auc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="NaN in row 1"):
        auc([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="users must have shape"):
        gauc([0, 1], [0.1, 0.2], [1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -1 to 2"):
        log_loss([0, 1], [-1.0, 2.0])


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ranking_equals_scikit_learn_and_its_definition(k):
    rng = np.random.default_rng(k)
    labels, scores, users = rng.integers(0, 2, 3000), rng.permutation(3000), rng.integers(0, 400, 3000)
    hits, gains, ranks = [], [], []
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            order = labels[mine][np.argsort(-scores[mine])]
            hits.append(order[:k].any())
            gains.append(ndcg_score(labels[mine][None], scores[mine][None], k=k))
            ranks.append(1 / (np.argmax(order) + 1))
    expected = {f"hr@{k}": np.mean(hits), f"ndcg@{k}": np.mean(gains), "mrr": np.mean(ranks)}
    assert ranking(labels, scores, users.astype(str), k) == pytest.approx(expected, abs=1e-12)


def test_ranking_gives_nothing_for_equal_scores():
    assert ranking([1, 0, 0], [2.0, 2.0, 2.0], [7, 7, 7], k=2) == {"hr@2": 0.0, "ndcg@2": 0.0, "mrr": 1 / 3}


def test_ranking_without_anything_to_rank():
    assert all(np.isnan(value) for value in ranking([1, 0], [0.1, 0.2], [1, 2]).values())
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ranking([1, 0], [0.1, 0.2], [1, 1], k=0)
    with pytest.raises(ValueError, match=r"lists must have shape \(2,\) as labels, got \(1,\)"):
        ranking([1, 0], [0.1, 0.2], [1])
