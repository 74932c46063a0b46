"""The interest layer on padded rows that stay where they are.

How many steps there are is known to a device alone; to pick the rows that exist, the host would have to wait for
it. So padding is computed and masked here: no number goes to the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast.functional import attention_gru
from dien_fast.nn.attention import Attention, AuxiliaryNet, first_linear, masked_mean_loss
from dien_fast.nn.gru import DynamicGRU
from dien_fast.reference.interest import masked_softmax

if TYPE_CHECKING:
    from dien_fast.nn.interest import Interest


def padded_interest(
    layer: Interest, query: Tensor, keys: Tensor, lengths: Tensor, negatives: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return what :meth:`Interest.forward` returns.

    Args:
        layer: its layer.
        query: candidate ``[B, D]``.
        keys: clicked events ``[B, T, D]``; what stands behind a history's end is not looked at.
        lengths: ``[B]`` int64, from 0 to T.
        negatives: events not clicked, as ``keys``, or None.
    """
    states, _ = padded_gru(layer.interest_extractor, keys, lengths)
    assert states is not None
    auxiliary_loss = None
    if layer.use_negsampling and negatives is not None:
        auxiliary_loss = padded_loss(layer.auxiliary_net, states, keys, negatives, lengths)
    if keys.size(1) == 0:
        return keys.sum(1), auxiliary_loss
    evolution = layer.interest_evolution
    if isinstance(evolution, DynamicGRU):
        scores = padded_scores(layer.attention, query, states, lengths)
        cell = evolution.rnn
        _, interest = attention_gru(
            states,
            scores,
            cell.weight_ih,
            cell.weight_hh,
            cell.bias_ih,
            cell.bias_hh,
            lengths=lengths,
            cell=layer.gru_type.lower(),
            return_states=False,
        )
        return interest, auxiliary_loss
    assert isinstance(evolution, nn.GRU)
    if layer.gru_type == "AIGRU":
        scaled = states * padded_scores(layer.attention, query, states, lengths).unsqueeze(2)
        return padded_gru(evolution, scaled, lengths, return_states=False)[1], auxiliary_loss
    evolved, _ = padded_gru(evolution, states, lengths)
    assert evolved is not None
    scores = padded_scores(layer.attention, query, evolved, lengths)
    return torch.bmm(scores.unsqueeze(1), evolved).squeeze(1), auxiliary_loss


def padded_gru(
    gru: nn.GRU, x: Tensor, lengths: Tensor, return_states: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Run a GRU; states ``[B, T, D]``, 0 on padding, if wanted, and the last ones ``[B, D]``."""
    weight_ih, weight_hh, bias_ih, bias_hh = gru.all_weights[0]
    return attention_gru(
        x,
        None,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        lengths=lengths,
        cell="gru",
        return_states=return_states,
    )


def padded_scores(attention: Attention, query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """Score histories ``[B, T, D]`` that are 0 behind their ends; ``[B, T]``, 0 on padding.

    The rows of padding take part in batch statistics, and every row draws its own dropout, as in the listing.
    """
    batch, steps, depth = keys.shape
    if batch * steps == 0:
        return keys.sum(2)
    first, rest = first_linear(attention.mlp.mlp)
    # W [q; k; q-k; q*k] = (W1 + W3) q + (W2 - W3 + W4 diag(q)) k: a matrix for each candidate meets its keys.
    w_q, w_k, w_difference, w_product = first.weight.chunk(4, dim=1)
    query_term = F.linear(query, w_q + w_difference, first.bias)
    matrix = w_k - w_difference + query.unsqueeze(1) * w_product
    hidden = (query_term.unsqueeze(1) + torch.bmm(keys, matrix.transpose(1, 2))).view(batch * steps, -1)
    for layer in rest:
        hidden = layer(hidden)
    return masked_softmax(attention.fc(hidden).view(batch, steps) / depth**0.5, lengths)


def padded_loss(net: AuxiliaryNet, states: Tensor, events: Tensor, negatives: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean binary cross entropy of each history's events 2..len against the states before them.

    Args:
        net: gives the logits.
        states: ``[B, T, D]``, 0 on padding.
        events: clicked ``[B, T, D]``.
        negatives: not clicked ``[B, T, D]``.
        lengths: ``[B]`` int64.
    """
    steps = torch.arange(1, states.size(1), device=states.device)
    valid = steps < lengths.unsqueeze(1)
    clicked, sampled = (torch.where(valid.unsqueeze(2), rows[:, 1:], 0) for rows in (events, negatives))
    click, noclick = net.logits(states[:, :-1], clicked, sampled)
    return masked_mean_loss(click, noclick, valid)
