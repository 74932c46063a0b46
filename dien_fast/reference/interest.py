"""Attention, the auxiliary net and the interest layer over padded batches, in plain PyTorch."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dien_fast.reference.gru import DynamicGRU
from dien_fast.reference.layers import MLP, get_activation_layer


class Attention(nn.Module):
    """Relevance of every history step to the candidate: an MLP on [q, k, q - k, q * k], then softmax.

    Args:
        input_size: D, size of the query and of each key.
        hidden_layers: output sizes of the MLP's layers.
        dropout: dropout probability inside the MLP.
        batchnorm: whether the MLP normalises; its statistics include the padded rows.
        activation: name of the MLP's activation.
        return_scores: return the scores instead of the keys weighted by them.
    """

    def __init__(
        self,
        input_size: int,
        hidden_layers: Sequence[int],
        dropout: float = 0.0,
        batchnorm: bool = True,
        activation: str | None = "prelu",
        return_scores: bool = False,
    ) -> None:
        super().__init__()
        self.return_scores = return_scores
        self.mlp = MLP(
            input_size=input_size * 4,
            hidden_layers=hidden_layers,
            dropout=dropout,
            batchnorm=batchnorm,
            activation=activation,
        )
        self.fc = nn.Linear(hidden_layers[-1], 1)

    def forward(self, query: Tensor, keys: Tensor, keys_length: Tensor) -> Tensor:
        """Score the steps of each history.

        Args:
            query: candidate ``[B, D]``.
            keys: history ``[B, T, D]``.
            keys_length: valid steps of each history, integer ``[B]``, from 0 to T.

        Returns:
            Scores ``[B, T]`` that sum to 1 over the valid steps and are 0 elsewhere (all 0 for an empty
            history), or the weighted sum of the keys ``[B, D]``.
        """
        batch_size, max_length, dim = keys.shape
        if batch_size * max_length == 0:
            return keys.sum(2 if self.return_scores else 1)
        q = query.unsqueeze(1).expand(-1, max_length, -1)
        rows = torch.cat([q, keys, q - keys, q * keys], dim=-1).view(batch_size * max_length, -1)
        logits = self.fc(self.mlp(rows)).view(batch_size, max_length) / dim**0.5
        scores = masked_softmax(logits, keys_length)
        if self.return_scores:
            return scores
        return torch.matmul(scores.unsqueeze(1), keys).squeeze(1)


def masked_softmax(logits: Tensor, lengths: Tensor) -> Tensor:
    """Softmax of the first ``lengths[b]`` of each row of ``logits`` ``[B, T]``; 0 behind them."""
    lengths = lengths.view(-1, 1)
    padding = torch.arange(logits.size(1), device=lengths.device) >= lengths
    # Softmax of -inf alone would be NaN, so an empty history keeps its logits until the end.
    logits = logits.masked_fill(padding & (lengths > 0), -torch.inf)
    return F.softmax(logits, dim=1).masked_fill(padding, 0.0)


class AuxiliaryNet(nn.Module):
    """The click probability of an event after an interest state (section "Interest Extractor Layer").

    Args:
        input_size: size of [state, event], 2D.
        hidden_layers: output sizes of the hidden layers.
        activation: name of the hidden layers' activation.
    """

    def __init__(self, input_size: int, hidden_layers: Sequence[int], activation: str | None = "sigmoid") -> None:
        super().__init__()
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        previous_size = input_size
        for index, hidden_layer in enumerate(hidden_layers):
            modules[f"dense{index}"] = nn.Linear(previous_size, hidden_layer)
            if activation:
                modules[f"activation{index}"] = get_activation_layer(activation, hidden_layer)
            previous_size = hidden_layer
        modules["final_layer"] = nn.Linear(previous_size, 1)
        self.mlp = nn.Sequential(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[N, 2D]`` to probabilities ``[N, 1]``."""
        return torch.sigmoid(self.mlp(x))


