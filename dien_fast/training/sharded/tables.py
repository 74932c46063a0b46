"""The embedding tables of a model, divided by rows among the processes.

TorchRec looks the ids of a batch up wherever their rows are and sends the vectors back: one exchange for all
tables of a width, candidates, histories and negatives together. In the backward pass it sends the gradients the
other way, and FBGEMM's fused kernels move each row where it is. So there is no gradient of a table, and no
optimizer beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dien_fast.models import ClickModel
from dien_fast.nn.embedding import RemoteEmbedding
from dien_fast.training.settings import TrainSettings
from dien_fast.training.sharded.checks import KERNELS, import_torchrec, sharded_rule

# Initial rows are drawn in blocks of so many, so that they do not depend on which process has them.
_BLOCK = 1 << 16
# FBGEMM reads rows of whole vectors of 4 numbers.
_MULTIPLE = 4


class ShardedTables:
    """Looks ids up in tables whose rows several processes hold; :attr:`ClickModel.remote_tables` of a model.

    Every process must call it equally often, as each call is an exchange with the others.

    Args:
        sizes: rows and width of each table, by the feature that owns it.
        rule: "rowwise-adagrad", "adagrad" or "sgd".
        lr: step size.
        weight_decay: L2 penalty of the rows that have a gradient, of "rowwise-adagrad" alone.
        seed: of the initial rows.

    Attributes:
        sizes: rows and width of each table.
        rule: as given.
        group: the process group of the exchanges. It is another than that of the gradients of the dense weights,
            so that the two kinds of messages may overtake one another.

    Raises:
        ImportError: where TorchRec is not installed.

    Example:
        >>> tables = ShardedTables({"item": (1000, 16)}, "sgd", lr=0.1)  # doctest: +SKIP
        >>> tables({"item": [torch.tensor([3, 5])]})["item"][0].shape  # doctest: +SKIP
        torch.Size([2, 16])
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int]],
        rule: str = "rowwise-adagrad",
        lr: float = 0.1,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        import_torchrec()
        self.sizes, self.rule = dict(sizes), rule
        self._alone = not torch.distributed.is_initialized()
        if self._alone:
            store = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        self.group: Any = torch.distributed.new_group(backend="gloo")
        self._names = {owner: f"table{number}" for number, owner in enumerate(self.sizes)}
        by_width: dict[int, list[str]] = {}
        for owner, (_, width) in self.sizes.items():
            by_width.setdefault(width, []).append(owner)
        self._collections = [
            (owners, self._shard(owners, width, rule, lr, weight_decay)) for width, owners in by_width.items()
        ]
        self._fill(seed)

    def _shard(self, owners: list[str], width: int, rule: str, lr: float, weight_decay: float) -> Any:
        """Return TorchRec's module for the tables of one width."""
        if rule == "rowwise-adagrad":
            # FBGEMM takes the mean of the squares over the columns that pad the table, too, which have none.
            lr *= math.sqrt(width / padded(width))
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
        from torchrec import EmbeddingCollection, EmbeddingConfig
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv

        configs = [
            EmbeddingConfig(
                name=self._names[owner],
                num_embeddings=self.sizes[owner][0],
                embedding_dim=padded(width),
                feature_names=[self._names[owner]],
            )
            for owner in owners
        ]
        collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
        fused = {
            "optimizer": EmbOptimType[KERNELS[rule]],
            "learning_rate": lr,
            "eps": 1e-8,
            "weight_decay": weight_decay,
            "weight_decay_mode": WeightDecayMode.L2 if weight_decay else WeightDecayMode.NONE,
        }
        sharder = EmbeddingCollectionSharder(fused_params=fused)
        processes = torch.distributed.get_world_size()
        plan = construct_module_sharding_plan(
            collection,
            # The kernel must be named: that of another default, "dense", crashes the process (torchrec 1.8).
            {self._names[owner]: row_wise(compute_kernel="fused") for owner in owners},
            sharder=sharder,
            local_size=processes,
            world_size=processes,
            device_type="cpu",
        )
        environment = ShardingEnv.from_process_group(self.group)
        return sharder.shard(collection, plan, environment, torch.device("cpu"))

    @torch.no_grad()
    def _fill(self, seed: int) -> None:
        """Give the rows of this process their initial weights."""
        weights = self.state()["tables"]
        for number, (owner, (_, width)) in enumerate(self.sizes.items()):
            for shard in weights[owner].local_shards():
                first = shard.metadata.shard_offsets[0]
                shard.tensor.zero_()
                for begin in range(0, shard.tensor.size(0), _BLOCK):
                    part = shard.tensor[begin : begin + _BLOCK]
                    part[:, :width] = initial_rows(seed, number, first + begin, first + begin + len(part), width)

    def __call__(self, ids: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Look ids up, as :meth:`ClickModel.look_up` does.

        Raises:
            IndexError: for an id that its table does not have.
        """
        from torchrec import KeyedJaggedTensor

        flat = {owner: _join(values) for owner, values in ids.items()}
        for owner, values in flat.items():
            rows = self.sizes[owner][0]
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < rows:
                raise IndexError(f"ids must lie in [0, {rows - 1}]")
        found: dict[str, list[Tensor]] = {}
        for owners, collection in self._collections:
            own = [flat.get(owner, torch.zeros(0, dtype=torch.int64)) for owner in owners]
            # A table is one key with one row of ids: TorchRec then sends no lengths of single histories.
            batch = KeyedJaggedTensor(
                keys=[self._names[owner] for owner in owners],
                values=_join(own),
                lengths=torch.tensor([values.numel() for values in own]),
                stride=1,
            )
            vectors = collection(batch)
            for owner in owners:
                if owner in flat:
                    rows = vectors[self._names[owner]].values()
                    found[owner] = self._divide(rows, flat[owner], ids[owner], self.sizes[owner][1])
        return found

    @staticmethod
    def _divide(rows: Tensor, flat: Tensor, ids: Sequence[Tensor], width: int) -> list[Tensor]:
        """Return the vectors of each of several features, without the columns that pad the table."""
        if rows.size(1) != width:
            rows = rows[:, :width]
        padding = flat == 0
        if bool(padding.any()):
            # The row of padding is zero, and must stay so.
            rows = rows.masked_fill(padding.unsqueeze(1), 0)
        parts = rows.split([value.numel() for value in ids])
        return [part.view(*value.shape, width) for part, value in zip(parts, ids, strict=True)]

    def attend(self, times: int) -> None:
        """Take part in so many look-ups of the others, without ids of one's own."""
        with torch.no_grad():
            for _ in range(times):
                self({})

    def missing_look_ups(self, own: int) -> int:
        """Return how many more look-ups the busiest process will make than the ``own`` of this one."""
        most = torch.tensor(own)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self.group)
        return int(most) - own

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the tables and what their optimizer keeps, as sharded tensors that share memory with them.

        Returns:
            ``"tables"``: ``[V, D]`` by the feature that owns each, D being a multiple of 4; ``"optimizer"``: by
            ``feature/name``.
        """
        tables: dict[str, Any] = {}
        optimizer: dict[str, Any] = {}
        for owners, collection in self._collections:
            weights = collection.state_dict()
            states = collection.fused_optimizer.state_dict()["state"]
            for owner in owners:
                name = self._names[owner]
                tables[owner] = weights[f"embeddings.{name}.weight"]
                for key, value in states[f"embeddings.{name}.weight"].items():
                    optimizer[f"{owner}/{key.removeprefix(f'{name}.')}"] = value
        return {"tables": tables, "optimizer": optimizer}

    def numbers(self) -> int:
        """Return how many numbers the tables have, in all processes."""
        return sum(rows * width for rows, width in self.sizes.values())

    def close(self) -> None:
        """Give up the tables, and the process group if this made it."""
        self._collections = []
        if self._alone:
            torch.distributed.destroy_process_group()


def initial_rows(seed: int, table: int, first: int, end: int, width: int) -> Tensor:
    """Return the initial rows ``[end - first, width]`` of a table: standard normal, and the row of padding 0.

    Args:
        seed: of the training.
        table: number of the table.
        first: the first row.
        end: behind the last.
        width: numbers in a row.

    Example:
        >>> rows = initial_rows(0, 0, 0, 100_000, 4)
        >>> torch.equal(rows[70_000:], initial_rows(0, 0, 70_000, 100_000, 4))
        True
    """
    parts = []
    for block in range(first // _BLOCK, -(-end // _BLOCK)):
        word = int(np.random.SeedSequence([seed, table, block]).generate_state(1, np.uint64)[0] >> 1)
        rows = torch.randn(_BLOCK, width, generator=torch.Generator().manual_seed(word))
        if block == 0:
            rows[0] = 0
        parts.append(rows[max(first - block * _BLOCK, 0) : end - block * _BLOCK])
    return torch.cat(parts) if parts else torch.zeros(0, width)


def padded(width: int) -> int:
    """Return the width that a table has in TorchRec.

    Example:
        >>> padded(18)
        20
    """
    return -(-width // _MULTIPLE) * _MULTIPLE


@contextmanager
def sharded_tables(model: nn.Module, settings: TrainSettings) -> Iterator[None]:
    """Give a model that was built without its tables divided ones; for others, do nothing.

    Args:
        model: what :func:`dien_fast.training.runs.build_model` returned.
        settings: of the training; they name optimizer, step size and seed.
    """
    if settings.tables != "torchrec":
        yield
        return
    assert isinstance(model, ClickModel)
    places = model.embeddings
    sizes = {
        feature: (place.num_embeddings, place.embedding_dim)
        for feature, place in places.items()
        if feature not in model.shared_embeddings and isinstance(place, RemoteEmbedding)
    }
    lr = settings.table_lr or settings.lr
    tables = ShardedTables(sizes, sharded_rule(settings.table_optimizer), lr, settings.weight_decay, settings.seed)
    model.remote_tables = tables
    try:
        yield
    finally:
        del model.remote_tables
        tables.close()


def _join(values: Sequence[Tensor]) -> Tensor:
    """Return ids one after the other ``[N]`` int64; those of one feature as they are."""
    parts = [value.reshape(-1) for value in values]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.to(torch.int64)
