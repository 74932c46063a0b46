"""The auxiliary loss as an operator: how to call it, its autograd, and its mathematics in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dien_fast.ops.backend import LOADED, Kernels
from dien_fast.ops.dispatch import define, eager_autograd, needs_gradient, register, run
from dien_fast.ops.layouts import owners_of

# As in csrc/library.cpp.
SCHEMA = (
    "auxiliary_loss(Tensor states, Tensor events, Tensor negatives, Tensor offsets, Tensor[] parameters, "
    "bool save) -> (Tensor loss, Tensor dstates, Tensor devents, Tensor dnegatives, Tensor dparameters)"
)

KERNELS = Kernels("auxiliary_loss")


def auxiliary_loss(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """Mean binary cross entropy of telling each next event from a negative by the state before it, a scalar.

    Args:
        states: ``[N, D]``, ragged.
        events: events that were clicked ``[N, D]``; the first of each history is not read.
        negatives: events that were not clicked ``[N, D]``, at the same steps.
        offsets: ``[B + 1]`` int64, from 0 to N.
        parameters: weight and bias of each layer of the MLP, whose hidden layers end in a sigmoid.
    """
    parameters = [parameter.contiguous() for parameter in parameters]
    inputs = (states.contiguous(), events.contiguous(), negatives.contiguous())
    save = needs_gradient(*inputs, *parameters)
    loss: Tensor = run(_OPERATOR, _EAGER, save, (*inputs, offsets, parameters, save))[0]
    return loss


# ---- In plain PyTorch ----

Logits = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


def plain_auxiliary_loss(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, logits: Logits, select: bool
) -> Tensor:
    """Return what :func:`auxiliary_loss` returns, for any MLP.

    Args:
        states: as above.
        events: as above.
        negatives: as above.
        offsets: as above.
        logits: returns the logits ``[M]`` of M events and of M negatives after M states.
        select: whether to compute valid steps alone, which waits for a device. Otherwise the last state of a
            history meets the first event of the next one, and its loss is masked.
    """
    valid = has_next(offsets, states.size(0))
    rows = (states[:-1], events[1:], negatives[1:])
    if select:
        rows, valid = (rows[0][valid], rows[1][valid], rows[2][valid]), valid[valid]
    click, noclick = logits(*rows)
    return masked_mean_loss(click, noclick, valid)


def has_next(offsets: Tensor, rows: int) -> Tensor:
    """Return of each of N ragged rows but the last whether the next is of the same history, bool ``[N - 1]``."""
    owner = owners_of(offsets, rows)
    return owner[:-1] == owner[1:]


def masked_mean_loss(click: Tensor, noclick: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross entropy of logits of clicks and of negatives where ``valid``; 0 if none is."""
    # log(1 + exp(-x)) for a click, log(1 + exp(x)) for a negative.
    errors = torch.where(valid, F.softplus(-click) + F.softplus(noclick), 0)
    return errors.sum() / (2 * valid.sum()).clamp(min=1)


def event_logits(
    weight: Tensor,
    bias: Tensor | None,
    rest: Iterable[Callable[[Tensor], Tensor]],
    states: Tensor,
    *events: Tensor,
) -> list[Tensor]:
    """Return an MLP's logits of each of several events after the same states; they share half of a product.

    Args:
        weight: of the MLP's first layer ``[C, 2 D]``.
        bias: of that layer ``[C]`` or None.
        rest: the layers that follow, which make logits ``[..., 1]`` of what the first returns.
        states: ``[..., D]``.
        events: ``[..., D]`` each.

    Returns:
        Logits ``[...]`` of each of the ``events``.
    """
    w_state, w_event = weight.chunk(2, dim=1)
    from_states = F.linear(states, w_state, bias)
    logits = []
    for event in events:
        hidden = from_states + F.linear(event, w_event)
        for layer in rest:
            hidden = layer(hidden)
        logits.append(hidden.squeeze(-1))
    return logits


def fallback(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: list[Tensor], save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator returns; autograd finds the gradients, so none are kept."""
    weight, bias, *others = parameters
    rest: list[Callable[[Tensor], Tensor]] = []
    for layer in range(0, len(others), 2):
        rest += [torch.sigmoid, partial(F.linear, weight=others[layer], bias=others[layer + 1])]
    logits = partial(event_logits, weight, bias, rest)
    loss = plain_auxiliary_loss(states, events, negatives, offsets, logits, select=True)
    none = [states.new_empty(0) for _ in range(4)]
    return loss, none[0], none[1], none[2], none[3]


# ---- Shapes and autograd ----


def _fake(
    states: Tensor, events: Tensor, negatives: Tensor, offsets: Tensor, parameters: list[Tensor], save: bool
) -> tuple[Tensor, ...]:
    shape: tuple[int, ...] = tuple(states.shape) if save else (0,)
    size = sum(math.prod(parameter.shape) for parameter in parameters) if save else 0
    return states.new_empty(()), *[states.new_empty(shape) for _ in range(3)], states.new_empty(size)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.shapes = [parameter.shape for parameter in inputs[4]]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dloss is None:
        return None, None, None, None, [None] * len(ctx.shapes), None
    return _gradients(ctx, [dloss * gradient for gradient in ctx.saved_tensors])


def _eager_backward(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    # Usually dloss is 1 and the saved tensors are the gradients. Elsewhere, to look would wait for the device.
    if dloss is not None and dloss.is_cpu and dloss == 1:
        return _gradients(ctx, ctx.saved_tensors)
    return _backward(ctx, dloss)


def _gradients(ctx: Any, saved: Sequence[Tensor]) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError("auxiliary_loss has no second derivative; use_backend('reference') has one")
    *rows, flat = saved
    parts = flat.split([shape.numel() for shape in ctx.shapes])
    return *rows, None, [part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)], None


if LOADED:
    register("auxiliary_loss", _fake, _backward, _setup)
else:
    define(SCHEMA, fallback)
_OPERATOR = torch.ops.dien_fast.auxiliary_loss.default
_EAGER = eager_autograd("auxiliary_loss", _setup, _eager_backward, spread=4)
