"""A model as programs over plain tensors, which ``torch.export`` turns into graphs.

A program takes tensors in a fixed order and returns click probabilities, float32. There are two:

rows         a row for each candidate, as a table has them; returns ``[B]``
candidates   U users with many candidates each; returns ``[C]``, user after user

A history is a tensor of ids, all users' one after the other, and shares its offsets with the other histories of
its group: user ``u`` has the events ``offsets[u]`` to ``offsets[u + 1]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dien_fast.data import Encoders, Schema
from dien_fast.errors import DienFastError
from dien_fast.models import ClickModel
from dien_fast.models.batches import session_key
from dien_fast.ragged import Ragged

OFFSETS = ".offsets"
CANDIDATE_OFFSETS = "candidates" + OFFSETS


class Input(NamedTuple):
    """One argument of a program, a tensor with one dimension.

    Attributes:
        name: the feature; ``"X.offsets"`` for the offsets of feature X's sequences and of all that share them,
            ``"G.session"`` for the session of each event of group G, ``"candidates.offsets"`` for those of
            candidates.
        dtype: ``"float32"`` or ``"int64"``.
        size: what it has an element for: ``"rows"``, ``"users"`` or ``"candidates"``, with ``" + 1"`` behind for
            offsets, or ``"events of X"``, where X is the feature whose offsets hold.
        limit: ids lie in ``[0, limit)``; 0 for what has no ids.

    Example:
        >>> Input("movieId", "int64", "rows", 1682)
        Input(name='movieId', dtype='int64', size='rows', limit=1682)
    """

    name: str
    dtype: str
    size: str
    limit: int = 0


class Program(nn.Module):
    """A model with its inputs in a fixed order.

    Args:
        model: in evaluation mode.
        schema: what the model's features are.
        encoders: the vocabularies, which give the longest history.
        of_candidates: features that a candidate has and not its user.

    Attributes:
        inputs: the arguments of :meth:`forward`, in their order.
    """

    entry: str
    rows: str  # what the user's features have an element for

    def __init__(
        self, model: ClickModel, schema: Schema, encoders: Encoders, of_candidates: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if model.training:
            raise ValueError("a program needs a model in evaluation mode, got one in training mode; call eval()")
        self.model = model
        self._longest = {name: encoders.sequence(name).max_len_ for name in schema.sequences}
        self._offsets_of = _shared_offsets(schema)
        self._sessions = {session_key(group.name): group.pairs[0].pos_hist for group in schema.groups}
        if not model.uses_sessions:
            self._sessions = {}
        self._of_candidates = tuple(of_candidates)
        sizes = encoders.dimensions()
        numeric = [Input(name, "float32", self._size(name)) for name in schema.numeric]
        categorical = [Input(name, "int64", self._size(name), sizes[name]) for name in schema.categorical]
        self.inputs = (*numeric, *categorical, *self._sequence_inputs(sizes), *self._offsets())

    def _size(self, name: str) -> str:
        return "candidates" if name in self._of_candidates else self.rows

    def _sequence_inputs(self, sizes: Mapping[str, int]) -> list[Input]:
        found = []
        for name, owner in self._offsets_of.items():
            found.append(Input(name, "int64", f"events of {owner}", sizes[name]))
        for key, name in self._sessions.items():
            found.append(Input(key, "int64", f"events of {self._offsets_of[name]}"))
        for owner in dict.fromkeys(self._offsets_of.values()):
            found.append(Input(owner + OFFSETS, "int64", f"{self.rows} + 1"))
        return found

    def _offsets(self) -> list[Input]:
        return []

    def batch(self, tensors: Sequence[Tensor]) -> dict[str, Tensor | Ragged]:
        """Return the arguments by feature, as models take them."""
        given = dict(zip((item.name for item in self.inputs), tensors, strict=True))
        batch: dict[str, Tensor | Ragged] = {
            name: value for name, value in given.items() if not name.endswith(OFFSETS)
        }
        for name, owner in self._offsets_of.items():
            batch[name] = Ragged(given[name], given[owner + OFFSETS], self._longest[name])
        for key, name in self._sessions.items():
            history = batch[name]
            assert isinstance(history, Ragged)
            batch[key] = history._replace(values=given[key])
        return batch


class RowsProgram(Program):
    """Probabilities ``[B]`` of rows, each with a candidate and a history."""

    entry = "rows"
    rows = "rows"

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the click probability ``[B]`` float32 of each row."""
        logits: Tensor = self.model(self.batch(tensors))[0]
        return logits.sigmoid()