class Interest(nn.Module):
    """Interest extraction and evolution: the layer that gives DIEN its name.

    Args:
        input_size: D, size of the query, of each key and of every state.
        gru_type: ``"GRU"`` (attention after a second GRU), ``"AIGRU"`` (attention scales the second GRU's
            input), ``"AGRU"`` or ``"AUGRU"``.
        gru_dropout: accepted for compatibility; has no effect.
        att_hidden_layers: output sizes of the attention MLP's layers.
        att_dropout: dropout probability inside the attention MLP.
        att_batchnorm: whether the attention MLP normalises.
        att_activation: name of the attention MLP's activation.
        use_negsampling: whether :meth:`forward` computes the auxiliary loss from ``neg_keys``.

    Raises:
        NotImplementedError: for any other ``gru_type``.
    """

    SUPPORTED_GRU_TYPE: ClassVar[list[str]] = ["GRU", "AIGRU", *DynamicGRU.cells]
    attention_type: ClassVar[type[Attention]] = Attention
    auxiliary_net_type: ClassVar[type[AuxiliaryNet]] = AuxiliaryNet
    dynamic_gru_type: ClassVar[type[DynamicGRU]] = DynamicGRU

    def __init__(
        self,
        input_size: int,
        gru_type: str = "AUGRU",
        gru_dropout: float = 0.0,
        att_hidden_layers: Sequence[int] = (80, 40),
        att_dropout: float = 0.0,
        att_batchnorm: bool = True,
        att_activation: str | None = "prelu",
        use_negsampling: bool = False,
    ) -> None:
        super().__init__()
        if gru_type not in self.SUPPORTED_GRU_TYPE:
            raise NotImplementedError(f"gru_type must be one of {self.SUPPORTED_GRU_TYPE}, got {gru_type!r}")
        if gru_dropout != 0:
            warnings.warn(f"gru_dropout has no effect, got {gru_dropout}", stacklevel=2)
        self.gru_type = gru_type
        self.use_negsampling = use_negsampling
        self.interest_extractor = nn.GRU(input_size, input_size, batch_first=True)
        if use_negsampling:
            self.auxiliary_net = self.auxiliary_net_type(input_size * 2, hidden_layers=[100, 50])
        self.attention = self.attention_type(
            input_size=input_size,
            hidden_layers=att_hidden_layers,
            dropout=att_dropout,
            batchnorm=att_batchnorm,
            activation=att_activation,
            return_scores=gru_type != "GRU",
        )
        self.interest_evolution: nn.Module
        if gru_type in ("GRU", "AIGRU"):
            self.interest_evolution = nn.GRU(input_size, input_size, batch_first=True)
        else:
            self.interest_evolution = self.dynamic_gru_type(input_size, input_size, gru_type=gru_type)

    @staticmethod
    def get_last_state(states: Tensor, keys_length: Tensor) -> Tensor:
        """Return the last valid state of each row of ``states`` ``[B, T, H]``, ``[B, H]``; 0 where none."""
        last = (keys_length - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, states.size(2))
        return states.gather(1, last).squeeze(1) * (keys_length > 0).view(-1, 1)

    def cal_auxiliary_loss(
        self, states: Tensor, click_seq: Tensor, noclick_seq: Tensor, keys_length: Tensor
    ) -> Tensor:
        """Return the mean binary cross entropy of telling each next click from a negative (equation 5).

        Args:
            states: interest states before the event ``[B, T, D]``.
            click_seq: the events that were clicked ``[B, T, D]``.
            noclick_seq: events that were not ``[B, T, D]``.
            keys_length: valid steps ``[B]``; below 1 counts as none.
        """
        batch_size, max_length, dim = states.shape
        valid = torch.arange(max_length, device=states.device) < keys_length.view(-1, 1)
        losses = []
        for events, target in ((click_seq, 1.0), (noclick_seq, 0.0)):
            rows = torch.cat([states, events], dim=-1).view(batch_size * max_length, dim * 2)
            p = self.auxiliary_net(rows).view(batch_size, max_length)[valid]
            losses.append(F.binary_cross_entropy(p, torch.full_like(p, target), reduction="sum"))
        return (losses[0] + losses[1]) / (2 * valid.sum()).clamp(min=1)

    def forward(
        self, query: Tensor, keys: Tensor, keys_length: Tensor, neg_keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Evolve the interest in each candidate.

        Args:
            query: candidate ``[B, D]``.
            keys: clicked events, oldest first, ``[B, T, D]``.
            keys_length: valid steps of each history, integer ``[B]``, from 0 to T.
            neg_keys: events not clicked at the same steps ``[B, T, D]``; needed in training if the layer was
                built with ``use_negsampling``.

        Returns:
            The evolved interest ``[B, D]`` and the auxiliary loss (a scalar, or None without negatives).
        """
        max_length = keys.size(1)
        lengths = keys_length.reshape(-1).to(torch.int64)
        interests = self._run_gru(self.interest_extractor, keys, lengths)
        auxiliary_loss = None
        if self.use_negsampling:
            if neg_keys is not None:
                auxiliary_loss = self.cal_auxiliary_loss(
                    interests[:, :-1], keys[:, 1:], neg_keys[:, 1:], lengths - 1
                )
            elif self.training:
                raise ValueError("neg_keys must be given in training with use_negsampling=True, got None")
        if max_length == 0:
            return keys.sum(1), auxiliary_loss
        if self.gru_type == "GRU":
            states = self._run_gru(self.interest_evolution, interests, lengths)
            return self.attention(query, states, lengths), auxiliary_loss
        scores = self.attention(query, interests, lengths)
        if self.gru_type == "AIGRU":
            interests = interests * scores.unsqueeze(-1)
            states = self._run_gru(self.interest_evolution, interests, lengths)
        else:
            states = self._run_gru(self.interest_evolution, interests, lengths, scores)
        return self.get_last_state(states, lengths), auxiliary_loss

    @staticmethod
    def _run_gru(gru: nn.Module, x: Tensor, lengths: Tensor, scores: Tensor | None = None) -> Tensor:
        """Run a recurrence over the valid steps of ``x`` ``[B, T, D]``; states ``[B, T, D]``, 0 on padding."""
        max_length = x.size(1)
        present = torch.nonzero(lengths > 0).squeeze(1)
        if present.numel() == 0:
            return x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0.0)
        # Packing refuses empty sequences, so they stay out of the packed batch.
        some_empty = present.numel() < lengths.numel()

        def pack(rows: Tensor) -> PackedSequence:
            rows, sizes = (rows[present], lengths[present]) if some_empty else (rows, lengths)
            return pack_padded_sequence(rows, sizes.cpu(), batch_first=True, enforce_sorted=False)

        packed = gru(pack(x))[0] if scores is None else gru(pack(x), pack(scores))
        states, _ = pad_packed_sequence(packed, batch_first=True, total_length=max_length)
        return torch.zeros_like(x).index_copy(0, present, states) if some_empty else states
