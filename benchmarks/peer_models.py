"""A DIEN of each library that dien_fast.accelerate knows, with a random batch, for benchmarks and tests.

Every builder makes the library's own model for one item feature of D numbers, so that the recurrences have D
inputs and D states, with negatives where the library has an auxiliary loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sizes(NamedTuple):
    """B, T, D, the number of items, and the lengths of the histories ``[B]``."""

    batch: int
    steps: int
    size: int
    items: int
    lengths: Tensor


class Peer(NamedTuple):
    """A model, what calls it on its batch, and its loss.

    Attributes:
        model: the library's own.
        call: returns the prediction and, where there is one, the auxiliary loss.
        loss: of what ``call`` returns.
    """

    model: nn.Module
    call: Callable[[Any], tuple[Tensor, ...]]
    loss: Callable[[tuple[Tensor, ...]], Tensor]


class Ids(NamedTuple):
    """Random ids: 0 is padding."""

    user: Tensor  # [B]
    item: Tensor  # [B]
    history: Tensor  # [B, T]
    negatives: Tensor  # [B, T]
    label: Tensor  # [B]


def ids(sizes: Sizes) -> Ids:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randint(1, sizes.items, shape, generator=generator)

    mask = torch.arange(sizes.steps) < sizes.lengths.unsqueeze(1)
    shape = (sizes.batch, sizes.steps)
    label = (torch.rand(sizes.batch, generator=generator) < 0.5).to(torch.get_default_dtype())
    return Ids(draw(sizes.batch), draw(sizes.batch), draw(*shape) * mask, draw(*shape) * mask, label)


def prediction_flow(sizes: Sizes, gru_type: str = "AUGRU", negatives: bool = True) -> Peer:
    from prediction_flow.features import Category, Features, Sequence
    from prediction_flow.pytorch import DIEN, AttentionGroup

    pair = {"ad": "item", "pos_hist": "history"} | ({"neg_hist": "negatives"} if negatives else {})
    names = ["history", *(["negatives"] if negatives else [])]
    features = Features(
        category_features=[Category("item", None, vocab_size=sizes.items)],
        sequence_features=[
            Sequence(name, None, embedding_name="item", vocab_size=sizes.items, max_length=sizes.steps)
            for name in names
        ],
    )
    group = AttentionGroup("group", [pair], hidden_layers=[80, 40], gru_type=gru_type)
    model = DIEN(
        features,
        [group],
        num_classes=2,
        embedding_size=sizes.size,
        hidden_layers=[200, 80],
        final_activation="sigmoid",
        use_negsampling=negatives,
    )
    given = ids(sizes)
    batch = {"item": given.item, "history": given.history, "__history_length": sizes.lengths}
    batch |= {"negatives": given.negatives} if negatives else {}

    def call(model: Any) -> tuple[Tensor, ...]:
        return tuple(value for value in model(batch) if value is not None)

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy(outputs[0].squeeze(1), given.label) + sum(outputs[1:])

    return Peer(model, call, loss)


def deepctr_torch(
    sizes: Sizes, gru_type: str = "AUGRU", negatives: bool = True, att_weight_normalization: bool = True
) -> Peer:
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIEN

    def sequence(name: str, length_name: str | None) -> Any:
        sparse = SparseFeat(name, sizes.items, sizes.size, embedding_name="item")
        return VarLenSparseFeat(sparse, maxlen=sizes.steps, length_name=length_name)

    columns = [
        SparseFeat("user", sizes.items, sizes.size),
        SparseFeat("item", sizes.items, sizes.size),
        sequence("hist_item", "seq_length"),
        *([sequence("neg_hist_item", "seq_length")] if negatives else []),
    ]
    model = DIEN(
        columns,
        ["item"],
        gru_type=gru_type,
        use_negsampling=negatives,
        att_weight_normalization=att_weight_normalization,
    )
    given = ids(sizes)
    parts = {
        "user": given.user.unsqueeze(1),
        "item": given.item.unsqueeze(1),
        "hist_item": given.history,
        "neg_hist_item": given.negatives,
        "seq_length": sizes.lengths.unsqueeze(1),
    }
    inputs = torch.cat([parts[name] for name in model.feature_index], dim=1).to(torch.get_default_dtype())

    def call(model: Any) -> tuple[Tensor, ...]:
        return model(inputs).squeeze(1), model.aux_loss

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        # As the library's fit: the sum over the batch, and the auxiliary loss's mean.
        return F.binary_cross_entropy(outputs[0], given.label, reduction="sum") + outputs[1].sum()

    return Peer(model, call, loss)


def recbole(sizes: Sizes, gru_type: str = "AUGRU", negatives: bool = True) -> Peer:
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.model.sequential_recommender.dien import DIEN

    assert negatives, "RecBole's DIEN always has negatives"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        path.mkdir()
        # Every item, so that the table has as many rows as asked for; the first is padding.
        lines = ["user_id:token\titem_id:token\ttimestamp:float"]
        lines += [f"{item}\t{item}\t{time}" for item in range(1, sizes.items) for time in (1, 2)]
        (path / "random.inter").write_text("\n".join(lines) + "\n")
        config = Config(
            model="DIEN",
            dataset="random",
            config_dict={
                "data_path": folder,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "embedding_size": sizes.size,
                "gru_type": gru_type,
                "MAX_ITEM_LIST_LENGTH": sizes.steps,
                "train_neg_sample_args": None,
                "use_gpu": False,
                "benchmark_filename": None,
            },
        )
        dataset = create_dataset(config)
        model = DIEN(config, dataset)
    given = ids(sizes)

    def call(model: Any) -> tuple[Tensor, ...]:
        logits, auxiliary = model(given.user, given.history, given.negatives, sizes.lengths, given.item)
        return logits, auxiliary

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[0], given.label) + outputs[1]

    return Peer(model, call, loss)


def fuxictr(
    sizes: Sizes, gru_type: str = "AUGRU", negatives: bool = False, attention_type: str = "bilinear_attention"
) -> Peer:
    from fuxictr.features import FeatureMap
    from model_zoo.LongCTR.DIEN.DIEN import DIEN

    assert not negatives, "FuxiCTR's DIEN has no auxiliary loss"
    features = FeatureMap("random", tempfile.gettempdir())
    kind = {"type": "categorical", "vocab_size": sizes.items, "padding_idx": 0, "embedding_dim": sizes.size}
    features.features["user"] = {"source": "user", **kind}
    features.features["item"] = {"source": "item", **kind}
    features.labels = ["label"]
    features.default_emb_dim = sizes.size
    features.num_fields = features.get_num_fields()
    model = DIEN(
        features,
        embedding_dim=sizes.size,
        gru_type=gru_type,
        attention_type=attention_type,
        optimizer="adam",
        loss="binary_crossentropy",
        verbose=0,
        model_root=tempfile.gettempdir(),
        metrics=["AUC"],
        batch_norm=False,
    )
    given = ids(sizes)
    mask = torch.arange(sizes.steps) < sizes.lengths.unsqueeze(1)
    items = torch.cat([given.history, given.item.unsqueeze(1)], dim=1).flatten()

    def call(model: Any) -> tuple[Tensor, ...]:
        inputs = ({"user": given.user, "label": given.label}, {"item": items}, mask)
        return (model(inputs)["y_pred"].squeeze(1),)

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy(outputs[0], given.label)

    return Peer(model, call, loss)


def torch_rechub(sizes: Sizes, gru_type: str = "AUGRU", negatives: bool = True) -> Peer:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIEN

    assert (gru_type, negatives) == ("AUGRU", True), "torch-rechub's DIEN is AUGRU with negatives"

    def sequence(name: str) -> Any:
        return SequenceFeature(name, sizes.items, sizes.size, pooling="concat", shared_with="item", padding_idx=0)

    model = DIEN(
        features=[SparseFeature("user", sizes.items, sizes.size)],
        history_features=[sequence("history")],
        neg_history_features=[sequence("negatives")],
        target_features=[SparseFeature("item", sizes.items, sizes.size, padding_idx=0)],
        mlp_params={"dims": [200, 80]},
    )
    given = ids(sizes)
    batch = {"user": given.user, "item": given.item, "history": given.history, "negatives": given.negatives}

    def call(model: Any) -> tuple[Tensor, ...]:
        prediction, auxiliary = model(batch)
        return prediction, auxiliary

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy(outputs[0], given.label) + outputs[1]

    return Peer(model, call, loss)


BUILDERS: dict[str, Callable[..., Peer]] = {
    "deepctr-torch": deepctr_torch,
    "recbole": recbole,
    "fuxictr": fuxictr,
    "prediction-flow": prediction_flow,
    "torch-rechub": torch_rechub,
}