class CandidatesProgram(Program):
    """Probabilities ``[C]`` of the candidates of U users, whose histories are read once."""

    entry = "candidates"
    rows = "users"

    def _offsets(self) -> list[Input]:
        return [Input(CANDIDATE_OFFSETS, "int64", "users + 1")]

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the click probability ``[C]`` float32 of each candidate, user after user."""
        batch = self.batch(tensors)
        candidates = {name: batch.pop(name) for name in self._of_candidates}
        logits = self.model.score_candidates(batch, candidates, tensors[-1])
        return logits.sigmoid()


def programs_of(
    model: ClickModel, schema: Schema, encoders: Encoders, candidate_features: Sequence[str] | None = None
) -> list[Program]:
    """Return the programs that a model can be exported as: rows and, where a feature is a candidate's, candidates.

    Args:
        model: in evaluation mode.
        schema: what the model's features are, without negatives.
        encoders: the vocabularies.
        candidate_features: numeric and categorical features that a candidate has and not its user; None: those
            that histories are compared with.

    Raises:
        DienFastError: two groups share a history, or there is no such feature.
    """
    known = (*schema.numeric, *schema.categorical)
    wanted = {pair.ad for pair in schema.pairs()} if candidate_features is None else {*candidate_features}
    for name in sorted(wanted - {*known}):
        raise DienFastError(f"candidate features must be among {', '.join(known)}, got {name!r}")
    for pair in schema.pairs():
        if wanted and pair.ad not in wanted:
            raise DienFastError(f"candidate features must include {pair.ad!r}, which histories are compared with")
    programs: list[Program] = [RowsProgram(model, schema, encoders)]
    if wanted:
        # In the schema's order, so that equal sets give equal programs.
        programs.append(CandidatesProgram(model, schema, encoders, [name for name in known if name in wanted]))
    return [program.eval() for program in programs]


def _shared_offsets(schema: Schema) -> dict[str, str]:
    """Return, for each sequence, the one whose offsets it has: the first of its group, or itself."""
    owners: dict[str, str] = {}
    for group in schema.groups:
        for pair in group.pairs:
            if owners.setdefault(pair.pos_hist, group.pairs[0].pos_hist) != group.pairs[0].pos_hist:
                raise DienFastError(
                    f"history {pair.pos_hist!r} belongs to two groups, which cannot be exported; give each its own"
                )
    return owners | {name: name for name in schema.sequences if name not in owners}


def example(inputs: Sequence[Input], seed: int = 0, users: int = 3) -> tuple[Tensor, ...]:
    """Return arguments for a program: users with 4, no, 2, 4, no, 2, ... events and 3 candidates each.

    Args:
        inputs: the program's.
        seed: of the random ids.
        users: their number; of rows, that of rows.

    Example:
        >>> example([Input("a.offsets", "int64", "rows + 1"), Input("a", "int64", "events of a", 9)])[0].tolist()
        [0, 4, 4, 6]
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([(4, 0, 2)[user % 3] for user in range(users)], dtype=torch.int64)
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0))
    events, candidates = int(offsets[-1]), 3 * users
    found = []
    for item in inputs:
        if item.name == CANDIDATE_OFFSETS:
            found.append(torch.arange(0, candidates + 1, 3))
            continue
        if item.name.endswith(OFFSETS):
            # A tensor that is given twice would be one input of the graph.
            found.append(offsets.clone())
            continue
        size = {"candidates": candidates}.get(item.size, events if item.size.startswith("events") else users)
        if item.dtype == "float32":
            found.append(torch.rand(size, generator=generator))
        elif item.limit:
            found.append(torch.randint(1, item.limit, (size,), generator=generator))
        else:
            found.append(torch.arange(size) // 3)  # sessions
    return tuple(found)
