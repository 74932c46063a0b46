"""Gives the interest layer's native operators autograd and fake implementations, and runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dien_fast.ops import attention_gru as _ops
from dien_fast.ops import fallback as _interest_fallback
from dien_fast.ops.attention_gru import vector_padded, wants_native

_NATIVE_DTYPES = (torch.float32, torch.float64)

MAX_LAYERS = 8  # as csrc/interest.h

# As its enum; a layer that is normalised has 8 more.
IDENTITY, RELU, PRELU, SIGMOID, DICE = range(5)
NORMALISED = 8


def runs_natively(*tensors: Tensor) -> bool:
    """Whether native operators are wanted and take these tensors: on the CPU, float32 or float64, all alike."""
    first = tensors[0]
    return (
        all(tensor.is_cpu and tensor.dtype == first.dtype for tensor in tensors)
        and first.dtype in _NATIVE_DTYPES
        and wants_native()
    )


class ScoreLayers(NamedTuple):
    """The arguments of the attention operator that describe its MLP.

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


def _through_dispatcher() -> bool:
    """Whether something other than eager autograd watches the operators."""
    return (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or forward_ad._current_level >= 0
    )


def _below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"{name} has no second derivative; use_backend('reference') has one")

    return refuse


def _differentiate(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Run a backward operator: through autograd with create_graph, so that it says that there is no more."""
    return operator(*arguments) if torch.is_grad_enabled() else _below_autograd(operator, *arguments)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


# ---- Attention scores ----


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
        seed = torch.randint(torch.iinfo(torch.int64).max, (1,))
    save = key_start is None and _needs_gradient(query, keys, *mlp.parameters)
    rest = (max_length, mlp.layers, mlp.epsilons, mlp.dropout, mlp.training, save)
    parameters = [parameter.contiguous() for parameter in mlp.parameters]
    query, keys = query.contiguous(), keys.contiguous()
    operator = torch.ops.dien_fast.attention_scores.default
    if save and not _through_dispatcher():
        scores, statistics = _AttentionScores.apply(query, keys, offsets, mlp.running, seed, rest, *parameters)
        return scores, statistics
    arguments = (query, keys, offsets, key_start, parameters, mlp.running, seed, *rest)
    run = operator if _through_dispatcher() else lambda *a: _below_autograd(operator, *a)
    scores, statistics, _ = run(*arguments)
    return scores, statistics


class _AttentionScores(torch.autograd.Function):
    """The operator's autograd without the dispatcher's way to it."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        offsets: Tensor,
        running: list[Tensor],
        seed: Tensor | None,
        rest: tuple[Any, ...],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scores, statistics, saved = _below_autograd(
            torch.ops.dien_fast.attention_scores.default,
            query,
            keys,
            offsets,
            None,
            list(parameters),
            running,
            seed,
            *rest,
        )
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.running, ctx.rest = running, rest
        ctx.save_for_backward(scores, query, keys, offsets, seed, saved, *parameters)
        return scores, statistics

    @staticmethod
    def backward(ctx: Any, dscores: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        scores, query, keys, offsets, seed, saved, *parameters = ctx.saved_tensors
        if dscores is None:
            return (None,) * (6 + len(parameters))
        max_length, layers, epsilons, dropout, training, _ = ctx.rest
        dquery, dkeys, dparameters = _differentiate(
            torch.ops.dien_fast.attention_scores_backward.default,
            dscores.contiguous(),
            scores,
            query,
            keys,
            offsets,
            parameters,
            ctx.running,
            seed,
            saved,
            max_length,
            layers,
            epsilons,
            dropout,
            training,
        )
        return dquery, dkeys, None, None, None, None, *dparameters


def _scores_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, keys, offsets, key_start, parameters, running, seed, *rest = inputs
    scores, statistics, saved = output
    ctx.mark_non_differentiable(statistics, saved)
    ctx.set_materialize_grads(False)
    ctx.rest, ctx.shared, ctx.counts = rest, key_start is not None, (len(parameters), len(running))
    ctx.save_for_backward(scores, query, keys, offsets, seed, saved, *parameters, *running)


def _scores_backward(ctx: Any, dscores: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if ctx.shared:
        raise NotImplementedError("attention_scores has no gradient where histories share keys")
    scores, query, keys, offsets, seed, saved, *lists = ctx.saved_tensors
    parameters, running = lists[: ctx.counts[0]], lists[ctx.counts[0] :]
    # seed, max_length, layers, epsilons, dropout, training, save; a list without elements has none to say None of.
    none: tuple[Any, ...] = (None, None, None, None if ctx.rest[2] else [], None, None, None)
    if dscores is None:
        return None, None, None, None, [None] * len(parameters), [None] * len(running), *none
    max_length, layers, epsilons, dropout, training, _save = ctx.rest
    dquery, dkeys, dparameters = torch.ops.dien_fast.attention_scores_backward.default(
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
    numbers = 64 // dtype.itemsize
    return (size + numbers - 1) // numbers * numbers


def _fake_scores(
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
    size = 0
    for width in widths:
        padded = vector_padded(width, widths, query.dtype)
        size += _lines((rows + query.size(0)) * padded, query.dtype) + _lines(2 * padded, query.dtype)
    return (
        query.new_empty(rows),
        query.new_empty(channels if training else 0),
        query.new_empty(size if save else 0),
    )


def _fake_scores_backward(
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


# ---- Auxiliary loss ----


def auxiliary_loss(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """Mean binary cross entropy of telling each next event from a negative by the state before, a scalar.

    Args:
        states: ``[N, D]``, ragged.
        events: what followed was clicked ``[N, D]``; the first of each history is not looked at.
        negatives: what was not ``[N, D]``.
        offsets: ``[B + 1]`` int64, from 0 to N.
        parameters: weight and bias of each layer of the MLP, whose hidden layers end in a sigmoid.
    """
    parameters = [parameter.contiguous() for parameter in parameters]
    inputs = (states.contiguous(), events.contiguous(), negatives.contiguous())
    save = _needs_gradient(*inputs, *parameters)
    operator = torch.ops.dien_fast.auxiliary_loss.default
    if _through_dispatcher():
        loss: Tensor = operator(*inputs, offsets, parameters, save)[0]
    elif save:
        loss = _AuxiliaryLoss.apply(*inputs, offsets, *parameters)
    else:
        loss = _below_autograd(operator, *inputs, offsets, parameters, False)[0]
    return loss


class _AuxiliaryLoss(torch.autograd.Function):
    """The operator's autograd without the dispatcher's way to it."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, *parameters: Tensor
    ) -> Tensor:
        loss, *gradients = _below_autograd(
            torch.ops.dien_fast.auxiliary_loss.default, states, events, negatives, offsets, list(parameters), True
        )
        ctx.shapes = [parameter.shape for parameter in parameters]
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Any, ...]:
        # Mostly the loss is added to another as it is; then what is saved is the gradient.
        scale = None if dloss == 1 else dloss
        gradients = _scaled_gradients(scale, ctx.saved_tensors, ctx.shapes)
        return *gradients[:3], None, *gradients[3:]


def _scaled_gradients(dloss: Tensor | None, saved: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    if torch.is_grad_enabled():
        raise NotImplementedError("auxiliary_loss has no second derivative; use_backend('reference') has one")
    *rows, flat = saved if dloss is None else [dloss * gradient for gradient in saved]
    parts = flat.split([shape.numel() for shape in shapes])
    return [*rows, *[part.view(shape) for part, shape in zip(parts, shapes, strict=True)]]


def _auxiliary_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.shapes = [parameter.shape for parameter in inputs[4]]
    ctx.save_for_backward(*output[1:])


def _auxiliary_backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dloss is None:
        return None, None, None, None, [None] * len(ctx.shapes), None
    gradients = _scaled_gradients(dloss, ctx.saved_tensors, ctx.shapes)
    return *gradients[:3], None, gradients[3:], None


def _fake_auxiliary(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: list[Tensor], save: bool
) -> tuple[Tensor, ...]:
    shape: tuple[int, ...] = tuple(states.shape) if save else (0,)
    size = sum(math.prod(parameter.shape) for parameter in parameters) if save else 0
    return states.new_empty(()), *[states.new_empty(shape) for _ in range(3)], states.new_empty(size)


# ---- Padded and ragged rows ----


def rows_from_padded(padded: Tensor, offsets: Tensor) -> Tensor:
    """Return the rows that are there ``[N, ...]`` of ``padded`` ``[B, T, ...]``; N = ``offsets[-1]``."""
    return _run_rows(torch.ops.dien_fast.rows_from_padded.default, _RowsFromPadded, padded.contiguous(), offsets)


def padded_from_rows(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """Return rows ``[N, ...]`` padded with zeros ``[B, steps, ...]``."""
    operator = torch.ops.dien_fast.padded_from_rows.default
    return _run_rows(operator, _PaddedFromRows, values.contiguous(), offsets, steps)


def weighted_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return the sum of each history's rows ``[N, D]`` times their weights ``[N]``, ``[B, D]``."""
    operator = torch.ops.dien_fast.weighted_sum.default
    return _run_rows(operator, _WeightedSum, values.contiguous(), weights.contiguous(), offsets)


def _run_rows(operator: Any, function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    if _through_dispatcher():
        out: Tensor = operator(*arguments)
    elif _needs_gradient(*(argument for argument in arguments if isinstance(argument, Tensor))):
        out = function.apply(*arguments)
    else:
        out = _below_autograd(operator, *arguments)
    return out


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.steps = inputs[0].size(1)
    ctx.save_for_backward(inputs[1])


def _rows_backward(ctx: Any, drows: Tensor) -> tuple[Any, ...]:
    return padded_from_rows(drows, ctx.saved_tensors[0], ctx.steps), None


def _padded_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _padded_backward(ctx: Any, dpadded: Tensor) -> tuple[Any, ...]:
    return rows_from_padded(dpadded, ctx.saved_tensors[0]), None, None


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sum_backward(ctx: Any, dsum: Tensor) -> tuple[Any, ...]:
    operator = torch.ops.dien_fast.weighted_sum_backward.default
    return *_differentiate(operator, dsum.contiguous(), *ctx.saved_tensors), None


def _function(operator_name: str, setup: Any, backward: Any) -> type[torch.autograd.Function]:
    """The autograd of an operator of one output without the dispatcher's way to it."""

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        output: Tensor = _below_autograd(getattr(torch.ops.dien_fast, operator_name).default, *arguments)
        setup(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(operator_name, (torch.autograd.Function,), members)


_RowsFromPadded = _function("rows_from_padded", _rows_setup, _rows_backward)
_PaddedFromRows = _function("padded_from_rows", _padded_setup, _padded_backward)
_WeightedSum = _function("weighted_sum", _sum_setup, _sum_backward)


def _fake_rows(padded: Tensor, offsets: Tensor) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return padded.new_empty((rows, *padded.shape[2:]))


def _fake_padded(values: Tensor, offsets: Tensor, steps: int) -> Tensor:
    return values.new_empty((offsets.size(0) - 1, steps, *values.shape[1:]))


def _fake_sum(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return values.new_empty((offsets.size(0) - 1, values.size(1)))


def _fake_sum_backward(dsum: Tensor, values: Tensor, weights: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), values.new_empty(weights.shape)


def _register(name: str, fake: Any, backward: Any, setup: Any = None) -> None:
    torch.library.register_fake(f"dien_fast::{name}", fake)
    torch.library.register_autograd(f"dien_fast::{name}", backward, setup_context=setup)


if _ops._loaded:
    _register("attention_scores", _fake_scores, _scores_backward, _scores_setup)
    _register("attention_scores_backward", _fake_scores_backward, _refuse("attention_scores"))
    _register("auxiliary_loss", _fake_auxiliary, _auxiliary_backward, _auxiliary_setup)
    _register("rows_from_padded", _fake_rows, _rows_backward, _rows_setup)
    _register("padded_from_rows", _fake_padded, _padded_backward, _padded_setup)
    _register("weighted_sum", _fake_sum, _sum_backward, _sum_setup)
    _register("weighted_sum_backward", _fake_sum_backward, _refuse("weighted_sum"))
    torch.library.register_fake("dien_fast::add_rows_", lambda out, rows, ids, padding: None)
else:
    _ops._libraries.append(_interest_fallback.define())
