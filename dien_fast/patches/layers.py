"""What interest layers of other libraries are made of, computed on ragged rows instead of padded ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast.functional import attention_gru
from dien_fast.nn.native_layers import loss_parameters, native_scores, score_layers
from dien_fast.ops import attention_scores, auxiliary_loss
from dien_fast.ops.cells import Weights
from dien_fast.ops.rows import SUM_KERNELS, weighted_sum
from dien_fast.patches.cells import LAYOUTS, is_altered
from dien_fast.patches.probe import RefusedError
from dien_fast.patches.recurrence import Loop, PackedGRU, PackedLoop
from dien_fast.patches.swap import Accelerated
from dien_fast.ragged import Ragged
from dien_fast.reference.layers import Dice

# Up to this logit, float32 rounds a sigmoid so little that its logarithm is that of the exact sigmoid.
_EXACT_LOGIT = 12.0


class Inside(NamedTuple):
    """The classes of all modules inside a layer when it was compared, before anything was made fast."""

    types: tuple[type[nn.Module], ...]


def inside(module: nn.Module) -> Inside:
    """Return the classes of the modules inside a layer, as they are when nothing is fast."""
    _, *parts = module.modules()
    return Inside(
        tuple(part._dien_fast.original if isinstance(part, Accelerated) else type(part) for part in parts)
    )


def runs_ragged(module: nn.Module, found: Inside, *tensors: Tensor) -> bool:
    """Whether a layer has the parts that it had, no part has a hook, and the operators take the tensors."""
    kernels = (attention_scores.KERNELS, auxiliary_loss.KERNELS, SUM_KERNELS)
    autocast = torch.is_autocast_enabled(tensors[0].device.type)
    if autocast or not all(kernel.are_used(*tensors) for kernel in kernels):
        return False
    _, *parts = module.modules()
    return inside(module) == found and not is_altered(*parts)


def run_gru(gru: Any, rows: Ragged, return_states: bool = True) -> tuple[Ragged, Tensor]:
    """Run an nn.GRU of one layer over ragged rows.

    Returns:
        The states (``rows`` as given without ``return_states``), and the last states ``[B, H]``.
    """
    states, last = attention_gru(
        rows.values, None, *Weights.of_gru(gru), offsets=rows.offsets, cell="gru", return_states=return_states
    )
    return (rows if states is None else rows._replace(values=states)), last


def run_loop(module: Any, rows: Ragged, scores: Tensor) -> Tensor:
    """Run a fast loop over ragged rows with attention ``[N]``; return the last states ``[B, H]``."""
    loop: Loop = module._dien_fast.details
    weights = loop.rule.rows(LAYOUTS[loop.layout].stacked(getattr(module, loop.attribute)))
    _, last = attention_gru(
        rows.values, scores, *weights, offsets=rows.offsets, cell=loop.rule.cell, return_states=False
    )
    return last


def evolve(module: Any, gru_type: str, states: Ragged, scores: Tensor) -> Tensor:
    """Return the interest ``[B, H]`` of scored states.

    For ``"GRU"``, whose second recurrence runs before the attention, it is the weighted sum of the states.
    """
    if gru_type == "GRU":
        return weighted_sum(states.values, scores, states.offsets)
    if gru_type == "AIGRU":
        scaled = states._replace(values=states.values * scores.unsqueeze(1))
        return run_gru(module, scaled, return_states=False)[1]
    return run_loop(module, states, scores)


def needs_fast(module: nn.Module, *names: str) -> None:
    """Raise RefusedError unless the recurrences ``names`` of a layer are fast and no part has a hook."""
    for name, part in module.named_modules():
        if (part is not module and is_altered(part)) or "forward" in part.__dict__:
            what = f"{name} has" if name else "it has"
            raise RefusedError(
                f"as a whole, because {what} hooks or a forward of its own, which would no longer run"
            )
    for name in names:
        part = getattr(module, name)
        if not isinstance(part, (PackedGRU, PackedLoop)):
            raise RefusedError(f"as a whole, because its {name} was left")


def only_sequential(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module that holds one nn.Sequential and nothing else."""
    children = list(module.children())
    if len(children) != 1 or type(children[0]) is not nn.Sequential:
        raise RefusedError(f"as a whole, because {type(module).__name__} is not one nn.Sequential")
    return list(children[0])


