"""Attention scores as an operator: how to call it, its autograd, and its mathematics in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dien_fast.ops.backend import LOADED, Kernels
from dien_fast.ops.dispatch import (
    define,
    eager_autograd,
    needs_gradient,
    refuse_double_backward,
    register,
    run,
    run_backward,
    vector_padded,
)
from dien_fast.ops.layouts import owners_of

# As in csrc/library.cpp.
SCHEMA = (
    "attention_scores(Tensor query, Tensor keys, Tensor offsets, Tensor? key_start, Tensor[] parameters, "
    "Tensor[] running, Tensor? seed, SymInt max_length, int[] layers, float[] epsilons, float dropout, "
    "bool training, bool save) -> (Tensor scores, Tensor statistics, Tensor saved)"
)

KERNELS = Kernels("attention_scores")

MAX_LAYERS = 8  # as csrc/interest.h

# The activations by the numbers of its enum. A layer that is normalised has NORMALISED more.
IDENTITY, RELU, PRELU, SIGMOID, DICE = range(5)
NORMALISED = 8


class ScoreLayers(NamedTuple):
    """The arguments of the operator that describe its MLP.

    Attributes:
        parameters: of each layer weight ``[C, I]`` and bias ``[C]``; scale and shift ``[C]`` of its normalisation;
            its slope (one number, or ``[C]`` of Dice), scale and shift of the normalisation in Dice; then weight
            and bias of the last product.
        running: in evaluation, mean and variance of every normalisation; empty in training.
        layers: an activation of each layer, ``NORMALISED`` more if it is normalised.
        epsilons: of every normalisation.
        dropout: probability.
        training: whether the normalisations use the batch's statistics and dropout drops.
    """

    parameters: list[Tensor]
    running: list[Tensor]
    layers: list[int]
    epsilons: list[float]
    dropout: float
    training: bool


def attention_scores(
    query: Tensor,
    keys: Tensor,
    offsets: Tensor,
    max_length: int,
    mlp: ScoreLayers,
    key_start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score ragged histories with an MLP on [q, k, q - k, q * k] and a softmax; equations in csrc/interest.h.

    Args:
        query: candidates ``[B, D]``.
        keys: ``[N, D]``.
        offsets: ``[B + 1]`` int64, from 0 to N.
        max_length: the width that batch statistics count padding up to.
        mlp: its layers.
        key_start: first row of each history in ``keys`` ``[B]``, where histories share rows; without gradient and
            in evaluation alone.

    Returns:
        Scores ``[N]``; in training mean and unbiased variance of every normalisation in turn ``[2 sum of C]``.
    """
    seed = None
    if mlp.training and mlp.dropout > 0:
        seed = torch.randint(torch.iinfo(torch.int64).max, (1,), device=query.device)
    save = key_start is None and needs_gradient(query, keys, *mlp.parameters)
    arguments = (
        query.contiguous(),
        keys.contiguous(),
        offsets,
        key_start,
        [parameter.contiguous() for parameter in mlp.parameters],
        mlp.running,
        seed,
        max_length,
        mlp.layers,
        mlp.epsilons,
        mlp.dropout,
        mlp.training,
        save,
    )
    scores, statistics, _ = run(_OPERATOR, _EAGER, save, arguments)
    return scores, statistics


# ---- In plain PyTorch ----


class SplitWeight(NamedTuple):
    """A weight W of the first layer, split: W [q; k; q - k; q * k] = query q + (key + product diag(q)) k."""

    query: Tensor  # [C, D]
    key: Tensor  # [C, D]
    product: Tensor  # [C, D]

    @staticmethod
    def of(weight: Tensor) -> SplitWeight:
        """Split a weight ``[C, 4 D]``."""
        w_q, w_k, w_difference, w_product = weight.chunk(4, dim=1)
        return SplitWeight(w_q + w_difference, w_k - w_difference, w_product)


