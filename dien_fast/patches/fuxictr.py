"""FuxiCTR 2.3.10 (model_zoo/LongCTR/DIEN/DIEN.py).

Its AUGRU is ``augru`` with gates (u | r | n) in two nn.Linear; DynamicGRU returns the last states too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dien_fast.patches.library import Change, Library, Plan, gru_changes
from dien_fast.patches.listing import dynamic_gru
from dien_fast.patches.probe import RefusedError, check_same, uniform
from dien_fast.patches.recurrence import takes_kernel
from dien_fast.patches.swap import Accelerated, Recipe

_MODULE = "model_zoo.LongCTR.DIEN.DIEN"


class BilinearAttention(Accelerated):
    """AttentionLayer of type bilinear_attention: (s W) . q = s . (W q), a product for a candidate, not a step."""

    use_attention_softmax: bool
    W_kernel: Tensor

    def forward(self, sequence_emb: Tensor, target_emb: Tensor, mask: Tensor | None = None) -> Tensor:
        """Arguments and results as the original's: scores ``[B, T]``."""
        if not takes_kernel(sequence_emb) or torch.is_autocast_enabled("cpu"):
            return super().forward(sequence_emb, target_emb, mask)
        scores = torch.bmm(sequence_emb, (target_emb @ self.W_kernel.t()).unsqueeze(2)).squeeze(2)
        if mask is not None:
            scores = scores * mask.float()
        if self.use_attention_softmax:
            if mask is not None:
                scores = scores - 1.0e9 * (1 - mask.float())
            scores = scores.softmax(dim=-1)
        return scores


class Model(Accelerated):
    """DIEN with one history or none that has a step in a batch, where the original loses a dimension or raises."""

    gru_type: str

    def interest_extraction(self, idx: int, sequence_emb: Tensor, mask: Tensor) -> Any:
        """Arguments and results as the original's; (None, empty) for a batch without a step."""
        if sequence_emb.size(0) == 0:
            return None, sequence_emb
        return super().interest_extraction(idx, sequence_emb, mask)  # type: ignore[misc]

    def interest_evolution(
        self, idx: int, packed_interests: Any, interest_emb: Tensor, target_emb: Tensor, mask: Tensor
    ) -> Tensor:
        """Arguments and results as the original's: the interest ``[b, H]``."""
        if packed_interests is None:
            return torch.zeros_like(target_emb)
        interest = super().interest_evolution(  # type: ignore[misc]
            idx, packed_interests, interest_emb, target_emb, mask
        )
        return interest.view(target_emb.size(0), -1)


def attention(module: Any) -> Plan:
    """Plan an AttentionLayer."""
    if module.attention_type != "bilinear_attention":
        raise RefusedError(
            f"its attention_type is {module.attention_type!r}; bilinear_attention alone is made faster"
        )
    if "forward" in module.__dict__:
        raise RefusedError("its forward was replaced on the instance")
    recipe = Recipe(BilinearAttention, type(module), None)
    size = module.W_kernel.size(0)

    def draw(generator: torch.Generator) -> list[tuple[Any, ...]]:
        mask = torch.arange(5) < torch.tensor([5, 2, 1]).unsqueeze(1)
        return [
            (uniform(generator, 3, 5, size), uniform(generator, 3, size), given)
            for given in (mask, mask.flip(1), None)
        ]

    check_same(module, recipe, draw, tolerance=1e-10)
    return Plan([Change(module, recipe, "bilinear attention with one product a candidate")], [])


def dien(module: Any) -> Plan:
    """Plan a DIEN."""
    names = [f"extraction_modules.{index}" for index in range(len(module.extraction_modules))]
    if module.gru_type in ("GRU", "AIGRU"):
        names += [f"evolving_modules.{index}" for index in range(len(module.evolving_modules))]
    what = "batches with one history or none that has a step work, which raised"
    plan = gru_changes(module, *names)
    return plan._replace(changes=[*plan.changes, Change(module, Recipe(Model, type(module), None), what)])


LIBRARY = Library(
    name="fuxictr",
    distribution="fuxictr",
    versions=("2.3.10",),
    roots=("fuxictr", "model_zoo"),
    parts={
        (_MODULE, "DynamicGRU"): dynamic_gru,
        (_MODULE, "AttentionLayer"): attention,
        (_MODULE, "DIEN"): dien,
    },
)
