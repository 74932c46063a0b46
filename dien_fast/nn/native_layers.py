"""Describes modules to the native operators, if the operators compute what the modules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dien_fast import reference
from dien_fast.nn.batch_norm import check_count, update_running
from dien_fast.ops import attention_scores as operator
from dien_fast.ops.attention_scores import (
    DICE,
    IDENTITY,
    MAX_LAYERS,
    NORMALISED,
    PRELU,
    RELU,
    SIGMOID,
    ScoreLayers,
)
from dien_fast.ragged import Ragged
from dien_fast.reference.layers import Dice

_ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Identity: IDENTITY,
    nn.ReLU: RELU,
    nn.PReLU: PRELU,
    nn.Sigmoid: SIGMOID,
    Dice: DICE,
}


def is_watched(*modules: nn.Module) -> bool:
    """Whether calling one of the modules would run a hook of its own."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def loss_parameters(layers: Sequence[nn.Module]) -> list[Tensor] | None:
    """Return weight and bias of each layer of an auxiliary net; None unless its hidden layers end in a sigmoid.

    Args:
        layers: of each hidden layer an nn.Linear and its activation, then the nn.Linear that gives the logit.
    """
    *hidden, last = layers
    if len(hidden) % 2 or not 2 <= len(hidden) <= 2 * MAX_LAYERS or is_watched(*layers):
        return None
    linear = [*hidden[::2], last]
    if any(type(layer) is not nn.Linear for layer in linear):
        return None
    if any(type(layer) is not nn.Sigmoid for layer in hidden[1::2]):
        return None
    parameters: list[Any] = [tensor for layer in linear for tensor in (layer.weight, layer.bias)]
    if any(parameter is None or parameter.size(0) == 0 for parameter in parameters):
        return None
    return parameters


def native_layers(attention: reference.Attention) -> tuple[ScoreLayers, list[nn.BatchNorm1d]] | None:
    """Describe an attention's MLP to the native operator.

    Returns:
        The layers and their normalisations in the operator's order, or None if the operator does not compute what
        the modules do: another activation, a hook, a part in another mode, a normalisation without buffers.
    """
    if is_watched(attention.mlp, attention.mlp.mlp):
        return None
    return score_layers(list(attention.mlp.mlp), attention.fc, attention.training)


def score_layers(
    modules: list[nn.Module], last: nn.Linear, training: bool, dice: type[nn.Module] = Dice
) -> tuple[ScoreLayers, list[nn.BatchNorm1d]] | None:
    """Describe layers to the native operator, as :func:`native_layers` does.

    Args:
        modules: of each layer an nn.Linear, then where there is one a normalisation, an activation and a dropout.
        last: the product that gives the logit.
        training: the mode that all of them must have.
        dice: the class of Dice, with the attributes of this package's.
    """
    if is_watched(*modules, last):
        return None
    reader = _Reader(modules, dice)
    while reader.place < len(modules):
        if not reader.read_layer():
            return None
    rates = {rate if training else 0.0 for rate in reader.rates}
    if len(reader.codes) > MAX_LAYERS or len(rates) > 1 or max(rates) >= 1:
        return None
    norms = reader.norms
    if any(norm.training != training or norm.running_mean is None or not norm.affine for norm in norms):
        return None
    if any(dropout.training != training for dropout in reader.dropouts):
        return None
    parameters = [*reader.parameters, last.weight, last.bias]
    if any(
        parameter is None or parameter.dtype != parameters[0].dtype or parameter.size(0) == 0
        for parameter in parameters
    ):
        return None
    running: list[Tensor] = []
    if not training:
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            running += (norm.running_mean, norm.running_var)
    epsilons = [norm.eps for norm in norms]
    return ScoreLayers(parameters, running, reader.codes, epsilons, rates.pop(), training), norms


class _Reader:
    """Reads the modules of an MLP from first to last."""

    def __init__(self, modules: list[nn.Module], dice: type[nn.Module]) -> None:
        self.modules, self.dice = modules, dice
        self.place = 0
        self.parameters: list[Tensor] = []
        self.norms: list[nn.BatchNorm1d] = []
        self.codes: list[int] = []
        self.rates: list[float] = []  # of dropout, one a layer
        self.dropouts: list[nn.Dropout] = []

    def following(self, *types: type[nn.Module]) -> Any:
        """Return the next module and step behind it, or None if it is of none of the types."""
        if self.place == len(self.modules) or type(self.modules[self.place]) not in types:
            return None
        self.place += 1
        return self.modules[self.place - 1]

    def add_norm(self, norm: nn.BatchNorm1d) -> None:
        self.norms.append(norm)
        self.parameters += (norm.weight, norm.bias)

    def read_layer(self) -> bool:
        """Read one layer; return False if the operator does not compute it."""
        linear = self.following(nn.Linear)
        if linear is None:
            return False
        self.parameters += (linear.weight, linear.bias)
        norm = self.following(nn.BatchNorm1d)
        if norm is not None:
            self.add_norm(norm)
        activation = self.following(*_ACTIVATIONS, self.dice)
        code = IDENTITY if activation is None else _ACTIVATIONS.get(type(activation), DICE)
        if code == PRELU:
            if activation.num_parameters != 1:
                return False
            self.parameters.append(activation.weight)
        elif code == DICE:
            if activation.dim != 2 or is_watched(activation.bn, activation.sigmoid):
                return False
            self.parameters.append(activation.alpha)
            self.add_norm(activation.bn)
        dropout = self.following(nn.Dropout)
        if dropout is not None:
            self.dropouts.append(dropout)
        self.rates.append(0.0 if dropout is None else dropout.p)
        self.codes.append(code + NORMALISED * (norm is not None))
        return True


def native_scores(query: Tensor, keys: Ragged, layers: ScoreLayers, norms: list[nn.BatchNorm1d]) -> Tensor:
    """Return the scores ``[N]`` that described layers give; in training, move the running buffers of ``norms``."""
    if layers.training and norms:
        check_count(query.size(0) * keys.max_length)
    scores, statistics = operator.attention_scores(query, keys.values, keys.offsets, keys.max_length, layers)
    if layers.training and norms:
        moments = iter(statistics.split([norm.num_features for norm in norms for _ in range(2)]))
        for norm in norms:
            update_running(norm, next(moments), next(moments))
    return scores
