"""The interest layer's operators in plain PyTorch, so that exported code that names them runs without the library.

Eager modules do not come here: without the library they run their own layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# As in csrc/library.cpp.
SCHEMAS = (
    "attention_scores(Tensor query, Tensor keys, Tensor offsets, Tensor? key_start, Tensor[] parameters, "
    "Tensor[] running, Tensor? seed, SymInt max_length, int[] layers, float[] epsilons, float dropout, "
    "bool training, bool save) -> (Tensor scores, Tensor statistics, Tensor saved)",
    "auxiliary_loss(Tensor states, Tensor events, Tensor negatives, Tensor offsets, Tensor[] parameters, "
    "bool save) -> (Tensor loss, Tensor dstates, Tensor devents, Tensor dnegatives, Tensor dparameters)",
    "rows_from_padded(Tensor padded, Tensor offsets) -> Tensor",
    "padded_from_rows(Tensor values, Tensor offsets, SymInt steps) -> Tensor",
    "weighted_sum(Tensor values, Tensor weights, Tensor offsets) -> Tensor",
)
_IDENTITY, _RELU, _PRELU, _SIGMOID, _DICE = range(5)  # as dien_fast.ops.attention_scores, which imports this
_NORMALISED = 8


def attention_scores(
    query: Tensor,
    keys: Tensor,
    offsets: Tensor,
    key_start: Tensor | None,
    parameters: list[Tensor],
    running: list[Tensor],
    seed: Tensor | None,
    max_length: int,
    layers: list[int],
    epsilons: list[float],
    dropout: float,
    training: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score ragged histories, as csrc/interest.h says."""
    lengths, owner, step = _places(offsets)
    rows = owner.numel()
    k = keys if key_start is None else keys[key_start[owner] + step]
    x = torch.cat([query[owner], k, query[owner] - k, query[owner] * k], dim=1)
    weights = None
    if training and epsilons:
        zero = torch.zeros_like(query)
        x = torch.cat([x, torch.cat([query, zero, query, zero], dim=1)])
        weights = torch.cat([torch.ones_like(step), max_length - lengths]).to(x.dtype)
    values, moments, eps = iter(parameters), iter(running), iter(epsilons)
    statistics: list[Tensor] = []

    def normalise(x: Tensor) -> Tensor:
        if weights is None:
            mean, variance = next(moments), next(moments)
        else:
            count = query.size(0) * max_length
            mean = weights @ x / count
            variance = weights @ (x - mean).square() / count
            statistics.extend((mean.detach(), variance.detach() * count / (count - 1)))
        scaled = (x - mean) * torch.rsqrt(variance + next(eps)) * next(values)
        return scaled + next(values)

    generator = None
    if training and dropout > 0:
        assert seed is not None
        generator = torch.Generator(x.device).manual_seed(int(seed))
    for code in layers:
        x = F.linear(x, next(values), next(values))
        if code >= _NORMALISED:
            x = normalise(x)
        activation = code % _NORMALISED
        if activation == _RELU:
            x = F.relu(x)
        elif activation == _PRELU:
            x = F.prelu(x, next(values))
        elif activation == _SIGMOID:
            x = torch.sigmoid(x)
        elif activation == _DICE:
            slope = next(values)
            p = torch.sigmoid(normalise(x))
            x = x * (slope + (1 - slope) * p)
        if generator is not None:
            x = x * torch.empty_like(x).bernoulli_(1 - dropout, generator=generator) / (1 - dropout)
    logits = F.linear(x[:rows], next(values), next(values)).squeeze(1) / query.size(1) ** 0.5
    largest = logits.new_full((lengths.numel(),), -torch.inf)
    largest = largest.scatter_reduce(0, owner, logits.detach(), "amax")
    powers = torch.exp(logits - largest[owner])
    scores = powers / powers.new_zeros(lengths.numel()).index_add(0, owner, powers)[owner]
    none = x.new_empty(0)
    return scores, torch.cat(statistics) if statistics else none, none.clone()


def auxiliary_loss(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: list[Tensor], save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the loss; its gradients come from autograd."""
    lengths, owner, step = _places(offsets)
    before = torch.nonzero(step + 1 < lengths[owner]).squeeze(1)
    *hidden, weight, bias = parameters
    total = states.new_zeros(())
    for following, sign in ((events, -1.0), (negatives, 1.0)):
        x = torch.cat([states[before], following[before + 1]], dim=1)
        for layer in range(0, len(hidden), 2):
            x = torch.sigmoid(F.linear(x, hidden[layer], hidden[layer + 1]))
        total = total + F.softplus(sign * F.linear(x, weight, bias)).sum()
    none = [states.new_empty(0) for _ in range(4)]
    return total / max(2 * before.numel(), 1), none[0], none[1], none[2], none[3]


def rows_from_padded(padded: Tensor, offsets: Tensor) -> Tensor:
    """Return the rows that are there."""
    _, owner, step = _places(offsets)
    return padded[owner, step]


def padded_from_rows(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """Return rows padded with zeros."""
    lengths, owner, step = _places(offsets)
    padded = values.new_zeros((lengths.numel(), steps, *values.shape[1:]))
    return padded.index_put((owner, step), values)


def weighted_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return each history's sum of weighted rows."""
    lengths, owner, _ = _places(offsets)
    zero = values.new_zeros(lengths.numel(), values.size(1))
    return zero.index_add(0, owner, values * weights.unsqueeze(1))


def define() -> torch.library.Library:
    """Define the operators; they last as long as what this returns."""
    library = torch.library.Library("dien_fast", "FRAGMENT")
    for schema in SCHEMAS:
        name = schema.partition("(")[0]
        library.define(schema)
        library.impl(name, globals()[name], "CompositeImplicitAutograd")
    return library


def _places(offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lengths ``[B]``, and history and step of each row ``[N]``."""
    lengths = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(lengths.numel(), device=offsets.device), lengths)
    return lengths, owner, torch.arange(owner.numel(), device=offsets.device) - offsets[owner]
