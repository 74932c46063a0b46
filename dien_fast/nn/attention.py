"""Attention and the auxiliary net, with paths that compute on the steps that exist and on no others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.functional import check_lengths
from dien_fast.ops import attention_scores as ops
from dien_fast.ragged import Ragged
from dien_fast.reference.layers import Dice


class Attention(reference.Attention):
    """Relevance of every history step to the candidate: an MLP on [q, k, q - k, q * k], then softmax.

    ``forward`` computes every padded row it is given, whatever it holds. :meth:`ragged_scores` gives the
    scores of the same batch without computing its padding, which must then be zero.

    Args:
        input_size: D, size of the query and of each key.
        hidden_layers: output sizes of the MLP's layers.
        dropout: dropout probability inside the MLP.
        batchnorm: whether the MLP normalises; its statistics include the padded rows.
        activation: name of the MLP's activation.
        return_scores: return the scores instead of the keys weighted by them.

    Example:
        >>> attention = Attention(4, [8], return_scores=True)
        >>> scores = attention(torch.randn(2, 4), torch.randn(2, 5, 4), torch.tensor([5, 2]))
        >>> scores.shape, scores.sum(1).round(decimals=4).tolist()
        (torch.Size([2, 5]), [1.0, 1.0])
    """

    def forward(self, query: Tensor, keys: Tensor, keys_length: Tensor) -> Tensor:
        """Score the steps of each padded history.

        Args:
            query: candidate ``[B, D]``.
            keys: history ``[B, T, D]``.
            keys_length: valid steps of each history, integer ``[B]``, from 0 to T.

        Returns:
            Scores ``[B, T]`` that sum to 1 over the valid steps and are 0 elsewhere (all 0 for an empty
            history), or the weighted sum of the keys ``[B, D]``.

        Raises:
            ValueError: for a length outside ``[0, T]``.
            TypeError: for lengths that are not integers.
        """
        return super().forward(query, keys, check_lengths("keys_length", keys_length, keys.size(0), keys.size(1)))

    def forward_ragged(self, query: Tensor, keys: Ragged) -> Tensor:
        """Return what ``forward`` returns, for ragged histories: scores ``[N]``, or ``[B, D]``.

        Arguments as :meth:`ragged_scores`.
        """
        scores = self.ragged_scores(query, keys)
        if self.return_scores:
            return scores
        if ops.runs_natively(keys.values, scores):
            return ops.weighted_sum(keys.values, scores, keys.offsets)
        weighted = keys.values * scores.unsqueeze(1)
        return torch.zeros_like(query).index_add(0, keys.owners(), weighted)

    def ragged_scores(self, query: Tensor, keys: Ragged) -> Tensor:
        """Score ragged histories as if they were padded with zeros to ``keys.max_length``.

        In training every zero-padded step of history b is the same row [q, 0, q, 0]; it is computed once and
        counted ``max_length - length`` times in the batch statistics. With dropout it therefore has one
        mask per history instead of one per padded step.

        Args:
            query: candidate ``[B, D]``.
            keys: histories, ragged ``[N, D]``.

        Returns:
            Scores ``[N]``; those of each history sum to 1.
        """
        lengths = keys.lengths()
        batch, rows = query.size(0), keys.values.size(0)
        if batch * keys.max_length == 0:
            return keys.values.sum(1)
        if ops.runs_natively(query, keys.values, self.fc.weight):
            layers = native_layers(self)
            if layers is not None:
                return native_scores(query, keys, *layers)
        owner = keys.owners()
        first, rest = first_linear(self.mlp.mlp)
        # W [q; k; q-k; q*k] = (W1 + W3) q + (W2 - W3) k + W4 (q*k): the q term is one row per candidate.
        w_q, w_k, w_difference, w_product = first.weight.chunk(4, dim=1)
        query_term = F.linear(query, w_q + w_difference, first.bias)
        hidden = query_term[owner] + F.linear(
            torch.cat([keys.values, query[owner] * keys.values], dim=1),
            torch.cat([w_k - w_difference, w_product], dim=1),
        )
        shares = None
        if any(map(_uses_batch_statistics, self.mlp.modules())):
            hidden = torch.cat([hidden, query_term])
            padding = (keys.max_length - lengths).to(hidden.dtype)
            shares = torch.cat([padding.new_ones(rows), padding]) / (batch * keys.max_length)
        for layer in rest:
            hidden = _apply_weighted(layer, hidden, shares, batch * keys.max_length)
        logits = self.fc(hidden[:rows]).squeeze(1) / query.size(1) ** 0.5
        return segment_softmax(logits, owner, batch)

    def shared_scores(self, query: Tensor, keys: Ragged, owner: Tensor) -> Ragged:
        """Score histories that candidates share, in evaluation: candidate ``c`` meets history ``owner[c]``.

        Args:
            query: candidates ``[C, D]``.
            keys: histories, ragged ``[N, D]``.
            owner: ``[C]`` int64.

        Returns:
            Scores ``[sum of the candidates' lengths]``, ragged over the candidates.
        """
        layers = None
        if not self.training and ops.runs_natively(query, keys.values, self.fc.weight):
            layers = native_layers(self)
        if layers is None:
            repeated = keys.take(owner)
            return repeated._replace(values=self.ragged_scores(query, repeated))
        offsets, start = keys.shared(owner)
        scores, _ = ops.attention_scores(query, keys.values, offsets, keys.max_length, layers[0], start)
        return Ragged(scores, offsets, keys.max_length)


def native_scores(query: Tensor, keys: Ragged, layers: ops.ScoreLayers, norms: list[nn.BatchNorm1d]) -> Tensor:
    """Return the scores ``[N]`` that described layers give; in training, move the running buffers of ``norms``."""
    count = query.size(0) * keys.max_length
    if layers.training and norms and count <= 1:
        raise ValueError(f"expected more than 1 value per channel when training, got {count} row")
    scores, statistics = ops.attention_scores(query, keys.values, keys.offsets, keys.max_length, layers)
    if layers.training and norms:
        moments = iter(statistics.split([norm.num_features for norm in norms for _ in range(2)]))
        for norm in norms:
            _update_running(norm, next(moments), next(moments))
    return scores


class AuxiliaryNet(reference.AuxiliaryNet):
    """The click probability of an event after an interest state.

    Args:
        input_size: size of [state, event], 2D.
        hidden_layers: output sizes of the hidden layers.
        activation: name of the hidden layers' activation.

    Example:
        >>> AuxiliaryNet(8, [100, 50])(torch.randn(3, 8)).shape
        torch.Size([3, 1])
    """

    def ragged_loss(self, states: Ragged, events: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean binary cross entropy of each history's events 2..len against the states before them.

        Args:
            states: ragged ``[N, D]``.
            events: clicked ``[N, D]``, at the steps of ``states``.
            negatives: not clicked ``[N, D]``.

        Returns:
            A scalar; 0 where no history has two steps.
        """
        parameters = self._native_parameters()
        if parameters is not None and ops.runs_natively(states.values, events, negatives, parameters[0]):
            return ops.auxiliary_loss(states.values, events, negatives, states.offsets, parameters)
        # Every row against the next one, also across histories: picking rows would wait for a device.
        rows, owner = (states.values[:-1], events[1:], negatives[1:]), states.owners()
        valid = owner[:-1] == owner[1:]
        if any(map(_uses_batch_statistics, self.mlp.modules())):
            rows, valid = (rows[0][valid], rows[1][valid], rows[2][valid]), valid[valid]
        click, noclick = self.logits(*rows)
        return masked_mean_loss(click, noclick, valid)

    def _native_parameters(self) -> list[Tensor] | None:
        """Return weights and biases if the net is what the operator computes: hidden layers with sigmoids."""
        *hidden, last = self.mlp
        if len(hidden) % 2 or not 2 <= len(hidden) <= 2 * ops.MAX_LAYERS or is_watched(*self.mlp, self.mlp):
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

    def logits(self, states: Tensor, *events: Tensor) -> list[Tensor]:
        """Return the logits ``[...]`` of each of several events ``[..., D]`` after the ``states`` ``[..., D]``.

        The states' share of the first layer is computed once.
        """
        first, rest = first_linear(self.mlp)
        w_state, w_event = first.weight.chunk(2, dim=1)
        state_term = F.linear(states, w_state, first.bias)
        logits = []
        for event in events:
            hidden = state_term + F.linear(event, w_event)
            for layer in rest:
                hidden = layer(hidden)
            logits.append(hidden.squeeze(-1))
        return logits


def masked_mean_loss(click: Tensor, noclick: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross entropy of logits of clicks and of negatives where ``valid``; 0 where nothing is."""
    # log(1 + exp(-x)) for a click, log(1 + exp(x)) for a negative.
    errors = torch.where(valid, F.softplus(-click) + F.softplus(noclick), 0)
    return errors.sum() / (2 * valid.sum()).clamp(min=1)


def first_linear(layers: nn.Sequential) -> tuple[nn.Linear, list[nn.Module]]:
    """Split an MLP's layers into its first, a linear one, and the others."""
    first, *rest = layers
    assert isinstance(first, nn.Linear)
    return first, rest


def segment_softmax(logits: Tensor, owner: Tensor, segments: int) -> Tensor:
    """Softmax of ``logits`` ``[N]`` within each of the ``segments`` that ``owner`` ``[N]`` assigns."""
    largest = logits.new_full((segments,), -torch.inf)
    largest = largest.scatter_reduce(0, owner, logits.detach(), "amax")
    powers = torch.exp(logits - largest[owner])
    return powers / powers.new_zeros(segments).index_add(0, owner, powers)[owner]


_ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Identity: ops.IDENTITY,
    nn.ReLU: ops.RELU,
    nn.PReLU: ops.PRELU,
    nn.Sigmoid: ops.SIGMOID,
    Dice: ops.DICE,
}


def native_layers(attention: reference.Attention) -> tuple[ops.ScoreLayers, list[nn.BatchNorm1d]] | None:
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
) -> tuple[ops.ScoreLayers, list[nn.BatchNorm1d]] | None:
    """Describe layers to the native operator, as :func:`native_layers` does.

    Args:
        modules: of each layer an nn.Linear, then where there is one a normalisation, an activation and a dropout.
        last: the product that gives the logit.
        training: the mode that all of them must have.
        dice: the class of Dice, with the attributes of this package's.
    """
    if is_watched(*modules, last):
        return None
    parameters: list[Tensor] = []
    norms: list[nn.BatchNorm1d] = []
    codes: list[int] = []
    rates = set()
    place = 0

    def following(*types: type[nn.Module]) -> nn.Module | None:
        nonlocal place
        if place == len(modules) or type(modules[place]) not in types:
            return None
        place += 1
        return modules[place - 1]

    def add_norm(norm: nn.BatchNorm1d) -> None:
        norms.append(norm)
        parameters.extend((norm.weight, norm.bias))

    while place < len(modules):
        linear = following(nn.Linear)
        if not isinstance(linear, nn.Linear):
            return None
        parameters += (linear.weight, linear.bias)
        norm = following(nn.BatchNorm1d)
        if isinstance(norm, nn.BatchNorm1d):
            add_norm(norm)
        activation: Any = following(*_ACTIVATIONS, dice)
        code = ops.IDENTITY if activation is None else _ACTIVATIONS.get(type(activation), ops.DICE)
        if isinstance(activation, nn.PReLU):
            if activation.num_parameters != 1:
                return None
            parameters.append(activation.weight)
        elif code == ops.DICE:
            if activation.dim != 2 or is_watched(activation.bn, activation.sigmoid):
                return None
            parameters.append(activation.alpha)
            add_norm(activation.bn)
        dropout = following(nn.Dropout)
        rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        if dropout is not None and dropout.training != training:
            return None
        rates.add(rate if training else 0.0)
        codes.append(code + ops.NORMALISED * (norm is not None))
    if len(codes) > ops.MAX_LAYERS or len(rates) > 1 or max(rates) >= 1:
        return None
    if any(norm.training != training or norm.running_mean is None or not norm.affine for norm in norms):
        return None
    parameters += (last.weight, last.bias)
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
    return ops.ScoreLayers(parameters, running, codes, epsilons, rates.pop(), training), norms


