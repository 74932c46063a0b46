"""The interest layer of the article's listing: prediction-flow has it, and people copy it into their own modules.

An extractor nn.GRU, an attention whose MLP may normalise over the padding as well, a second recurrence, and an
auxiliary net: what :class:`dien_fast.Interest` computes, under other attribute names. A copy is recognised by
the name of its class, in whatever module, and by running it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dien_fast.ops.layouts import check_lengths
from dien_fast.patches.layers import (
    Inside,
    evolve,
    inside,
    mlp_scores,
    needs_fast,
    next_event_loss,
    only_sequential,
    run_gru,
    runs_ragged,
)
from dien_fast.patches.library import Change, Plan, Planner, dynamic_gru, gru_changes
from dien_fast.patches.probe import RefusedError, check_same
from dien_fast.patches.recurrence import PackedGRU, PackedLoop
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import uniform
from dien_fast.ragged import Ragged
from dien_fast.reference.layers import Dice

_PARTS = {"interest_extractor", "interest_evolution", "attention", "auxiliary_net"}


class Details(NamedTuple):
    """What a fast layer keeps in its class.

    Attributes:
        found: the classes of its parts when it was compared.
        dice: the class of its Dice activations.
    """

    found: Inside
    dice: type[nn.Module]


class ListingInterest(Accelerated):
    """Interest on ragged rows; the original's own forward where that does not apply."""

    gru_type: str
    use_negsampling: bool
    interest_extractor: Any
    interest_evolution: Any
    attention: Any
    auxiliary_net: Any

    def forward(
        self, query: Tensor, keys: Tensor, keys_length: Tensor, neg_keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results as the original's."""
        details: Details = self._dien_fast.details
        needs_negatives = self.use_negsampling and neg_keys is None
        if needs_negatives or not self._are_fast() or not runs_ragged(self, details.found, keys, query):
            return super().forward(query, keys, keys_length, neg_keys)
        lengths = check_lengths("keys_length", keys_length.reshape(-1), keys.size(0), keys.size(1))
        states = Ragged.from_padded(keys, lengths)
        rows = states.values
        states, _ = run_gru(self.interest_extractor, states)
        loss = None
        if self.use_negsampling:
            assert neg_keys is not None
            negatives = Ragged.rows_of(neg_keys, states.offsets)
            layers = only_sequential(self.auxiliary_net)
            loss = next_event_loss(layers, states, rows, negatives, from_probabilities=True)
        if self.gru_type == "GRU":
            states, _ = run_gru(self.interest_evolution, states)
        attention = self.attention
        scores = mlp_scores(
            query, states, only_sequential(attention.mlp), attention.fc, attention.training, details.dice
        )
        if scores is None:
            # A dropout draws its mask at the padded shape. The softmax of an empty history would be NaN.
            attended = attention.forward(query, states.pad(), lengths.clamp(min=1))
            if self.gru_type == "GRU":
                return attended.view(query.shape), loss
            scores = Ragged.rows_of(attended, states.offsets)
        return evolve(self.interest_evolution, self.gru_type, states, scores), loss

    def _are_fast(self) -> bool:
        return isinstance(self.interest_extractor, PackedGRU) and isinstance(
            self.interest_evolution, (PackedGRU, PackedLoop)
        )


def interest(module: Any) -> Plan:
    """Plan an Interest: its nn.GRU, then the whole layer."""
    names = [name for name in ("interest_extractor", "interest_evolution") if _is_gru(module, name)]
    return gru_changes(module, *names)._replace(whole=lambda: _whole(module))


def _is_gru(module: Any, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.GRU)


def _whole(module: Any) -> Change:
    held = {name for name, _ in module.named_children()}
    attributes = [name for name in ("gru_type", "use_negsampling") if not hasattr(module, name)]
    if not held <= _PARTS or not held >= _PARTS - {"auxiliary_net"} or attributes:
        raise RefusedError(
            f"as a whole, because it must hold {sorted(_PARTS)} and no more, it holds {sorted(held)}"
        )
    if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
        raise RefusedError("as a whole, because it has parameters of its own")
    needs_fast(module, "interest_extractor", "interest_evolution")
    if {name for name, _ in module.attention.named_children()} != {"mlp", "fc"}:
        raise RefusedError("as a whole, because its attention must hold mlp and fc")
    layers = only_sequential(module.attention.mlp)
    if module.use_negsampling:
        only_sequential(module.auxiliary_net)
    found = [type(layer) for layer in layers if type(layer).__name__ == "Dice"]
    recipe = Recipe(ListingInterest, type(module), Details(inside(module), found[0] if found else Dice))
    size = module.interest_extractor.input_size

    def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
        lengths = torch.tensor([5, 2, 1, 4])
        events = [uniform(generator, 4, 5, size) for _ in range(2)]
        return [(uniform(generator, 4, size), events[0], lengths, events[1] if module.use_negsampling else None)]

    check_same(module, recipe, draw, tolerance=1e-9)
    return Change(
        module,
        recipe,
        "interest layer without its padding; empty histories and a batch of one work, which the original refuses",
    )


COPIES: dict[str, Planner] = {"DynamicGRU": dynamic_gru, "DynamicRNN": dynamic_gru, "Interest": interest}
