"""torch-rechub 0.9.0 (torch_rechub/models/ranking/dien.py).

Its AUGRU is ``augru`` over padded batches, with weights that multiply from the right and one set of biases;
attention is 0 on padding, which keeps the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dien_fast.functional import attention_gru
from dien_fast.patches.cells import LAYOUTS, is_altered
from dien_fast.patches.layers import run_gru
from dien_fast.patches.library import Change, Library, Plan, check_source, gru_changes
from dien_fast.patches.probe import RefusedError, check_same, rule_of
from dien_fast.patches.recurrence import Loop, runs_as_found, takes_kernel
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import uniform
from dien_fast.ragged import Ragged

_MODULE = "torch_rechub.models.ranking.dien"


class PaddedLoop(Accelerated):
    """AUGRU over a padded batch as one operator, or the library's own loop where it does not apply."""

    Wa: Tensor

    def forward(self, x: Tensor, item: Tensor, mask: Tensor | None = None) -> Any:
        """Arguments and results as the original's: states ``[B, T, D]`` and the last ones ``[B, D]``."""
        loop: Loop = self._dien_fast.details
        cell: Any = self.augru_cell
        if not takes_kernel(x) or not runs_as_found(cell, loop):
            return super().forward(x, item, mask)
        # (x Wa) . item = x . (Wa item): one row per candidate instead of one per step.
        scores = torch.bmm(x, (item @ self.Wa.t()).unsqueeze(2)).squeeze(2)
        lengths = None
        if mask is not None:
            # The library gives equal shares to a history that is all padding.
            empty = ~mask.any(dim=1)
            scores = scores.masked_fill(~mask, float("-inf")).masked_fill(empty.unsqueeze(1), 0.0)
            if not torch.compiler.is_compiling():  # what follows depends on the mask's values
                lengths = prefix_lengths(mask | empty.unsqueeze(1))
        if lengths is None:
            # Every step runs; attention is 0 on padding, which keeps the state.
            lengths = torch.full((x.size(0),), x.size(1), dtype=torch.int64)
        att = torch.softmax(scores, dim=1)
        weights = loop.rule.rows(LAYOUTS[loop.layout].stacked(cell))
        states, last = attention_gru(x, att, *weights, lengths=lengths, cell=loop.rule.cell)
        assert states is not None
        # Padding keeps the state.
        padding = torch.arange(x.size(1)) >= lengths.unsqueeze(1)
        return torch.where(padding.unsqueeze(2), last.unsqueeze(1), states), last


def prefix_lengths(mask: Tensor) -> Tensor | None:
    """Return the steps ``[B]`` of a mask ``[B, T]``, or None if some history has padding before an event."""
    lengths = mask.sum(dim=1)
    return lengths if torch.equal(mask, torch.arange(mask.size(1)) < lengths.unsqueeze(1)) else None


def augru(module: Any) -> Plan:
    """Plan an AUGRU."""
    cell = module.augru_cell
    if "forward" in module.__dict__ or is_altered(*cell.modules()):
        raise RefusedError(
            f"its cell {type(cell).__name__} has hooks or a forward of its own, which would no longer run"
        )
    loop = Loop("augru_cell", type(cell), "columns", rule_of(cell), ("x", "item", "mask"), returns_last=True)
    recipe = Recipe(PaddedLoop, type(module), loop)
    size = module.embed_dim

    def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
        steps = torch.arange(5)
        prefix = steps < torch.tensor([5, 2, 1]).unsqueeze(1)
        masks = (prefix, prefix.flip(1), None)
        return [(uniform(generator, 3, 5, size), uniform(generator, 3, size), mask) for mask in masks]

    check_same(module, recipe, draw, tolerance=1e-10)
    return Plan([Change(module, recipe, f"recurrence {loop.rule} as one operator")], [])