def plain_attention_scores(
    query: Tensor,
    keys: Tensor,
    offsets: Tensor,
    padded_length: int | None,
    first: tuple[Tensor, Tensor | None],
    hidden_layers: Callable[[Tensor, Tensor | None], Tensor],
    last: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the scores that :func:`attention_scores` returns, for any MLP.

    Args:
        query: candidates ``[B, D]``.
        keys: ``[N, D]``.
        offsets: ``[B + 1]`` int64, from 0 to N.
        padded_length: the width T that batch statistics count padding up to; None without batch statistics. All
            steps between a history's end and T have the row [q, 0, q, 0], which is computed once.
        first: weight ``[C, 4 D]`` and bias ``[C]`` of the first layer.
        hidden_layers: all that follows the first product. Its arguments are rows ``[M, C]`` and the share of the
            batch that each stands for ``[M]``, None without batch statistics.
        last: maps what the hidden layers return to logits ``[N, 1]``.

    Returns:
        Scores ``[N]``; those of each history sum to 1.
    """
    rows, batch = keys.size(0), offsets.numel() - 1
    owner = owners_of(offsets, rows)
    weight, bias = first
    split = SplitWeight.of(weight)
    from_query = F.linear(query, split.query, bias)
    hidden = from_query[owner] + F.linear(
        torch.cat([keys, query[owner] * keys], dim=1), torch.cat([split.key, split.product], dim=1)
    )
    shares = None
    if padded_length is not None:
        hidden = torch.cat([hidden, from_query])
        padding = (padded_length - (offsets[1:] - offsets[:-1])).to(hidden.dtype)
        shares = torch.cat([padding.new_ones(rows), padding]) / (batch * padded_length)
    logits = last(hidden_layers(hidden, shares)[:rows]).squeeze(1) / query.size(1) ** 0.5
    return segment_softmax(logits, owner, batch)


def segment_softmax(logits: Tensor, owner: Tensor, segments: int) -> Tensor:
    """Softmax of ``logits`` ``[N]`` within each of the ``segments`` that ``owner`` ``[N]`` assigns."""
    largest = logits.new_full((segments,), -torch.inf)
    largest = largest.scatter_reduce(0, owner, logits.detach(), "amax")
    powers = torch.exp(logits - largest[owner])
    return powers / powers.new_zeros(segments).index_add(0, owner, powers)[owner]


def weighted_moments(x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean ``[C]``, centred rows and variance of rows ``[M, C]`` with ``shares`` ``[M]`` of a batch."""
    mean = shares @ x
    centred = x - mean
    return mean, centred, shares @ (centred * centred)


def dice(x: Tensor, share: Tensor, slope: Tensor) -> Tensor:
    """Return Dice of ``x`` of which ``share`` passes and the rest is multiplied by ``slope``."""
    return slope * (1 - share) * x + share * x


class _Layers:
    """The hidden layers that a call of the operator describes, in plain PyTorch."""

    def __init__(self, mlp: ScoreLayers, seed: Tensor | None, count: int) -> None:
        self.codes, self.dropout, self.count = mlp.layers, mlp.dropout, count
        self.values: Iterator[Tensor] = iter(mlp.parameters)
        self.running, self.epsilons = iter(mlp.running), iter(mlp.epsilons)
        self.statistics: list[Tensor] = []
        self.seed = seed if mlp.training and mlp.dropout > 0 else None

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, next(self.values), next(self.values))

    def normalise(self, x: Tensor, shares: Tensor | None) -> Tensor:
        if shares is None:
            mean, variance = next(self.running), next(self.running)
            centred = x - mean
        else:
            mean, centred, variance = weighted_moments(x, shares)
            self.statistics += [mean.detach(), variance.detach() * self.count / (self.count - 1)]
        normalised = centred * torch.rsqrt(variance + next(self.epsilons))
        return normalised * next(self.values) + next(self.values)

    def activate(self, x: Tensor, shares: Tensor | None, activation: int) -> Tensor:
        if activation == RELU:
            return F.relu(x)
        if activation == PRELU:
            return F.prelu(x, next(self.values))
        if activation == SIGMOID:
            return torch.sigmoid(x)
        if activation == DICE:
            slope = next(self.values)
            return dice(x, torch.sigmoid(self.normalise(x, shares)), slope)
        return x

    def __call__(self, x: Tensor, shares: Tensor | None) -> Tensor:
        """Run all that follows the first product."""
        generator = None
        if self.seed is not None:
            generator = torch.Generator(x.device).manual_seed(int(self.seed))
        for index, code in enumerate(self.codes):
            if index > 0:
                x = self.product(x)
            if code >= NORMALISED:
                x = self.normalise(x, shares)
            x = self.activate(x, shares, code % NORMALISED)
            if generator is not None:
                kept = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=generator)
                x = x * kept / (1 - self.dropout)
        return x


