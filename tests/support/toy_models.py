"""Models that need no more than what the base asks for."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from dien_fast import Ragged
from dien_fast.models import ClickModel
from dien_fast.settings import Rule, Settings


class Scaled(nn.Module):
    """The sum of a history's events, scaled by the candidate."""

    def __init__(self, size, layers=1):
        super().__init__()
        self.scale = nn.Sequential(*(nn.Linear(size, size) for _ in range(layers)))

    def forward(self, query, events):
        return events.pad().sum(1) * self.scale(query)


@dataclass
class SumsOptions(Settings):
    """The options of Sums alone."""

    scale_layers: Annotated[int, Rule("layers that scale the sum", least=1)] = 1


class Sums(ClickModel):
    """Pools ragged histories, and knows nothing of negatives."""

    options = SumsOptions

    def __init__(self, *args, scale_layers=1, **kwargs):
        self.scale_layers = scale_layers  # before the base makes the groups' layers
        super().__init__(*args, **kwargs)

    def create_attention_fn(self, attention_group):
        return Scaled(self.group_size(attention_group), self.scale_layers)

    def pool_group(self, layer, query, clicked, sampled):
        assert isinstance(clicked, Ragged)
        assert sampled is None
        return layer(query, clicked), None


class Traced(Sums):
    """Takes padding as it is, has an auxiliary loss and can be traced."""

    uses_negatives = True
    can_trace = True
    keeps_padding = True

    def pool_group(self, layer, query, clicked, sampled):
        if isinstance(clicked, Ragged):
            clicked, sampled = (None if rows is None else rows.pad() for rows in (clicked, sampled))
        else:
            clicked, sampled = (None if rows is None else rows.values for rows in (clicked, sampled))
        loss = None if sampled is None else (clicked - sampled).square().mean()
        return clicked.sum(1) * layer.scale(query), loss

    def trace_group(self, layer, query, clicked):
        rows = clicked.pad() if isinstance(clicked, Ragged) else clicked.values
        return torch.einsum("bd,btd->bt", query, rows), rows
