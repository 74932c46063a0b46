"""Attention over ragged histories, computed on valid steps only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast import reference
from dien_fast.nn.batch_norm import uses_batch_statistics, weighted_batch_norm
from dien_fast.nn.native_layers import native_layers, native_scores
from dien_fast.ops import attention_scores as operator
from dien_fast.ops import rows
from dien_fast.ops.layouts import check_lengths
from dien_fast.ragged import Ragged
from dien_fast.reference.interest import masked_softmax
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
        if rows.SUM_KERNELS.are_used(keys.values, scores):
            return rows.weighted_sum(keys.values, scores, keys.offsets)
        return rows.plain_weighted_sum(keys.values, scores, keys.offsets)

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
        count = query.size(0) * keys.max_length
        if count == 0:
            return keys.values.sum(1)
        if operator.KERNELS.are_used(query, keys.values, self.fc.weight):
            layers = native_layers(self)
            if layers is not None:
                return native_scores(query, keys, *layers)
        first, rest = first_linear(self.mlp.mlp)

        def hidden_layers(x: Tensor, shares: Tensor | None) -> Tensor:
            for layer in rest:
                x = _apply_weighted(layer, x, shares, count)
            return x

        from_batch = any(map(uses_batch_statistics, self.mlp.modules()))
        return operator.plain_attention_scores(
            query,
            keys.values,
            keys.offsets,
            keys.max_length if from_batch else None,
            (first.weight, first.bias),
            hidden_layers,
            self.fc,
        )

    def padded_scores(self, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """Score padded histories without picking their valid steps, for which the host would wait for a device.

        The rows of padding take part in batch statistics, and every row draws its own dropout, as in the listing.

        Args:
            query: candidate ``[B, D]``.
            keys: histories ``[B, T, D]``, 0 behind their ends.
            lengths: ``[B]`` int64.

        Returns:
            Scores ``[B, T]``, 0 on padding.
        """
        batch, steps, depth = keys.shape
        if batch * steps == 0:
            return keys.sum(2)
        first, rest = first_linear(self.mlp.mlp)
        weight = operator.SplitWeight.of(first.weight)
        from_query = F.linear(query, weight.query, first.bias)
        # A matrix for each candidate, of both terms that meet its keys.
        matrix = weight.key + query.unsqueeze(1) * weight.product
        hidden = (from_query.unsqueeze(1) + torch.bmm(keys, matrix.transpose(1, 2))).view(batch * steps, -1)
        for layer in rest:
            hidden = layer(hidden)
        return masked_softmax(self.fc(hidden).view(batch, steps) / depth**0.5, lengths)

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
        if not self.training and operator.KERNELS.are_used(query, keys.values, self.fc.weight):
            layers = native_layers(self)
        if layers is None:
            repeated = keys.take(owner)
            return repeated._replace(values=self.ragged_scores(query, repeated))
        offsets, start = keys.shared(owner)
        scores, _ = operator.attention_scores(query, keys.values, offsets, keys.max_length, layers[0], start)
        return Ragged(scores, offsets, keys.max_length)


def first_linear(layers: nn.Sequential) -> tuple[nn.Linear, list[nn.Module]]:
    """Split an MLP's layers into its first, a linear one, and the others."""
    first, *rest = layers
    assert isinstance(first, nn.Linear)
    return first, rest


def _apply_weighted(layer: nn.Module, x: Tensor, shares: Tensor | None, count: int) -> Tensor:
    """Apply a layer of an MLP to rows ``x`` ``[M, C]`` that stand for ``shares * count`` rows each."""
    if shares is not None:
        if isinstance(layer, nn.BatchNorm1d):
            return weighted_batch_norm(layer, x, shares, count)
        if isinstance(layer, Dice):
            return operator.dice(x, torch.sigmoid(weighted_batch_norm(layer.bn, x, shares, count)), layer.alpha)
    out: Tensor = layer(x)
    return out
