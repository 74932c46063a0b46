"""FuxiCTR 2.3.10 (model_zoo/LongCTR/DIEN/DIEN.py).

Its AUGRU is ``augru`` with gates (u | r | n) in two nn.Linear; DynamicGRU returns the last states too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dien_fast.patches.cells import is_altered
from dien_fast.patches.layers import run_gru, run_loop
from dien_fast.patches.library import Change, Library, Plan, check_source, dynamic_gru, gru_changes
from dien_fast.patches.probe import RefusedError, check_same
from dien_fast.patches.recurrence import takes_kernel
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import uniform
from dien_fast.ragged import Ragged

_MODULE = "model_zoo.LongCTR.DIEN.DIEN"
_SOURCES = {
    "forward": "ccef88ba27ab802c",
    "interest_extraction": "8c6e38125c8118ec",
    "interest_evolution": "b77257c4ea938cf1",
    "get_unmasked_tensor": "dd625ea041a02b4c",
}


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
    """DIEN whose recurrences run on ragged rows between the embeddings and the layers behind."""

    gru_type: str
    item_info_dim: int
    enable_sum_pooling: bool
    extraction_modules: Any
    evolving_modules: Any
    attention_modules: Any
    embedding_layer: Any
    sum_pooling: Any
    dnn: Any
    get_inputs: Any

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Arguments and results as the original's."""
        recurrences = [self.extraction_modules[0], self.evolving_modules[0]]
        if (
            inputs[2].is_floating_point()
            or not all(isinstance(recurrence, Accelerated) for recurrence in recurrences)
            or is_altered(*recurrences, *self.attention_modules)
            or not takes_kernel(recurrences[0].weight_ih_l0)
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(inputs)
        features, items, mask = self.get_inputs(inputs)
        item_emb = self.embedding_layer(items, flatten_emb=True).view(mask.size(0), -1, self.item_info_dim)
        history, target = item_emb[:, :-1], item_emb[:, -1]
        parts = [self.embedding_layer(features, flatten_emb=True)] if features else []
        parts += [target, self._interest(history, target, mask)]
        if self.enable_sum_pooling:
            pooled = self.sum_pooling(history)
            parts += [pooled, target * pooled]
        return {"y_pred": self.dnn(torch.cat(parts, dim=-1))}

    def _interest(self, history: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the interest ``[B, H]``: of as many first steps as the mask ``[B, T]`` has, 0 for none."""
        lengths = mask.sum(dim=1)
        rows = Ragged.from_padded(history, lengths)
        states, _ = run_gru(self.extraction_modules[0], rows)
        if self.gru_type == "GRU":
            return run_gru(self.evolving_modules[0], states, return_states=False)[1]
        padded, present = states.pad(), lengths > 0
        if not bool(present.all()):
            # Histories without a step stay out of batch statistics.
            padded, target, mask = padded[present], target[present], mask[present]
            offsets = torch.cat([states.offsets[:1], states.offsets[1:][present]])
        else:
            offsets = states.offsets
        scores = Ragged.rows_of(self.attention_modules[0](padded, target, mask), offsets)
        return run_loop(self.evolving_modules[0], states, scores)


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


def check_model(cls: type[nn.Module]) -> None:
    """Raise RefusedError unless a class has the methods of FuxiCTR's DIEN."""
    check_source(cls, **_SOURCES)


def dien(module: Any) -> Plan:
    """Plan a DIEN."""
    names = [f"extraction_modules.{index}" for index in range(len(module.extraction_modules))]
    if module.gru_type in ("GRU", "AIGRU"):
        names += [f"evolving_modules.{index}" for index in range(len(module.evolving_modules))]

    def whole() -> Change:
        check_model(type(module))
        if module.gru_type == "AIGRU" or len(module.extraction_modules) != 1:
            raise RefusedError(
                "as a whole, because its gru_type is AIGRU, whose shapes do not fit in the original"
            )
        for part in (module.extraction_modules[0], module.evolving_modules[0]):
            if not isinstance(part, Accelerated):
                raise RefusedError(f"as a whole, because its {type(part).__name__} was left")
        if "forward" in module.__dict__:
            raise RefusedError("as a whole, because its forward was replaced on the instance")
        what = "recurrences on ragged rows; batches with one history or none that has a step work, which raised"
        return Change(module, Recipe(Model, type(module), None), what)

    return gru_changes(module, *names)._replace(whole=whole)


def copied_dien(module: Any) -> Plan:
    """Plan a class named DIEN in any module, if its methods are those of the model zoo to the letter."""
    try:
        check_model(type(module))
    except RefusedError:
        return Plan([], [])
    return dien(module)


def copied_attention(module: Any) -> Plan:
    """Plan a class named AttentionLayer in any module, if it has the parts of the model zoo's."""
    if getattr(module, "attention_type", None) != "bilinear_attention" or set(module._parameters) != {"W_kernel"}:
        return Plan([], [])
    return attention(module)


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
    # The model zoo is meant to be copied. Copies of its DynamicGRU are recognised as those of the article's are.
    copies={"DIEN": copied_dien, "AttentionLayer": copied_attention},
)
