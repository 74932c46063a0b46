"""Ranking and calibration metrics on NumPy arrays: AUC, GAUC, log loss, hit rate, NDCG and MRR."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: how likely a click scores above a non-click.

    A click and a non-click with the same score count as half a success, as in
    ``sklearn.metrics.roc_auc_score``.

    Args:
        labels: ``[rows]``, 1 (or True) for a click, 0 for none.
        scores: ``[rows]`` of any real dtype; only their order matters, so logits do as well as probabilities.

    Returns:
        A number in [0, 1]; NaN where only one class is present.

    Raises:
        ValueError: if the two are not 1-D of one length, or a score is NaN.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    labels, scores = _checked(labels, scores)
    areas, _ = _areas(labels, scores, np.zeros(len(labels), dtype=np.int64), groups=1)
    return float(areas[0])


def gauc(labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike) -> float:
    """Return the grouped AUC: each user's own AUC, averaged with the user's number of rows as weight.

    It measures the order within a user, which is what a ranking shows; AUC also counts pairs of
    different users. Users with clicks only, or with none, have no order to judge and are left out.
    Source: equation 7 of the DIN paper (arXiv 1706.06978), with rows as impressions.

    Args:
        labels: ``[rows]``, 1 for a click, 0 for none.
        scores: ``[rows]`` of any real dtype.
        users: ``[rows]`` user of each row: integers, strings or any other sortable values.

    Returns:
        A number in [0, 1]; NaN where no user has both classes.

    Raises:
        ValueError: if the three are not 1-D of one length, or a score is NaN.

    Example:
        >>> gauc([0, 1, 1, 0, 1], [0.1, 0.9, 0.2, 0.8, 0.5], ["ann", "ann", "bob", "bob", "cid"])
        0.5
    """
    labels, scores = _checked(labels, scores)
    group, count = _grouped(labels, users, "users")
    areas, rows = _areas(labels, scores, group, groups=count)
    judged = ~np.isnan(areas)
    if not judged.any():
        return float("nan")
    return float(np.average(areas[judged], weights=rows[judged]))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the mean negative log-likelihood, in nats a row.

    Args:
        labels: ``[rows]``, 1 for a click, 0 for none.
        probabilities: ``[rows]`` in [0, 1]; as in scikit-learn they are kept one machine epsilon of their
            dtype away from 0 and 1.

    Raises:
        ValueError: if the two are not 1-D of one length, or a probability is NaN or outside [0, 1].

    Example:
        >>> round(log_loss([1, 0], [0.8, 0.2]), 4)
        0.2231
    """
    labels, probabilities = _checked(labels, probabilities)
    if len(labels) == 0:
        return float("nan")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            f"probabilities must lie in [0, 1], got {probabilities.min():g} to {probabilities.max():g}"
        )
    precision = np.finfo(probabilities.dtype).eps if probabilities.dtype.kind == "f" else 1e-16
    kept = np.clip(probabilities.astype(np.float64), precision, 1 - precision)
    return float(-np.mean(np.where(labels, np.log(kept), np.log1p(-kept))))