def mlp_scores(
    query: Tensor,
    keys: Ragged,
    modules: list[nn.Module],
    last: nn.Linear,
    training: bool,
    dice: type[nn.Module] = Dice,
    divisor: float | None = None,
) -> Tensor | None:
    """Score ragged histories by an MLP on [q, k, q - k, q * k] and a softmax.

    Args:
        query: candidates ``[B, D]``.
        keys: ragged ``[N, D]``; a batch normalisation counts their padding, as rows of zeros.
        modules: the MLP's layers; dropouts of probability 0 may stand anywhere.
        last: the linear layer that gives the logit.
        training: the mode of the attention.
        dice: the class of the library's Dice.
        divisor: what the logits are divided by; None is sqrt(D).

    Returns:
        Scores ``[N]``, or None where the operator does not compute this, as with a dropout that drops.
    """
    if query.size(0) * keys.max_length == 0:
        return keys.values.sum(1)
    found = score_layers([layer for layer in modules if not _is_identity(layer)], last, training, dice)
    if found is None or found[0].dropout > 0:
        return None
    layers, norms = found
    if divisor is not None:
        *others, weight, bias = layers.parameters
        factor = query.size(1) ** 0.5 / divisor
        layers = layers._replace(parameters=[*others, weight * factor, bias * factor])
    return native_scores(query, keys, layers, norms)


def _is_identity(layer: nn.Module) -> bool:
    return type(layer) is nn.Dropout and layer.p == 0


def next_event_loss(
    layers: Sequence[nn.Module], states: Ragged, events: Tensor, negatives: Tensor, from_probabilities: bool
) -> Tensor:
    """Return the mean binary cross entropy of each history's events 2..len against the states before them.

    Args:
        layers: an MLP on [state, event] that gives a logit.
        states: ragged ``[N, D]``.
        events: clicked ``[N, D]``, at the steps of ``states``.
        negatives: not clicked ``[N, D]``.
        from_probabilities: whether the library computes the loss from rounded probabilities, which differs for
            large logits from the loss computed from the logits.

    Returns:
        A scalar; 0 if no history has two steps.
    """
    layers = [layer for layer in layers if not _is_identity(layer)]
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    parameters = loss_parameters(layers)
    if parameters is not None and not (from_probabilities and _may_saturate(last)):
        return auxiliary_loss.auxiliary_loss(states.values, events, negatives, states.offsets, parameters)
    step = torch.nonzero(auxiliary_loss.has_next(states.offsets, events.size(0))).squeeze(1)
    linears = [layer for layer in layers if type(layer) is nn.Linear]
    if len(linears) == len(layers):
        click, noclick = _linear_logits(linears, states.values, events, negatives, step)
    else:
        first, *rest = layers
        assert isinstance(first, nn.Linear)
        pairs = states.values[step], events[step + 1], negatives[step + 1]
        click, noclick = auxiliary_loss.event_logits(first.weight, first.bias, rest, *pairs)
    if step.numel() == 0:
        return (click.sum() + noclick.sum()) * 0
    logits = torch.cat([click, noclick])
    targets = torch.cat([torch.ones_like(click), torch.zeros_like(noclick)])
    if from_probabilities:
        return F.binary_cross_entropy(torch.sigmoid(logits), targets)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _may_saturate(last: nn.Linear) -> bool:
    """Whether inputs between 0 and 1 can give a logit so large that float32 rounds its probability."""
    if torch.compiler.is_compiling():
        return True
    weight = last.weight.detach()
    largest = torch.maximum(weight.clamp(min=0).sum(), -weight.clamp(max=0).sum()) + last.bias.detach().abs().sum()
    return not float(largest) < _EXACT_LOGIT


def _linear_logits(
    linears: Sequence[nn.Linear], states: Tensor, events: Tensor, negatives: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits of linear layers without activations, whose product is one linear layer."""
    weight: Tensor = linears[-1].weight
    bias: Tensor | None = linears[-1].bias
    for layer in reversed(linears[:-1]):
        if layer.bias is not None:
            shift = weight @ layer.bias
            bias = shift if bias is None else bias + shift
        weight = weight @ layer.weight
    from_state, from_event = weight[0].chunk(2)
    shared = (states @ from_state)[step] + (0 if bias is None else bias)
    return shared + (events @ from_event)[step + 1], shared + (negatives @ from_event)[step + 1]
