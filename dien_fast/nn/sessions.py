"""The session layer of DSIN: interests within sessions by self-attention, between sessions by a Bi-LSTM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast.nn.attention import Attention
from dien_fast.ops.rows import SUM_KERNELS, plain_weighted_sum, weighted_sum
from dien_fast.ragged import Ragged


class SessionInterest(nn.Module):
    """What a user's sessions say about a candidate (Deep Session Interest Network, arXiv 1905.06482).

    A history is cut into sessions. Within one, multi-head self-attention (section 3.2.2 of the paper) and the mean
    over its events give the session's interest Q_k; a Bi-LSTM over the sessions (section 3.2.3) gives H_k; two
    activation units weigh both by the candidate (section 3.2.4). Nothing loops over sessions or steps in Python.

    For full sessions it computes what DeepCTR's ``DSIN`` does (deepctr 0.9, ``models/sequence/dsin.py``). There a
    session that is not full, or a history with fewer sessions than the maximum, is padded with the vector of id 0,
    which takes part in means and in the Bi-LSTM. Here padding takes part in neither.

    Args:
        input_size: D, size of the candidate and of each event; a multiple of ``heads``.
        heads: number of attention heads.
        max_sessions: K, the newest sessions that are kept of a history.
        max_events: L, the newest events that are kept of a session.
        bias_encoding: whether events get the paper's bias encoding BE(k, t, c) = w_k + w_t + w_c (equation 3).
        blinding: whether an event attends to the others of its session alone, as in DeepCTR.
        att_hidden_layers: output sizes of the layers of both activation units.
        att_activation: name of their activation.
        att_dropout: dropout probability inside them.
        lstm_layers: layers of the Bi-LSTM.
        dropout: dropout probability of the inputs of each layer of the Bi-LSTM.

    Raises:
        ValueError: if ``input_size`` is no multiple of ``heads``.

    Example:
        >>> layer = SessionInterest(8, heads=2)
        >>> events = Ragged(torch.randn(5, 8), torch.tensor([0, 3, 3, 5]), max_length=4)
        >>> sessions = torch.tensor([0, 0, 1, 0, 0])  # the first user has two sessions, the last one has one
        >>> layer(torch.randn(3, 8), events, sessions).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        input_size: int,
        heads: int = 8,
        max_sessions: int = 5,
        max_events: int = 10,
        bias_encoding: bool = True,
        blinding: bool = True,
        att_hidden_layers: Sequence[int] = (64, 16),
        att_activation: str = "sigmoid",
        att_dropout: float = 0.0,
        lstm_layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if input_size % heads:
            raise ValueError(f"input_size must be a multiple of heads, {heads}, got {input_size}")
        self.input_size, self.heads = input_size, heads
        self.max_sessions, self.max_events = max_sessions, max_events
        self.bias_encoding, self.blinding = bias_encoding, blinding
        self.session_bias = nn.Parameter(torch.empty(max_sessions))
        self.step_bias = nn.Parameter(torch.empty(max_events))
        self.unit_bias = nn.Parameter(torch.empty(input_size))
        for bias in (self.session_bias, self.step_bias, self.unit_bias):
            nn.init.trunc_normal_(bias, std=1e-4)
        self.projections = nn.Linear(input_size, 3 * input_size, bias=False)
        self.widen = nn.Linear(input_size, 4 * input_size, bias=False)
        self.narrow = nn.Linear(4 * input_size, input_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        inner = dropout if lstm_layers > 1 else 0.0
        self.forward_lstm = nn.LSTM(input_size, input_size, lstm_layers, batch_first=True, dropout=inner)
        self.backward_lstm = nn.LSTM(input_size, input_size, lstm_layers, batch_first=True, dropout=inner)
        units = [
            Attention(input_size, att_hidden_layers, att_dropout, batchnorm=False, activation=att_activation)
            for _ in range(2)
        ]
        self.interest_attention, self.evolution_attention = units

    def forward(self, query: Tensor, keys: Ragged, sessions: Tensor) -> Tensor:
        """Weigh each user's sessions by the candidate.

        Args:
            query: candidates ``[B, D]``.
            keys: as for :meth:`encode`.
            sessions: as for :meth:`encode`.

        Returns:
            ``[B, 2 * D]``: the weighed sum of the session interests, then that of the Bi-LSTM's states; 0 for a
            history without events.

        Raises:
            ValueError: for a wrong shape.
        """
        return self.weigh(query, *self.encode(keys, sessions))

    def encode(self, keys: Ragged, sessions: Tensor) -> tuple[Ragged, Ragged]:
        """Return what users' sessions say whatever the candidate.

        Args:
            keys: events, oldest first, ragged ``[N, D]``.
            sessions: ``[N]`` int64 number of each event's session, which changes from one session to the next of
                a history; its values mean nothing else.

        Returns:
            The interest of each session and the Bi-LSTM's state after it, ragged over the users ``[S, D]``.

        Raises:
            ValueError: for a wrong shape.
        """
        if keys.values.dim() != 2 or keys.values.size(1) != self.input_size:
            raise ValueError(f"keys must have shape (N, {self.input_size}), got {tuple(keys.values.shape)}")
        if sessions.shape != keys.values.shape[:1]:
            raise ValueError(
                f"sessions must have shape {tuple(keys.values.shape[:1])}, got {tuple(sessions.shape)}"
            )
        events, interests_of = self._sessions(keys, sessions)
        interests = interests_of._replace(values=self._interests(events, interests_of))
        return interests, interests._replace(values=self._evolve(interests))

    def weigh(self, query: Tensor, interests: Ragged, evolved: Ragged) -> Tensor:
        """Weigh what :meth:`encode` returned by candidates, one for each user.

        Args:
            query: candidates ``[B, D]``.
            interests: of each session, ragged ``[S, D]``; for many candidates of a user,
                :meth:`dien_fast.Ragged.take` repeats them.
            evolved: the Bi-LSTM's states, likewise.

        Returns:
            ``[B, 2 * D]``, as :meth:`forward`.

        Raises:
            ValueError: for candidates of a wrong shape.
        """
        wanted = (interests.offsets.numel() - 1, self.input_size)
        if query.shape != wanted:
            raise ValueError(f"query must have shape {wanted}, got {tuple(query.shape)}")
        pooled = [
            self.interest_attention.forward_ragged(query, interests),
            self.evolution_attention.forward_ragged(query, evolved),
        ]
        return torch.cat(pooled, dim=1)

    def _sessions(self, keys: Ragged, sessions: Tensor) -> tuple[Ragged, Ragged]:
        """Cut histories into their newest sessions and these to their newest events.

        Returns:
            The events, ragged over the S sessions ``[M, D]``, and the sessions, ragged over the users ``[S, 0]``.
        """
        owners = keys.owners()
        new = torch.ones_like(owners, dtype=torch.bool)
        new[1:] = (owners[1:] != owners[:-1]) | (sessions[1:] != sessions[:-1])
        session = new.cumsum(0) - 1
        starts = new.nonzero().squeeze(1)
        users = owners[starts]
        sizes = _counts(session, starts.numel())
        of_user = _counts(users, keys.offsets.numel() - 1)
        from_newest = of_user.cumsum(0)[users] - 1 - torch.arange(users.numel(), device=users.device)
        kept = from_newest < self.max_sessions
        left = starts[session] + sizes[session] - 1 - torch.arange(owners.numel(), device=owners.device)
        events = kept[session] & (left < self.max_events)
        sizes = sizes[kept].clamp(max=self.max_events)
        counts = of_user.clamp(max=self.max_sessions)
        return (
            Ragged(keys.values[events], F.pad(sizes.cumsum(0), (1, 0)), self.max_events),
            Ragged(keys.values.new_empty(sizes.numel(), 0), F.pad(counts.cumsum(0), (1, 0)), self.max_sessions),
        )

    def _interests(self, events: Ragged, sessions: Ragged) -> Tensor:
        """Return the interest of each session ``[S, D]``: self-attention, feed-forward layer, mean."""
        rows = events.values
        if not (torch.compiler.is_compiling() or rows.size(0)):
            return rows
        if self.bias_encoding:
            owners = events.owners()
            place = torch.arange(sessions.values.size(0), device=rows.device) - sessions.offsets[sessions.owners()]
            step = torch.arange(rows.size(0), device=rows.device) - events.offsets[owners]
            rows = rows + (self.session_bias[place[owners]] + self.step_bias[step]).unsqueeze(1) + self.unit_bias
        attended = self._attend(events._replace(values=self.projections(rows))) + rows
        # Products with the narrow layer's weight come behind the mean, of which there are fewer than events.
        hidden = self.widen(attended).relu_()
        return _means(attended, events) + self.narrow(_means(hidden, events))

    def _attend(self, projected: Ragged) -> Tensor:
        """Return the multi-head self-attention within sessions ``[M, D]`` of projections ``[M, 3 * D]``."""
        query, key, value = (
            part.transpose(1, 2) for part in projected.pad().unflatten(2, (3, self.heads, -1)).unbind(2)
        )
        allowed = projected.mask().unsqueeze(1).expand(-1, self.max_events, -1)
        if self.blinding:
            others = ~torch.eye(self.max_events, dtype=torch.bool, device=allowed.device)
            allowed = allowed & others
        # The only event of a session has no other to attend to; a softmax over nothing would be NaN.
        alone = ~allowed.any(2, keepdim=True)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=(allowed | alone).unsqueeze(1))
        rows = Ragged.rows_of(attended.transpose(1, 2).flatten(2), projected.offsets)
        return rows.masked_fill(Ragged.rows_of(alone, projected.offsets), 0.0) if self.blinding else rows

    def _evolve(self, interests: Ragged) -> Tensor:
        """Return the mean of both directions' states after each session ``[S, D]``."""
        if not (torch.compiler.is_compiling() or interests.values.size(0)):
            return interests.values
        owners = interests.owners()
        # Reversed within each user, so that padding stands behind the sessions in this direction too.
        back = interests.offsets[owners] + interests.offsets[owners + 1] - 1
        back = back - torch.arange(owners.numel(), device=owners.device)
        states = []
        for lstm, order in ((self.forward_lstm, None), (self.backward_lstm, back)):
            rows = interests if order is None else interests._replace(values=interests.values[order])
            padded = self.dropout(rows.pad())
            if torch.compiler.is_compiling():
                # A graph of torch's LSTM asks whether there is one user; so it always gets one more.
                padded = F.pad(padded, (0, 0, 0, 0, 0, 1))
            found = Ragged.rows_of(lstm(padded)[0][: interests.offsets.numel() - 1], interests.offsets)
            states.append(found if order is None else found[order])
        return (states[0] + states[1]) / 2


def _counts(numbers: Tensor, count: int) -> Tensor:
    """Return how often each of 0 to ``count - 1`` is among the numbers: bincount, with a size that graphs know."""
    return numbers.new_zeros(count).index_add_(0, numbers, torch.ones_like(numbers))


def _means(values: Tensor, sequences: Ragged) -> Tensor:
    """Return the mean ``[S, C]`` of each sequence's rows of ``values`` ``[N, C]``; no sequence is empty."""
    weights = (1 / sequences.lengths().to(values.dtype))[sequences.owners()]
    total = weighted_sum if SUM_KERNELS.are_used(values, weights) else plain_weighted_sum
    return total(values, weights, sequences.offsets)