def fallback(
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
    """Return what the operator returns; autograd finds the gradients, so nothing is kept for them."""
    if key_start is not None:
        owner = owners_of(offsets, int(offsets[-1]))
        step = torch.arange(owner.numel(), device=offsets.device) - offsets[owner]
        keys = keys[key_start[owner] + step]
    mlp = ScoreLayers(parameters, running, layers, epsilons, dropout, training)
    hidden = _Layers(mlp, seed, query.size(0) * max_length)
    first = next(hidden.values), next(hidden.values)
    padded_length = max_length if training and epsilons else None
    scores = plain_attention_scores(query, keys, offsets, padded_length, first, hidden, hidden.product)
    none = scores.new_empty(0)
    return scores, torch.cat(hidden.statistics) if hidden.statistics else none, none.clone()


# ---- Shapes and autograd ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, keys, offsets, key_start, parameters, running, seed, *rest = inputs
    scores, statistics, saved = output
    ctx.mark_non_differentiable(statistics, saved)
    ctx.set_materialize_grads(False)
    ctx.rest, ctx.shared, ctx.counts = rest, key_start is not None, (len(parameters), len(running))
    ctx.save_for_backward(scores, query, keys, offsets, seed, saved, *parameters, *running)


def _backward(ctx: Any, dscores: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if ctx.shared:
        raise NotImplementedError("attention_scores has no gradient where histories share keys")
    scores, query, keys, offsets, seed, saved, *lists = ctx.saved_tensors
    parameters, running = lists[: ctx.counts[0]], lists[ctx.counts[0] :]
    max_length, layers, epsilons, dropout, training, _save = ctx.rest
    # Of seed, max_length, layers, epsilons, dropout, training and save. An empty list argument takes an empty list
    # of gradients.
    none: tuple[Any, ...] = (None, None, None, None if epsilons else [], None, None, None)
    if dscores is None:
        return None, None, None, None, [None] * len(parameters), [None] * len(running), *none
    dquery, dkeys, dparameters = run_backward(
        torch.ops.dien_fast.attention_scores_backward.default,
        dscores.contiguous(),
        scores,
        query,
        keys,
        offsets,
        parameters,
        running,
        seed,
        saved,
        max_length,
        layers,
        epsilons,
        dropout,
        training,
    )
    return dquery, dkeys, None, None, dparameters, [None] * len(running), *none


def _lines(size: int, dtype: torch.dtype) -> int:
    """Return ``size`` numbers up to whole cache lines."""
    numbers = 64 // dtype.itemsize
    return (size + numbers - 1) // numbers * numbers


def _fake(
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
    rows = keys.size(0)
    if key_start is not None:
        rows = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    widths, channels, place = [], 0, 0
    for code in layers:
        widths.append(parameters[place].size(0))
        activation, normalised = code % NORMALISED, code >= NORMALISED
        place += 2 + 2 * normalised + {PRELU: 1, DICE: 3}.get(activation, 0)
        channels += 2 * widths[-1] * (normalised + (activation == DICE))
    if query.device.type == "cuda":  # keeps mean and variance of every layer, nothing of the rows
        size = 2 * sum(widths) if training and epsilons else 0
    else:
        size = 0
        for width in widths:
            padded = vector_padded(width, widths, query.dtype)
            size += _lines((rows + query.size(0)) * padded, query.dtype) + _lines(2 * padded, query.dtype)
    return (
        query.new_empty(rows),
        query.new_empty(channels if training else 0),
        query.new_empty(size if save else 0),
    )


def _fake_backward(
    dscores: Tensor,
    scores: Tensor,
    query: Tensor,
    keys: Tensor,
    offsets: Tensor,
    parameters: list[Tensor],
    *_: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (
        query.new_empty(query.shape),
        query.new_empty(keys.shape),
        [parameter.new_empty(parameter.shape) for parameter in parameters],
    )


if LOADED:
    register("attention_scores", _fake, _backward, _setup)
    register("attention_scores_backward", _fake_backward, refuse_double_backward("attention_scores"))
else:
    define(SCHEMA, fallback)
_OPERATOR = torch.ops.dien_fast.attention_scores.default
_EAGER = eager_autograd("attention_scores", _setup, _backward, spread=4)
