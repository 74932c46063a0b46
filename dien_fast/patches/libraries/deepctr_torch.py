"""DeepCTR-Torch 0.3.0 (deepctr_torch/layers/sequence.py, models/dien.py).

Its AUGRU is ``augru`` with gates (r | u | n). AUGRUCell registers one Parameter as both biases: it gets the sum of
both gradients, as before, because both are read from the module in every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dien_fast.ops.layouts import check_lengths
from dien_fast.patches.layers import (
    evolve,
    inside,
    mlp_scores,
    needs_fast,
    next_event_loss,
    run_gru,
    runs_ragged,
)
from dien_fast.patches.library import Change, Library, Plan, dynamic_gru, gru_changes
from dien_fast.patches.probe import check_same
from dien_fast.patches.recurrence import PackedGRU, PackedLoop
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import uniform
from dien_fast.ragged import Ragged


def _layers(dnn: Any) -> list[nn.Module]:
    """Return the layers of a DNN in the order in which they run."""
    layers: list[nn.Module] = []
    for index, linear in enumerate(dnn.linears):
        layers += [linear, *([dnn.bn[index]] if dnn.use_bn else []), dnn.activation_layers[index], dnn.dropout]
    return layers


class Extractor(Accelerated):
    """InterestExtractor on ragged rows."""

    gru: Any
    use_neg: bool
    auxiliary_net: Any

    def forward(self, keys: Tensor, keys_length: Tensor, neg_keys: Tensor | None = None) -> Any:
        """Arguments and results as the original's."""
        if not isinstance(self.gru, PackedGRU) or not runs_ragged(self, self._dien_fast.details, keys):
            return super().forward(keys, keys_length, neg_keys)
        lengths = check_lengths("keys_length", keys_length, keys.size(0), keys.size(1))
        rows = Ragged.from_padded(keys, lengths)
        states, _ = run_gru(self.gru, rows)
        loss = torch.zeros((1,), device=keys.device)
        if self.use_neg and neg_keys is not None and bool((lengths > 1).any()):
            negatives = Ragged.rows_of(neg_keys, rows.offsets)
            layers = _layers(self.auxiliary_net)[:-2]
            loss = next_event_loss(layers, states, rows.values, negatives, from_probabilities=True)
        # Histories without a step are left out.
        present = states.offsets[1:][lengths > 0]
        return states._replace(offsets=torch.cat([states.offsets[:1], present])).pad(), loss


class Evolving(Accelerated):
    """InterestEvolving on ragged rows."""

    gru_type: str
    attention: Any
    interest_evolution: Any

    def forward(self, query: Tensor, keys: Tensor, keys_length: Tensor, mask: Any = None) -> Tensor:
        """Arguments and results as the original's."""
        fast = isinstance(self.interest_evolution, (PackedGRU, PackedLoop))
        if not fast or not runs_ragged(self, self._dien_fast.details, query, keys):
            return super().forward(query, keys, keys_length, mask)
        interest = torch.zeros(query.shape, device=query.device)
        present = keys_length > 0
        lengths = keys_length[present]
        if lengths.numel() == 0:
            return interest
        lengths = check_lengths("keys_length", lengths, keys.size(0), keys.size(1))
        interest[present] = self._evolve(query[present], keys, lengths).to(interest.dtype)
        return interest

    def _evolve(self, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """Return the interest ``[b, H]`` of histories with a step."""
        states = Ragged.from_padded(keys, lengths)
        attention = self.attention
        if self.gru_type == "GRU":
            states, _ = run_gru(self.interest_evolution, states)
        scores = None
        if attention.weight_normalization and not attention.supports_masking:
            unit = attention.local_att
            scores = mlp_scores(query, states, _layers(unit.dnn), unit.dense, unit.training, divisor=1.0)
        if scores is None:
            padded = states.pad() if self.gru_type == "GRU" else keys
            attended = attention.forward(query.unsqueeze(1), padded, lengths.unsqueeze(1)).squeeze(1)
            if self.gru_type == "GRU":
                return attended
            scores = Ragged.rows_of(attended, states.offsets)
        return evolve(self.interest_evolution, self.gru_type, states, scores)


def interest_extractor(module: Any) -> Plan:
    """Plan an InterestExtractor."""

    def whole() -> Change:
        needs_fast(module, "gru")
        recipe = Recipe(Extractor, type(module), inside(module))
        size = module.gru.input_size

        def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
            lengths = torch.tensor([5, 0, 1, 4])
            return [(uniform(generator, 4, 5, size), lengths, uniform(generator, 4, 5, size))]

        check_same(module, recipe, draw, tolerance=1e-9)
        what = "extractor and auxiliary loss without padding; a batch of empty histories works, which raised"
        return Change(module, recipe, what)

    return gru_changes(module, "gru")._replace(whole=whole)


def interest_evolving(module: Any) -> Plan:
    """Plan an InterestEvolving."""

    def whole() -> Change:
        needs_fast(module, "interest_evolution")
        recipe = Recipe(Evolving, type(module), inside(module))
        size = module.interest_evolution.input_size

        def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
            lengths = torch.tensor([5, 0, 1, 4])
            return [(uniform(generator, 4, size), uniform(generator, 3, 5, size), lengths)]

        check_same(module, recipe, draw, tolerance=1e-9)
        return Change(module, recipe, "attention and evolution without padding")

    names = ["interest_evolution"] if module.gru_type in ("GRU", "AIGRU") else []
    return gru_changes(module, *names)._replace(whole=whole)


LIBRARY = Library(
    name="deepctr-torch",
    distribution="deepctr-torch",
    versions=("0.3.0",),
    roots=("deepctr_torch",),
    parts={
        ("deepctr_torch.layers.sequence", "DynamicGRU"): dynamic_gru,
        ("deepctr_torch.models.dien", "InterestExtractor"): interest_extractor,
        ("deepctr_torch.models.dien", "InterestEvolving"): interest_evolving,
    },
)
