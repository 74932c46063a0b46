"""The interest layer on ragged rows: nothing is computed for padding."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dien_fast import reference
from dien_fast.functional import attention_gru
from dien_fast.nn.attention import Attention
from dien_fast.nn.auxiliary import AuxiliaryNet
from dien_fast.nn.gru import DynamicGRU
from dien_fast.nn.native_layers import native_layers
from dien_fast.ops import attention_gru as recurrence
from dien_fast.ops import attention_scores as scoring
from dien_fast.ops import layouts
from dien_fast.ops import rows as copies
from dien_fast.ops.backend import wants_native
from dien_fast.ops.cells import Inputs, Weights
from dien_fast.ops.layouts import Addresses, Layout, check_lengths, owners_of, packed_schedule
from dien_fast.ragged import Ragged


class Interest(reference.Interest):
    """Interest extraction and evolution: the layer that gives DIEN its name (arXiv 1809.03672).

    Equal to :class:`dien_fast.reference.Interest` in parameters, ``state_dict`` and results; it computes
    valid steps only.

    Args:
        input_size: D, size of the query, of each key and of every state.
        gru_type: ``"GRU"`` (attention after a second GRU), ``"AIGRU"`` (attention scales the second GRU's
            input), ``"AGRU"`` or ``"AUGRU"``.
        gru_dropout: accepted for compatibility; has no effect, and warns when it is not 0.
        att_hidden_layers: output sizes of the attention MLP's layers.
        att_dropout: dropout probability inside the attention MLP.
        att_batchnorm: whether the attention MLP normalises.
        att_activation: name of the attention MLP's activation.
        use_negsampling: whether :meth:`forward` computes the auxiliary loss from ``neg_keys``.

    Raises:
        NotImplementedError: for any other ``gru_type``.

    Example:
        >>> layer = Interest(8, gru_type="AUGRU", use_negsampling=True)
        >>> query, keys, negatives = torch.randn(3, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
        >>> interest, auxiliary_loss = layer(query, keys, torch.tensor([5, 0, 2]), negatives)
        >>> interest.shape, auxiliary_loss.shape
        (torch.Size([3, 8]), torch.Size([]))
    """

    attention_type: ClassVar[type[reference.Attention]] = Attention
    auxiliary_net_type: ClassVar[type[reference.AuxiliaryNet]] = AuxiliaryNet
    dynamic_gru_type: ClassVar[type[reference.DynamicGRU]] = DynamicGRU

    attention: Attention
    auxiliary_net: AuxiliaryNet

    def forward(
        self,
        query: Tensor,
        keys: Tensor | Ragged,
        keys_length: Tensor | None = None,
        neg_keys: Tensor | Ragged | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Evolve the interest in each candidate.

        Args:
            query: candidate ``[B, D]``.
            keys: clicked events, oldest first: padded ``[B, T, D]``, or ragged ``[N, D]``, whose
                ``max_length`` is the T that the attention's batch statistics count padding up to.
            keys_length: valid steps of each padded history, integer ``[B]``, from 0 to T; None if ragged.
            neg_keys: events not clicked at the same steps, in the layout of ``keys``; needed in training if
                the layer was built with ``use_negsampling``, without effect otherwise.

        Returns:
            The evolved interest ``[B, D]``, 0 for an empty history, and the auxiliary loss: a scalar, 0 where
            no history has two steps, None without negatives.

        Raises:
            ValueError: for a wrong shape, a length outside ``[0, T]``, or missing negatives.
        """
        if isinstance(keys, Tensor) and _stays_padded(keys):
            lengths, sampled = self._padded_inputs(query, keys, keys_length, neg_keys)
            if not self._takes_front_rows(query, keys):
                return self._forward_padded(query, keys, lengths, sampled)
            offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            events = Ragged(copies.front_rows(keys, offsets), offsets, keys.size(1))
            return self._forward_ragged(
                query, events, None if sampled is None else copies.front_rows(sampled, offsets)
            )
        return self._forward_ragged(query, *self._ragged_inputs(query, keys, keys_length, neg_keys))

    def _forward_ragged(
        self, query: Tensor, rows: Ragged, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`forward` returns, for a history and the rows of negatives ``[N, D]``."""
        states = self._extract(rows)
        auxiliary_loss = None
        if self.use_negsampling and negatives is not None:
            auxiliary_loss = self.auxiliary_net.ragged_loss(states, rows.values, negatives)
        _, interest = self._evolve(query, states, return_states=False)
        return interest, auxiliary_loss

    @torch.no_grad()
    def trace(
        self, query: Tensor, keys: Tensor | Ragged, keys_length: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Show what the layer attends to and how the interest moves.

        Args:
            query: candidate ``[B, D]``.
            keys: clicked events as in :meth:`forward`.
            keys_length: as in :meth:`forward`.

        Returns:
            Attention ``[B, T]`` and evolved states ``[B, T, D]``, 0 on padding. With ``gru_type="GRU"``
            the states are the second GRU's, which the attention weighs.

        Raises:
            ValueError: in training mode, where scores would depend on the batch.
        """
        if self.training:
            raise ValueError("trace needs evaluation mode, got a layer in training mode; call eval() first")
        rows, _ = self._ragged_inputs(query, keys, keys_length, None)
        states = self._extract(rows)
        if self.gru_type == "GRU":
            evolved = self._gru_states(self._second_gru(), states)
            scores = self.attention.ragged_scores(query, evolved)
        else:
            scores = self.attention.ragged_scores(query, states)
            values, _ = self._evolve(query, states, return_states=True)
            assert values is not None
            evolved = rows._replace(values=values)
        return rows._replace(values=scores).pad(), evolved.pad()

    def extract(self, keys: Tensor | Ragged, keys_length: Tensor | None = None) -> Ragged:
        """Return the extractor's states of histories, which :meth:`extend` and :meth:`evolve_candidates` take.

        Args:
            keys: events as in :meth:`forward`; also one history ``[T, D]``.
            keys_length: as in :meth:`forward`; None for one history.

        Returns:
            States, ragged ``[N, D]``.
        """
        return self._extract(self._histories(keys, keys_length))

    def extend(self, states: Ragged, keys: Tensor | Ragged, keys_length: Tensor | None = None) -> Ragged:
        """Append newer events to histories whose states are kept; the older events are not needed again.

        Args:
            states: what :meth:`extract` or this method returned for the events before ``[N, D]``.
            keys: the events since, as in :meth:`extract`, as many histories as ``states`` has.
            keys_length: as in :meth:`extract`.

        Returns:
            The states of all events, those of :meth:`extract` of the whole within rounding.

        Raises:
            ValueError: if the numbers of histories differ, or ``states`` are none of this layer's.
        """
        self._check_states(states)
        events = self._histories(keys, keys_length)
        if events.offsets.numel() != states.offsets.numel():
            raise ValueError(
                f"keys must hold {states.offsets.numel() - 1} histories as states does, "
                f"got {events.offsets.numel() - 1}"
            )
        added, _ = _run_gru(self.interest_extractor, events.values, last_rows(states), offsets=events.offsets)
        assert added is not None
        # An old row moves by the new rows of the histories before its own. The new rows of a history follow its
        # old ones.
        old = torch.arange(states.values.size(0), device=added.device) + events.offsets[states.owners()]
        new = torch.arange(added.size(0), device=added.device) + states.offsets[events.owners() + 1]
        values = added.new_empty(old.numel() + new.numel(), added.size(1))
        values = values.index_copy(0, old, states.values).index_copy(0, new, added)
        return Ragged(values, states.offsets + events.offsets, states.max_length + events.max_length)

    @torch.no_grad()
    def evolve_candidates(
        self,
        query: Tensor,
        keys: Tensor | Ragged | None = None,
        *,
        states: Ragged | None = None,
        candidate_offsets: Tensor | None = None,
    ) -> Tensor:
        """Evolve the interest of users in many candidates each, in evaluation mode.

        What depends on a user's history alone is computed once for all of the user's candidates.

        Args:
            query: candidates ``[C, D]``, those of a user next to each other.
            keys: a user's events ``[T, D]``, oldest first, or those of U users, ragged ``[N, D]``.
            states: instead of ``keys``, what :meth:`extract` or :meth:`extend` returned for them.
            candidate_offsets: ``[U + 1]`` int64, from 0 to C: user ``u`` has candidates
                ``candidate_offsets[u]`` to ``candidate_offsets[u + 1]``. None for one user.

        Returns:
            The evolved interest ``[C, D]``, equal to :meth:`forward`'s for the repeated history.

        Raises:
            ValueError: in training mode, or where the arguments do not fit together.

        Example:
            >>> layer = Interest(8).eval()
            >>> layer.evolve_candidates(torch.randn(200, 8), torch.randn(50, 8)).shape
            torch.Size([200, 8])
        """
        if self.training:
            raise ValueError("evolve_candidates needs evaluation mode, got a layer in training mode")
        if (keys is None) == (states is None):
            raise ValueError("exactly one of keys and states must be given")
        if states is None:
            assert keys is not None
            states = self.extract(keys)
        else:
            self._check_states(states)
        if query.dim() != 2 or query.size(1) != self.interest_extractor.input_size:
            raise ValueError(
                f"query must have shape (C, {self.interest_extractor.input_size}), got {tuple(query.shape)}"
            )
        owner = candidate_owners(
            candidate_offsets, states.offsets.numel() - 1, query.size(0), states.offsets.device
        )
        if self.gru_type == "GRU":
            evolved = self._gru_states(self._second_gru(), states)
            return self.attention.forward_ragged(query, evolved.take(owner))
        scores = self.attention.shared_scores(query, states, owner)
        evolution = self.interest_evolution
        if not isinstance(evolution, DynamicGRU) or not scoring.KERNELS.are_used(
            states.values, evolution.rnn.weight_hh
        ):
            return self._evolve_scored(states.take(owner), scores.values, return_states=False)[1]
        _, interest = recurrence.native_attention_gru(
            Inputs(states.values, scores.values, *Weights.of_cell(evolution.rnn), None),
            Layout(offsets=scores.offsets),
            evolution.rnn.cell,
            return_states=False,
            x_start=states.offsets[:-1][owner],
        )
        return interest

    def _check_states(self, states: Ragged) -> None:
        size = self.interest_extractor.hidden_size
        if states.values.dim() != 2 or states.values.size(1) != size:
            raise ValueError(f"states must have shape (N, {size}), got {tuple(states.values.shape)}")
        states.check("states")

    def _histories(self, keys: Tensor | Ragged, keys_length: Tensor | None) -> Ragged:
        """Check histories, padded, ragged, or a single one."""
        if isinstance(keys, Ragged):
            if keys_length is not None:
                raise ValueError("keys_length must be None for ragged keys, got a tensor")
            keys.check("keys")
            rows = keys
        elif keys.dim() == 2 and keys_length is None:
            rows = Ragged(keys, torch.tensor([0, keys.size(0)], device=keys.device), keys.size(0))
        else:
            rows = Ragged.from_padded(keys, self._padded_lengths(keys, keys_length))
        self._check_channels(rows.values, 2)
        return rows

    def _padded_lengths(self, keys: Tensor, keys_length: Tensor | None) -> Tensor:
        """Check padded histories; return their lengths ``[B]`` int64, where the keys are."""
        if keys_length is None:
            raise ValueError("keys_length must be given for padded keys, got None")
        if keys.dim() != 3:
            size = self.interest_extractor.input_size
            raise ValueError(f"keys must have shape (B, T, {size}), got {tuple(keys.shape)}")
        return check_lengths("keys_length", keys_length.reshape(-1), keys.size(0), keys.size(1)).to(keys.device)

    def _takes_front_rows(self, query: Tensor, keys: Tensor) -> bool:
        """Whether all that runs on the rows of ``keys`` is kernels, which leave rows alone that no history has."""
        if keys.numel() == 0 or torch.compiler.is_compiling() or layouts.CHECK:
            return False
        kernels = (copies.PAD_KERNELS, copies.SUM_KERNELS, scoring.KERNELS)
        if not all(kernel.take(query, keys, self.attention.fc.weight) for kernel in kernels):
            return False
        loss = self.auxiliary_net if self.use_negsampling else None
        return native_layers(self.attention) is not None and (loss is None or loss.runs_kernels(keys))

    def _check_channels(self, keys: Tensor, dimensions: int) -> None:
        size = self.interest_extractor.input_size
        if keys.dim() != dimensions or keys.size(-1) != size:
            got = tuple(keys.shape[dimensions - 1 :])
            raise ValueError(f"keys must have {size} channels in the last dimension, got {got}")

    def _padded_inputs(
        self, query: Tensor, keys: Tensor, keys_length: Tensor | None, neg_keys: Tensor | Ragged | None
    ) -> tuple[Tensor, Tensor | None]:
        """Check the arguments of forward for padded keys; return lengths and negatives."""
        self._check_negatives(keys, neg_keys)
        lengths = self._padded_lengths(keys, keys_length)
        self._check_channels(keys, 3)
        self._check_query(query, keys.size(0))
        assert not isinstance(neg_keys, Ragged)
        return lengths, neg_keys

    def _check_negatives(self, keys: Tensor | Ragged, neg_keys: Tensor | Ragged | None) -> None:
        if neg_keys is None:
            if self.use_negsampling and self.training:
                raise ValueError("neg_keys must be given in training with use_negsampling=True, got None")
            return
        if isinstance(neg_keys, Ragged) != isinstance(keys, Ragged):
            raise ValueError("neg_keys must be ragged where keys is, and padded where it is")
        if isinstance(neg_keys, Tensor) and isinstance(keys, Tensor) and neg_keys.shape != keys.shape:
            raise ValueError(
                f"neg_keys must have shape {tuple(keys.shape)} as keys has, got {tuple(neg_keys.shape)}"
            )

    def _check_query(self, query: Tensor, batch: int) -> None:
        size = self.interest_extractor.input_size
        if query.shape != (batch, size):
            raise ValueError(f"query must have shape ({batch}, {size}), got {tuple(query.shape)}")

    def _ragged_inputs(
        self,
        query: Tensor,
        keys: Tensor | Ragged,
        keys_length: Tensor | None,
        neg_keys: Tensor | Ragged | None,
    ) -> tuple[Ragged, Tensor | None]:
        """Check the arguments of forward; return the history and the rows of negatives."""
        if isinstance(keys, Tensor) and keys_length is None:
            raise ValueError("keys_length must be given for padded keys, got None")
        rows = self._histories(keys, keys_length)
        self._check_query(query, rows.offsets.numel() - 1)
        self._check_negatives(keys, neg_keys)
        if neg_keys is None:
            return rows, None
        if isinstance(neg_keys, Tensor):
            return rows, Ragged.rows_of(neg_keys, rows.offsets)
        if neg_keys.values.shape != rows.values.shape or not neg_keys.fits(rows):
            raise ValueError("neg_keys must have the offsets and channels of keys")
        return rows, neg_keys.values

    def _forward_padded(
        self, query: Tensor, keys: Tensor, lengths: Tensor, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`forward` returns, and wait for no device: padding is computed and masked.

        Args:
            query: candidate ``[B, D]``.
            keys: clicked events ``[B, T, D]``; what stands behind a history's end is not read.
            lengths: ``[B]`` int64, from 0 to T.
            negatives: events not clicked, as ``keys``, or None.
        """
        states, _ = _run_gru(self.interest_extractor, keys, lengths=lengths)
        assert states is not None
        auxiliary_loss = None
        if self.use_negsampling and negatives is not None:
            auxiliary_loss = self.auxiliary_net.padded_loss(states, keys, negatives, lengths)
        if keys.size(1) == 0:
            return keys.sum(1), auxiliary_loss
        if self.gru_type == "GRU":
            evolved, _ = _run_gru(self._second_gru(), states, lengths=lengths)
            assert evolved is not None
            scores = self.attention.padded_scores(query, evolved, lengths)
            return torch.bmm(scores.unsqueeze(1), evolved).squeeze(1), auxiliary_loss
        scores = self.attention.padded_scores(query, states, lengths)
        if self.gru_type == "AIGRU":
            scaled = states * scores.unsqueeze(2)
            return _run_gru(self._second_gru(), scaled, lengths=lengths, return_states=False)[1], auxiliary_loss
        evolution = self.interest_evolution
        assert isinstance(evolution, DynamicGRU)
        weights = Weights.of_cell(evolution.rnn)
        _, interest = attention_gru(
            states, scores, *weights, lengths=lengths, cell=evolution.rnn.cell, return_states=False
        )
        return interest, auxiliary_loss

    def _extract(self, rows: Ragged) -> Ragged:
        return self._gru_states(self.interest_extractor, rows)

    def _second_gru(self) -> nn.GRU:
        assert isinstance(self.interest_evolution, nn.GRU)
        return self.interest_evolution

    def _evolve(self, query: Tensor, states: Ragged, return_states: bool) -> tuple[Tensor | None, Tensor]:
        """Return the evolved states ``[N, D]`` (if wanted and gru_type is not GRU) and the interest."""
        if self.gru_type == "GRU":
            states = self._gru_states(self._second_gru(), states)
            return None, self.attention.forward_ragged(query, states)
        return self._evolve_scored(states, self.attention.ragged_scores(query, states), return_states)

    def _evolve_scored(self, states: Ragged, scores: Tensor, return_states: bool) -> tuple[Tensor | None, Tensor]:
        if self.gru_type == "AIGRU":
            scaled = states._replace(values=states.values * scores.unsqueeze(1))
            return self._ragged_gru(self._second_gru(), scaled, return_states)
        assert isinstance(self.interest_evolution, DynamicGRU)
        return self.interest_evolution.forward_ragged(states, scores, return_states)

    @classmethod
    def _gru_states(cls, gru: nn.GRU, rows: Ragged) -> Ragged:
        """Run a GRU over ragged rows; states ``[N, D]``."""
        states, _ = cls._ragged_gru(gru, rows, return_states=True)
        assert states is not None
        return rows._replace(values=states)

    @staticmethod
    def _ragged_gru(gru: nn.GRU, rows: Ragged, return_states: bool) -> tuple[Tensor | None, Tensor]:
        """Run a GRU over ragged rows; states ``[N, D]`` if wanted, and the last ones ``[B, D]``."""
        if recurrence.KERNELS.are_used(rows.values):
            return _run_gru(gru, rows.values, offsets=rows.offsets, return_states=return_states)
        if rows.values.size(0) == 0:
            return rows.values, last_rows(rows)
        # torch's own GRU is faster than the reference loop.
        schedule = packed_schedule(Addresses(rows.lengths(), rows.offsets[:-1], None))
        sizes = torch.tensor(schedule.batch_sizes)
        packed = gru(PackedSequence(rows.values[schedule.rows], sizes))[0]
        states = torch.empty_like(packed.data).index_copy(0, schedule.rows, packed.data)
        return states, last_rows(rows._replace(values=states))


def _stays_padded(keys: Tensor) -> bool:
    """Whether padded keys are computed where they are.

    So they are on a device that has kernels for the recurrences, but none that copy the valid rows. Without these,
    the host would have to wait for the device to say how many rows there are.
    """
    return recurrence.KERNELS.take(keys) and not copies.COPY_KERNELS.take(keys) and wants_native()


def _run_gru(
    gru: nn.GRU,
    x: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    return_states: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Run a GRU of one layer through :func:`dien_fast.functional.attention_gru`."""
    return attention_gru(
        x,
        None,
        *Weights.of_gru(gru),
        h0,
        lengths=lengths,
        offsets=offsets,
        cell="gru",
        return_states=return_states,
    )


def last_rows(rows: Ragged) -> Tensor:
    """Return the last row of each history ``[B, D]``, 0 for an empty one."""
    lengths = rows.lengths()
    if rows.values.size(0) == 0:
        return rows.values.new_zeros(lengths.numel(), rows.values.size(1)) + rows.values.sum()
    last = (rows.offsets[1:] - 1).clamp(min=0)
    return rows.values[last] * (lengths > 0).unsqueeze(1)


def candidate_owners(
    candidate_offsets: Tensor | None, users: int, candidates: int, device: torch.device | None = None
) -> Tensor:
    """Return the number of each candidate's user ``[C]`` int64.

    Raises:
        ValueError: unless ``candidate_offsets`` rise from 0 to C over all users, or are None for one user.
        TypeError: unless they are an integer tensor.
    """
    if candidate_offsets is None:
        if users != 1:
            raise ValueError(f"candidate_offsets must be given for {users} users, got None")
        return torch.zeros(candidates, dtype=torch.int64, device=device)
    if not isinstance(candidate_offsets, Tensor) or candidate_offsets.is_floating_point():
        got = (
            candidate_offsets.dtype if isinstance(candidate_offsets, Tensor) else type(candidate_offsets).__name__
        )
        raise TypeError(f"candidate_offsets must be a tensor of dtype int64, got {got}")
    if candidate_offsets.shape != (users + 1,):
        raise ValueError(f"candidate_offsets must have shape ({users + 1},), got {tuple(candidate_offsets.shape)}")
    counts = candidate_offsets.diff()
    if torch.compiler.is_compiling():
        # Offsets have no value while a graph is traced; the graph checks them when it runs.
        fits = (candidate_offsets[0] == 0) & (candidate_offsets[-1] == candidates) & (counts >= 0).all()
        torch._assert_async(fits, "candidate_offsets must rise from 0 to C")
    elif int(candidate_offsets[0]) != 0 or int(candidate_offsets[-1]) != candidates or bool((counts < 0).any()):
        raise ValueError(
            f"candidate_offsets must rise from 0 to {candidates}, got {int(candidate_offsets[0])} to "
            f"{int(candidate_offsets[-1])}"
        )
    return owners_of(candidate_offsets, candidates).to(device)