def is_watched(*modules: nn.Module) -> bool:
    """Whether calling one of the modules would run a hook of its own."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _update_running(norm: nn.BatchNorm1d, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Move the running buffers as the normalisation's own forward does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(unbiased_variance, momentum)


def _uses_batch_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm1d) and (layer.training or layer.running_mean is None)


def _apply_weighted(layer: nn.Module, x: Tensor, shares: Tensor | None, count: int) -> Tensor:
    """Apply a layer of an MLP to rows ``x`` ``[M, C]`` that stand for ``shares * count`` rows each."""
    if shares is not None:
        if isinstance(layer, nn.BatchNorm1d):
            return weighted_batch_norm(layer, x, shares, count)
        if isinstance(layer, Dice):
            p = torch.sigmoid(weighted_batch_norm(layer.bn, x, shares, count))
            return layer.alpha * (1 - p) * x + p * x
    out: Tensor = layer(x)
    return out


def weighted_batch_norm(layer: nn.BatchNorm1d, x: Tensor, shares: Tensor, count: int) -> Tensor:
    """Batch-normalise rows that stand for several equal rows each, as ``layer`` would the repeated rows.

    Args:
        layer: the normalisation; its running buffers are updated as by its own forward.
        x: ``[M, C]``.
        shares: the share of the batch each row stands for ``[M]``; they sum to 1.
        count: number of rows in the batch, repetitions included.

    Returns:
        ``[M, C]``.

    Raises:
        ValueError: if the batch is a single row in training, as torch does.
    """
    if not _uses_batch_statistics(layer):
        out: Tensor = layer(x)
        return out
    if count <= 1 and layer.training:
        raise ValueError(f"expected more than 1 value per channel when training, got {count} row")
    if torch.is_autocast_enabled(x.device.type):
        # Statistics are float32, as in torch's own normalisation.
        with torch.autocast(x.device.type, enabled=False):
            return weighted_batch_norm(layer, x.float(), shares.float(), count)
    mean = shares @ x
    centred = x - mean
    variance = shares @ (centred * centred)
    if layer.training and layer.running_mean is not None:
        _update_running(layer, mean, variance * (count / (count - 1)))
    normalised = centred * torch.rsqrt(variance + layer.eps)
    if layer.affine:
        normalised = normalised * layer.weight + layer.bias
    return normalised
