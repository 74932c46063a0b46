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
from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.probe import RefusedError, check_same, rule_of, uniform
from dien_fast.patches.recurrence import Loop, runs_as_found, takes_kernel
from dien_fast.patches.swap import Accelerated, Recipe

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
        lengths = torch.full((x.size(0),), x.size(1), dtype=torch.int64)
        if mask is not None:
            # The library gives equal shares to a history that is all padding.
            empty = ~mask.any(dim=1)
            scores = scores.masked_fill(~mask, float("-inf")).masked_fill(empty.unsqueeze(1), 0.0)
            lengths = prefix_lengths(mask | empty.unsqueeze(1), lengths)
        att = torch.softmax(scores, dim=1)
        weights = loop.rule.rows(LAYOUTS[loop.layout].stacked(cell))
        states, last = attention_gru(x, att, *weights, lengths=lengths, cell=loop.rule.cell)
        assert states is not None
        # Padding keeps the state.
        padding = torch.arange(x.size(1)) >= lengths.unsqueeze(1)
        return torch.where(padding.unsqueeze(2), last.unsqueeze(1), states), last


def prefix_lengths(mask: Tensor, longest: Tensor) -> Tensor:
    """Return the steps ``[B]`` that a mask ``[B, T]`` leaves, or ``longest`` if some mask is not a prefix."""
    if torch.compiler.is_compiling():
        return longest
    lengths = mask.sum(dim=1)
    return lengths if torch.equal(mask, torch.arange(mask.size(1)) < lengths.unsqueeze(1)) else longest


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


def dien(module: Any) -> Plan:
    """Plan a DIEN."""
    names = [f"interest_extractor_layers.{index}" for index in range(len(module.interest_extractor_layers))]
    return gru_changes(module, *names)


LIBRARY = Library(
    name="torch-rechub",
    distribution="torch-rechub",
    versions=("0.9.0",),
    roots=("torch_rechub",),
    parts={(_MODULE, "AUGRU"): augru, (_MODULE, "DIEN"): dien},
)