def ranking(labels: npt.ArrayLike, scores: npt.ArrayLike, lists: npt.ArrayLike, k: int = 10) -> dict[str, float]:
    """Return hit rate, NDCG and mean reciprocal rank over lists of candidates, such as those of a user.

    Lists without a click, or with clicks only, have nothing to rank and are left out. A candidate that is not
    clicked comes before a clicked one of equal score, so that a constant score earns nothing.

    Args:
        labels: ``[rows]``, 1 for a click, 0 for none.
        scores: ``[rows]`` of any real dtype.
        lists: ``[rows]`` the list of each row: integers, strings or any other sortable values.
        k: places that are looked at by HR and NDCG.

    Returns:
        ``hr@k``: share of lists with a click among their first k. ``ndcg@k``: DCG with gain 1 for a click and
        discount log2(rank + 1), relative to the best order's (Järvelin and Kekäläinen, 2002). ``mrr``: mean of 1 /
        rank of the first click. Each in [0, 1]; NaN where no list has both classes.

    Raises:
        ValueError: if the three are not 1-D of one length, a score is NaN, or k is below 1.

    Example:
        >>> ranking([0, 1, 0, 1, 0], [0.9, 0.5, 0.1, 0.8, 0.2], ["ann"] * 3 + ["bob"] * 2, k=1)
        {'hr@1': 0.5, 'ndcg@1': 0.5, 'mrr': 0.75}
    """
    labels, scores = _checked(labels, scores)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    group, count = _grouped(labels, lists, "lists")
    # Worst case first among equal scores: not clicked, then clicked.
    order = np.lexsort((labels, -scores, group))
    clicked, of = labels[order], group[order]
    sizes = np.bincount(of, minlength=count)
    rank = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    clicks = np.bincount(of[clicked], minlength=count)
    judged = (clicks > 0) & (clicks < sizes)
    first = np.full(count, np.inf)
    np.minimum.at(first, of[clicked], rank[clicked])
    seen = clicked & (rank <= k)
    gains = np.bincount(of[seen], weights=1 / np.log2(rank[seen] + 1), minlength=count)
    best = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))
    if not judged.any():
        return {f"hr@{k}": float("nan"), f"ndcg@{k}": float("nan"), "mrr": float("nan")}
    ideal = best[np.minimum(clicks[judged], k) - 1]
    return {
        f"hr@{k}": float(np.mean(first[judged] <= k)),
        f"ndcg@{k}": float(np.mean(gains[judged] / ideal)),
        "mrr": float(np.mean(1 / first[judged])),
    }


def _grouped(labels: np.ndarray, names: npt.ArrayLike, argument: str) -> tuple[np.ndarray, int]:
    """Return the number of each row's group, and how many groups there are."""
    names = np.asarray(names)
    if names.shape != labels.shape:
        raise ValueError(f"{argument} must have shape {labels.shape} as labels, got {names.shape}")
    if names.dtype == object:
        # A column with nulls mixes types, which do not sort; their words do.
        names = names.astype(str)
    distinct, group = np.unique(names, return_inverse=True)
    return group, len(distinct)


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return bool labels and scores as 1-D arrays of one length, or say what is wrong with them."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must be 1-D of one length, got {labels.shape} and {scores.shape}")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, got NaN in row {int(np.flatnonzero(np.isnan(scores))[0])}")
    return labels.astype(np.float64) > 0.5, scores


def _areas(
    labels: np.ndarray, scores: np.ndarray, group: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return ``[groups]`` AUC of each group (NaN with one class) and ``[groups]`` rows of each.

    The area is the Mann-Whitney statistic: from the sum of the clicks' ranks, equal scores sharing
    their mean rank. One sort by (group, score) serves all groups.
    """
    rows = np.bincount(group, minlength=groups)
    order = np.lexsort((scores, group))
    sorted_group, sorted_scores = group[order], scores[order]
    starts_tie = np.ones(len(order), dtype=bool)
    starts_tie[1:] = (sorted_group[1:] != sorted_group[:-1]) | (sorted_scores[1:] != sorted_scores[:-1])
    first = np.flatnonzero(starts_tie)
    size = np.diff(np.append(first, len(order)))
    # Ranks count from 1 within the group: subtract where the group begins in the sorted order.
    group_start = np.cumsum(rows) - rows
    rank = np.repeat(first + (size + 1) / 2, size) - group_start[sorted_group]
    clicked = labels[order]
    clicks = np.bincount(sorted_group[clicked], minlength=groups)
    rank_sum = np.bincount(sorted_group[clicked], weights=rank[clicked], minlength=groups)
    pairs = clicks * (rows - clicks)
    areas = np.full(groups, np.nan)
    np.divide(rank_sum - clicks * (clicks + 1) / 2, pairs, out=areas, where=pairs > 0)
    return areas, rows
