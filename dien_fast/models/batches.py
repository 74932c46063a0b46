"""Batches of features: what a model reads of them, and histories with the vectors of their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dien_fast.ragged import Ragged
from dien_fast.reference.groups import AttentionGroup

Batch = Mapping[str, Tensor | Ragged]


class Padded(NamedTuple):
    """Padded histories and how many steps of each are events.

    Attributes:
        values: ids ``[B, T]`` or vectors ``[B, T, D]``.
        lengths: ``[B]`` int64, from 0 to T.
    """

    values: Tensor
    lengths: Tensor

    def take(self, histories: Tensor) -> Padded:
        """Return histories by their numbers ``[C]``, each as often as it is named."""
        return Padded(self.values[histories], self.lengths[histories])


class Sessions(NamedTuple):
    """Ragged histories whose events are divided into sessions.

    Attributes:
        events: ids ``[N]`` or vectors ``[N, D]``.
        numbers: ``[N]`` int64 number of each event's session, another for each of a history's sessions.
    """

    events: Ragged
    numbers: Tensor

    def take(self, histories: Tensor) -> Sessions:
        """Return histories by their numbers ``[C]``, each as often as it is named."""
        numbers = self.events._replace(values=self.numbers)
        return Sessions(self.events.take(histories), numbers.take(histories).values)


Histories = Ragged | Padded | Sessions


def category(x: Batch, feature: str) -> Tensor:
    """Return the ids of a categorical feature ``[B]``.

    Raises:
        ValueError: if the feature is absent or has another shape.
        TypeError: if it is no tensor.
    """
    ids = _one_value_per_row(x, feature)
    if ids.dim() != 1:
        raise ValueError(f"feature {feature!r} must have shape (B,), got {tuple(ids.shape)}")
    return ids


def number(x: Batch, feature: str) -> Tensor:
    """Return a numeric feature ``[B, 1]``, given as ``[B]`` or ``[B, 1]``.

    Raises:
        ValueError: if the feature is absent or has another shape.
        TypeError: if it is no tensor.
    """
    value = _one_value_per_row(x, feature)
    if value.dim() == 0 or value.numel() != value.size(0):
        raise ValueError(f"feature {feature!r} must have shape (B,) or (B, 1), got {tuple(value.shape)}")
    return value.reshape(-1, 1)


def sequence(x: Batch, feature: str) -> Tensor | Ragged:
    """Return the ids of a sequence feature, padded ``[B, T]`` or ragged ``[N]``.

    Raises:
        ValueError: if the feature is absent or has another shape.
        TypeError: if it is neither a tensor nor Ragged.
    """
    ids = _given(x, feature)
    if isinstance(ids, Tensor) and ids.dim() != 2:
        raise ValueError(f"feature {feature!r} must be Ragged or have shape (B, T), got {tuple(ids.shape)}")
    return ids


def session_key(group: str) -> str:
    """Return under which key a batch has the session of each event of a group's histories.

    No feature has such a name, as names of features have no dots.
    """
    return f"{group}.session"


def with_sessions(group: AttentionGroup, x: Batch, events: Ragged) -> Sessions:
    """Divide the histories of a group into the sessions that the batch says.

    Args:
        group: whose histories they are.
        x: the batch; it has the session of each event under :func:`session_key`, ragged int64 ``[N]`` or padded
            ``[B, T]``, as the histories.
        events: the histories, cut to the shortest of the group's pairs.

    Raises:
        ValueError: if there are no sessions, or not one for each event.
        TypeError: if they are neither a tensor nor Ragged.
    """
    key = session_key(group.name)
    if key not in x:
        raise ValueError(
            f"the batch must have {key!r}, the session of each event of group {group.name!r}, got {sorted(x)}"
        )
    given = sequence(x, key)
    rows = events.offsets.numel() - 1
    if isinstance(given, Tensor):
        if given.size(0) != rows or given.size(1) < events.max_length:
            raise ValueError(f"{key!r} must have shape {(rows, events.max_length)}, got {tuple(given.shape)}")
        return Sessions(events, Ragged.rows_of(given, events.offsets))
    if given.offsets is not events.offsets:
        cut, given = _common_prefix([events, given])
        if not (torch.compiler.is_compiling() or cut.same_offsets(events)):
            raise ValueError(f"{key!r} must have a session for each event of group {group.name!r}")
    return Sessions(events, given.values)


def group_histories(group: AttentionGroup, x: Batch, role: str, keep_padding: bool) -> list[Ragged | Padded]:
    """Return the ids of the histories of a group's pairs, all of the same lengths.

    Ragged histories are cut to the shortest of a row's. The length of a padded history is its number of ids above
    0, the least of the clicked histories of a row.

    Args:
        group: its pairs name the histories.
        x: the batch.
        role: ``"pos_hist"`` or ``"neg_hist"``.
        keep_padding: whether padded histories stay padded; otherwise their events become ragged.

    Raises:
        ValueError: if a history is absent or has another shape, or if some are padded and some ragged.
        TypeError: if one is neither a tensor nor Ragged.
    """
    ids = [sequence(x, pair[role]) for pair in group.pairs]
    clicked = [sequence(x, pair["pos_hist"]) for pair in group.pairs]
    if len({isinstance(value, Ragged) for value in [*ids, *clicked]}) > 1:
        raise ValueError(f"histories of group {group.name!r} must be all padded or all ragged, got both")
    if isinstance(ids[0], Ragged):
        return list(_common_prefix([value for value in ids if isinstance(value, Ragged)]))
    counts = [(row > 0).sum(1) for row in clicked if isinstance(row, Tensor)]
    _check_rows([count.numel() for count in counts])
    lengths = torch.stack(counts).min(0).values
    padded = [value for value in ids if isinstance(value, Tensor)]
    if keep_padding:
        return [Padded(value, lengths) for value in padded]
    return [Ragged.from_padded(value, lengths) for value in padded]


def fit(histories: Ragged | Padded, others: Ragged | Padded) -> bool:
    """Whether both may have histories of the same lengths; lengths on a GPU are not compared, which would wait."""
    if isinstance(histories, Ragged) and isinstance(others, Ragged):
        return histories.fits(others)
    return histories.values.shape[:2] == others.values.shape[:2]


def side_by_side(histories: Sequence[Ragged | Padded]) -> Ragged | Padded:
    """Return histories of equal lengths with the vectors of all side by side."""
    first = histories[0]
    if len(histories) == 1:
        return first
    return first._replace(values=torch.cat([history.values for history in histories], dim=-1))


def rows_of(value: Tensor | Ragged) -> int:
    """Return the number of rows B of a feature."""
    return value.offsets.numel() - 1 if isinstance(value, Ragged) else value.size(0)


def kind_of(value: object) -> str:
    """Return what an argument is that should have been a tensor, such as ``"a list of int"``."""
    kind = type(value).__name__
    return f"a {kind} of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else f"a {kind}"


def _given(x: Batch, feature: str) -> Tensor | Ragged:
    if feature not in x:
        raise ValueError(f"the batch must have feature {feature!r}, got {sorted(x)}")
    value = x[feature]
    if not isinstance(value, Tensor | Ragged):
        raise TypeError(f"feature {feature!r} must be a tensor or Ragged, got {kind_of(value)}")
    return value


def _one_value_per_row(x: Batch, feature: str) -> Tensor:
    value = _given(x, feature)
    if isinstance(value, Ragged):
        raise ValueError(f"feature {feature!r} must have one value per row, got a ragged sequence")
    return value


def _check_rows(counts: list[int]) -> None:
    if len(set(counts)) > 1:
        raise ValueError(f"histories must have the same number of rows, got {counts}")


def _common_prefix(rows: list[Ragged]) -> list[Ragged]:
    """Cut every history to the shortest of its row's."""
    first = rows[0]
    width = max(row.max_length for row in rows)
    if all(row.same_offsets(first) for row in rows):
        return [row._replace(max_length=width) for row in rows]
    _check_rows([rows_of(row) for row in rows])
    lengths = torch.stack([row.lengths() for row in rows]).min(0).values
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    start = torch.repeat_interleave(offsets[:-1], lengths)
    step = torch.arange(start.numel(), device=offsets.device) - start
    return [
        Ragged(row.values[torch.repeat_interleave(row.offsets[:-1], lengths) + step], offsets, width)
        for row in rows
    ]
