"""RecBole 1.2.1 (recbole/model/sequential_recommender/dien.py, recbole/model/layers.py).

Its AUGRU is ``augru`` with gates (r | u | n). The layers of its auxiliary net have no activations, so that
together they are one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dien_fast.ops.layouts import check_lengths
from dien_fast.patches.layers import (
    evolve,
    inside,
    mlp_scores,
    needs_fast,
    next_event_loss,
    only_sequential,
    run_gru,
    runs_ragged,
)
from dien_fast.patches.library import Change, Library, Plan, dynamic_gru, gru_changes
from dien_fast.patches.probe import check_same
from dien_fast.patches.recurrence import PackedGRU, PackedLoop
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import uniform
from dien_fast.ragged import Ragged

_MODULE = "recbole.model.sequential_recommender.dien"


class Extractor(Accelerated):
    """InterestExtractorNetwork on ragged rows."""

    gru: Any
    auxiliary_net: Any

    def forward(self, keys: Tensor, keys_length: Tensor, neg_keys: Tensor | None = None) -> Any:
        """Arguments and results as the original's."""
        if (
            neg_keys is None
            or not isinstance(self.gru, PackedGRU)
            or not runs_ragged(self, self._dien_fast.details, keys, neg_keys)
        ):
            return super().forward(keys, keys_length, neg_keys)
        rows = Ragged.from_padded(keys, check_lengths("keys_length", keys_length, keys.size(0), keys.size(1)))
        states, _ = run_gru(self.gru, rows)
        negatives = Ragged.rows_of(neg_keys, rows.offsets)
        layers = only_sequential(self.auxiliary_net)
        loss = next_event_loss(layers, states, rows.values, negatives, from_probabilities=False)
        return states.pad(), loss


class Evolving(Accelerated):
    """InterestEvolvingLayer on ragged rows."""

    gru: str
    attention_layer: Any
    dynamic_rnn: Any

    def forward(self, queries: Tensor, keys: Tensor, keys_length: Tensor) -> Tensor:
        """Arguments and results as the original's."""
        fast = isinstance(self.dynamic_rnn, (PackedGRU, PackedLoop))
        if not fast or not runs_ragged(self, self._dien_fast.details, queries, keys):
            return super().forward(queries, keys, keys_length)
        lengths = check_lengths("keys_length", keys_length, keys.size(0), keys.size(1))
        states = Ragged.from_padded(keys, lengths)
        attention = self.attention_layer
        if self.gru == "GRU":
            states, _ = run_gru(self.dynamic_rnn, states)
        scores = None
        if attention.softmax_stag:
            layers = only_sequential(attention.att_mlp_layers)
            scores = mlp_scores(queries, states, layers, attention.dense, attention.training)
        if scores is None:
            # An empty history would be the softmax of nothing.
            padded = states.pad() if self.gru == "GRU" else keys
            attended = attention.forward(queries, padded, lengths.clamp(min=1)).squeeze(1)
            if self.gru == "GRU":
                return attended
            scores = Ragged.rows_of(attended, states.offsets)
        return evolve(self.dynamic_rnn, self.gru, states, scores)


def interest_extractor(module: Any) -> Plan:
    """Plan an InterestExtractorNetwork."""

    def whole() -> Change:
        needs_fast(module, "gru")
        recipe = Recipe(Extractor, type(module), inside(module))
        size = module.gru.input_size

        def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
            lengths = torch.tensor([5, 2, 1, 4])
            return [(uniform(generator, 4, 5, size), lengths, uniform(generator, 4, 5, size))]

        check_same(module, recipe, draw, tolerance=1e-9)
        what = (
            "extractor and auxiliary loss without padding; empty histories work, which raised, and the loss of "
            "histories that all have one step is 0, where it was NaN"
        )
        return Change(module, recipe, what)

    return gru_changes(module, "gru")._replace(whole=whole)


def interest_evolving(module: Any) -> Plan:
    """Plan an InterestEvolvingLayer."""

    def whole() -> Change:
        needs_fast(module, "dynamic_rnn")
        recipe = Recipe(Evolving, type(module), inside(module))
        size, steps = module.dynamic_rnn.input_size, module.mask_mat.size(1)

        def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
            lengths = torch.tensor([5, 2, 1, 4]).clamp(max=steps)
            return [(uniform(generator, 4, size), uniform(generator, 4, steps, size), lengths)]

        check_same(module, recipe, draw, tolerance=1e-9)
        return Change(
            module, recipe, "attention and evolution without padding; empty histories work, which raised"
        )

    names = ["dynamic_rnn"] if module.gru in ("GRU", "AIGRU") else []
    return gru_changes(module, *names)._replace(whole=whole)


LIBRARY = Library(
    name="recbole",
    distribution="recbole",
    versions=("1.2.1",),
    roots=("recbole",),
    parts={
        (_MODULE, "DynamicRNN"): dynamic_gru,
        (_MODULE, "InterestExtractorNetwork"): interest_extractor,
        (_MODULE, "InterestEvolvingLayer"): interest_evolving,
    },
)