class Model(Accelerated):
    """DIEN whose recurrences and auxiliary loss run on ragged rows."""

    alpha: float
    features: Any
    history_features: Any
    neg_history_features: Any
    target_features: Any
    embedding: Any
    interest_extractor_layers: Any
    interest_evolving_layers: Any
    mlp: Any
    BCELoss: Any

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Arguments and results as the original's."""
        layers = [*self.interest_extractor_layers, *self.interest_evolving_layers]
        if (
            not all(isinstance(layer, Accelerated) for layer in layers)
            or is_altered(*layers, self.BCELoss)
            or not takes_kernel(self.interest_extractor_layers[0].weight_ih_l0)
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        masks = [self.embedding.input_mask(x, feature).squeeze(1).bool() for feature in self.history_features]
        lengths = [prefix_lengths(mask) if mask.is_cpu else None for mask in masks]
        if any(length is None for length in lengths):
            return super().forward(x)
        history = self.embedding(x, self.history_features)
        negatives, target = (self.embedding(x, part) for part in (self.neg_history_features, self.target_features))
        interests: list[Tensor] = []
        loss: Any = 0
        for index, length in enumerate(lengths):
            assert length is not None
            events = Ragged.from_padded(history[:, index], length)
            states, _ = run_gru(self.interest_extractor_layers[index], events)
            loss += self._auxiliary(states, events.values, Ragged.rows_of(negatives[:, index], events.offsets))
            interests.append(_evolved(self.interest_evolving_layers[index], states, target[:, index]))
        given = self.embedding(x, self.features, squeeze_dim=True)
        rows = torch.cat([*interests, target.flatten(start_dim=1), given], dim=1)
        return torch.sigmoid(self.mlp(rows).squeeze(1)), self.alpha * loss

    def _auxiliary(self, states: Ragged, events: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of telling each history's events 2..len from negatives by the product with a state."""
        before = torch.ones(events.size(0), dtype=torch.bool)
        before[states.offsets[1:][states.lengths() > 0] - 1] = False
        step = torch.nonzero(before).squeeze(1)
        if step.numel() == 0:
            return torch.tensor(0.0)
        losses = []
        for rows, label in ((events, torch.ones_like), (negatives, torch.zeros_like)):
            p = torch.sigmoid((states.values[:-1] * rows[1:]).sum(1)[step])
            losses.append(self.BCELoss(p, label(p)))
        return losses[0] + losses[1]


def _evolved(layer: Any, states: Ragged, item: Tensor) -> Tensor:
    """Return the interest ``[B, D]`` that an AUGRU gives, 0 for an empty history."""
    padded = states.pad()
    scores = torch.bmm(padded, (item @ layer.Wa.t()).unsqueeze(2)).squeeze(2)
    lengths = states.lengths()
    mask = torch.arange(states.max_length) < lengths.clamp(min=1).unsqueeze(1)
    att = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=1)
    loop: Loop = layer._dien_fast.details
    weights = loop.rule.rows(LAYOUTS[loop.layout].stacked(layer.augru_cell))
    rows = Ragged.rows_of(att, states.offsets)
    _, last = attention_gru(
        states.values, rows, *weights, offsets=states.offsets, cell=loop.rule.cell, return_states=False
    )
    return last


def dien(module: Any) -> Plan:
    """Plan a DIEN."""
    names = [f"interest_extractor_layers.{index}" for index in range(len(module.interest_extractor_layers))]

    def whole() -> Change:
        check_source(type(module), forward="cfde5556c9ffb5a8", auxiliary="268675440605bb81")
        for part in (*module.interest_extractor_layers, *module.interest_evolving_layers):
            if not isinstance(part, Accelerated):
                raise RefusedError(f"as a whole, because one of its {type(part).__name__} was left")
        if "forward" in module.__dict__:
            raise RefusedError("as a whole, because its forward was replaced on the instance")
        recipe = Recipe(Model, type(module), None)
        return Change(
            module, recipe, "recurrences and auxiliary loss on ragged rows where padding follows the events"
        )

    return gru_changes(module, *names)._replace(whole=whole)


LIBRARY = Library(
    name="torch-rechub",
    distribution="torch-rechub",
    versions=("0.9.0",),
    roots=("torch_rechub",),
    parts={(_MODULE, "AUGRU"): augru, (_MODULE, "DIEN"): dien},
)
