"""DSIN: interests within and between a user's sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from dien_fast.models.base import ClickModel
from dien_fast.models.batches import Histories, Sessions
from dien_fast.nn.sessions import SessionInterest
from dien_fast.reference.groups import AttentionGroup
from dien_fast.settings import Rule, Settings


@dataclass
class DSINOptions(Settings):
    """The options of DSIN alone; the defaults are those of DeepCTR's ``DSIN`` (deepctr 0.9).

    Attributes:
        heads: of the self-attention; each group's candidate must have a multiple of so many channels.
        max_sessions: sessions kept of a history, the newest.
        max_events: events kept of a session, the newest.
        lstm_layers: layers of the Bi-LSTM.
        session_dropout: dropout probability of the inputs of each of its layers.
    """

    heads: Annotated[int, Rule("heads of the self-attention within a session", least=1)] = 8
    max_sessions: Annotated[int, Rule("newest sessions kept of a history", least=1)] = 5
    max_events: Annotated[int, Rule("newest events kept of a session", least=1)] = 10
    lstm_layers: Annotated[int, Rule("layers of the Bi-LSTM over sessions", least=1)] = 2
    session_dropout: Annotated[float, Rule("dropout of the inputs of each of these layers", least=0, below=1)] = (
        0.2
    )


class DSIN(ClickModel):
    """Deep Session Interest Network (arXiv 1905.06482): interests within and between a user's sessions.

    Self-attention and a mean give the interest of each session, a Bi-LSTM its context, and two activation units
    weigh both by the candidate: :class:`dien_fast.nn.sessions.SessionInterest` says how. What the MLP learns of a
    group is twice as wide as its candidate.

    The constructor is that of :class:`dien_fast.DIN` with the options of DSIN behind. Of a group it takes
    ``hidden_layers`` and ``att_dropout`` for the activation units, whose activation is the sigmoid, as in DeepCTR.
    Sampled histories are not used, and there is no auxiliary loss.

    A batch has the session of each event of a group ``"items"`` under ``"items.session"``, int64, ragged or padded
    as the group's histories. The number changes from one session to the next, and its value means nothing else.

    Args:
        arguments: as for :class:`dien_fast.DIN`.
        heads: number of attention heads.
        max_sessions: sessions kept of a history, the newest.
        max_events: events kept of a session, the newest.
        lstm_layers: layers of the Bi-LSTM.
        session_dropout: dropout probability of the inputs of each of its layers.
        named: as for :class:`dien_fast.DIN`.

    Raises:
        ValueError: if the feature lists, sizes, groups and shared tables do not fit together, or the width of a
            group's candidate is no multiple of ``heads``.

    Example:
        >>> import torch
        >>> from dien_fast import DSIN, AttentionGroup, Ragged
        >>> group = AttentionGroup("movies", [{"ad": "movieId", "pos_hist": "history"}], hidden_layers=[16, 8])
        >>> model = DSIN(
        ...     num_features=[],
        ...     cat_features=["movieId"],
        ...     seq_features=["history"],
        ...     cat_nums={"movieId": 100, "history": 100},
        ...     embedding_size=16,
        ...     attention_groups=[group],
        ...     mlp_hidden_layers=[32, 16],
        ... )
        >>> offsets = torch.tensor([0, 3, 3])
        >>> logits, auxiliary_loss = model(
        ...     {
        ...         "movieId": torch.tensor([5, 6]),
        ...         "history": Ragged(torch.tensor([7, 8, 9]), offsets, max_length=50),
        ...         "movies.session": Ragged(torch.tensor([0, 0, 1]), offsets, max_length=50),
        ...     }
        ... )
        >>> logits.shape, auxiliary_loss
        (torch.Size([2]), None)
    """

    options: ClassVar[type[Settings]] = DSINOptions
    uses_sessions: ClassVar[bool] = True

    def __init__(
        self,
        *arguments: Any,
        heads: int = DSINOptions.heads,
        max_sessions: int = DSINOptions.max_sessions,
        max_events: int = DSINOptions.max_events,
        lstm_layers: int = DSINOptions.lstm_layers,
        session_dropout: float = DSINOptions.session_dropout,
        **named: Any,
    ) -> None:
        # Before the base makes the layers of the groups.
        self.heads = heads
        self._layer_options: dict[str, Any] = {
            "max_sessions": max_sessions,
            "max_events": max_events,
            "lstm_layers": lstm_layers,
            "dropout": session_dropout,
        }
        super().__init__(*arguments, **named)

    def create_attention_fn(self, attention_group: AttentionGroup) -> nn.Module:
        """Return a new session layer for a group."""
        size = self.group_size(attention_group)
        if size % self.heads:
            raise ValueError(
                f"heads must divide the width of the candidate of group {attention_group.name!r}, {size}, the sum "
                f"of the embedding sizes of its pairs, got {self.heads}"
            )
        return SessionInterest(
            size,
            self.heads,
            att_hidden_layers=attention_group.hidden_layers,
            att_dropout=attention_group.att_dropout,
            **self._layer_options,
        )

    def pooled_size(self, attention_group: AttentionGroup) -> int:
        """Number of channels of what the MLP learns of a group: session interests, and the Bi-LSTM's states."""
        return 2 * self.group_size(attention_group)

    def pool_group(
        self, layer: nn.Module, query: Tensor, clicked: Histories, sampled: Histories | None
    ) -> tuple[Tensor, Tensor | None]:
        """Weigh the sessions ``[B, 2 * D]``; there is no auxiliary loss."""
        assert isinstance(layer, SessionInterest)
        assert isinstance(clicked, Sessions)
        return layer(query, clicked.events, clicked.numbers), None

    def pool_candidates(
        self, layer: nn.Module, query: Tensor, clicked: Histories, owner: Tensor, candidate_offsets: Tensor | None
    ) -> Tensor:
        """Weigh sessions ``[C, 2 * D]`` that are encoded once a user."""
        assert isinstance(layer, SessionInterest)
        assert isinstance(clicked, Sessions)
        interests, evolved = layer.encode(clicked.events, clicked.numbers)
        return layer.weigh(query, interests.take(owner), evolved.take(owner))
