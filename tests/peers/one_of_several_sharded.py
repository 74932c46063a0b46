"""A process of a training with divided tables, or with plain ones to compare with.

    torchrun --nproc-per-node 2 one_of_several_sharded.py train DIRECTORY TABLES RULE BATCH_SIZE KILLED [--resume]
    torchrun --nproc-per-node 2 one_of_several_sharded.py tables FROM TO

``train`` trains on synthetic clicks. TABLES is "torchrec" or "local", RULE "sgd" or "rowwise-adagrad"; the dense
weights are moved by SGD. KILLED is the epoch within which the last process kills itself; 0 is none. ``tables``
reads the tables in the run FROM, or makes new ones and moves their rows where FROM is "new", and writes them
to the run TO.
"""

from __future__ import annotations

import os
import signal
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import torch

from dien_fast.data.sources import Source
from dien_fast.errors import DienFastError
from dien_fast.training import loop, pipeline
from dien_fast.training.config import RunConfig
from dien_fast.training.directory import RunDirectory
from dien_fast.training.optimizers import RowOptimizer, Together, tables_of
from dien_fast.training.sharded.files import TableFiles
from dien_fast.training.sharded.tables import ShardedTables, initial_rows

ROWS = 800
# Rows and width of each table; the first width is not one of FBGEMM's, and the last table has a row too few for 2.
SIZES = {"item": (101, 6), "word": (70, 8), "flag": (3, 6)}


def optimizer_of(model, rule, lr, weight_decay, table_lr):
    """SGD, which two sums of the same gradients move alike, and for plain tables the rule that is compared."""
    dense = [value for name, value in model.named_parameters() if "embedding:" not in name]
    tables = [table.weight for table in tables_of(model)]
    parts = {"dense": torch.optim.SGD(dense, lr=lr)}
    if tables and rule == "rowwise-adagrad":
        parts["tables"] = RowOptimizer(tables, rule, table_lr, weight_decay)
    elif tables:
        parts["tables"] = torch.optim.SGD(tables, lr=table_lr)
    return Together(**parts)


def same_weights(model):
    """Give a model weights that do not depend on where its tables are."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "embedding:" not in name and value.dim() > 1:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
            elif "embedding:" not in name and "bias" in name:
                value.zero_()
            elif "embedding:" not in name and "prelu" not in name:
                value.fill_(0.9)
        for number, table in enumerate(tables_of(model)):
            table.weight.copy_(initial_rows(0, number, 0, *table.weight.shape))
    return model


def kill_in(epoch):
    """Kill this process, if it is the last, in the middle of an epoch; the others say that they have lost it."""
    # With this, torchrun would end them before they notice.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    backward = loop._Trainer._backward

    def dying(self, *arguments):
        last = self._accelerator.process_index == self._accelerator.num_processes - 1
        if self.state.epoch + 1 == epoch and last:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, *arguments)

    loop._Trainer._backward = dying


def train(directory, tables, rule, batch_size, killed, *resume):
    """Train, and write the run."""
    loop.make_optimizer = optimizer_of
    build = pipeline.build_model
    pipeline.build_model = lambda *arguments, **named: same_weights(build(*arguments, **named))
    # Several batches, and of two processes one gets more than the other.
    pipeline._SCORING_BATCH = 32
    if int(killed):
        kill_in(int(killed))
    if tables == "local" and rule == "sgd":
        rule = "adam"  # dense gradients, which optimizer_of gives to SGD
    config = RunConfig(
        epochs=2,
        lr=0.05,
        table_lr=0.1,
        weight_decay=0.0 if rule != "rowwise-adagrad" else 0.01,
        batch_size=int(batch_size),
        embedding_size=6,
        attention_hidden=[4],
        attention_dropout=0.0,
        mlp_hidden=[4],
        mlp_dropout=0.0,
        table_optimizer=rule,
        tables=tables,
        sync_batchnorm=True,
        process_timeout="60s",
    )
    source = Source("synthetic", rows=ROWS)
    pipeline.train_run(source, config, directory, cpu=True, progress=False, resume=bool(resume))


def steps(tables):
    """Look up other ids in each process, of which the last has none in one table, and move the rows."""
    rank = torch.distributed.get_rank()
    last = rank == torch.distributed.get_world_size() - 1
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        ids = {name: torch.randint(0, rows, (40,), generator=generator) for name, (rows, _) in SIZES.items()}
        if last:
            ids["word"] = ids["word"][:0]
        found = tables(
            {
                name: [values[:7], values[7:].view(3, -1)] if len(values) else [values]
                for name, values in ids.items()
            }
        )
        if not last:
            assert found["item"][0].shape == (7, 6)
            assert found["word"][1].shape == (3, 11, 8)
        for name, parts in found.items():
            rows = torch.cat([part.reshape(-1, part.size(-1)) for part in parts])
            assert not rows[ids[name] == 0].any(), "the row of padding has moved"
        sum((part * part).sum() for parts in found.values() for part in parts).backward()
    try:
        tables({"item": [torch.tensor([SIZES["item"][0]])]})
    except IndexError:
        return
    raise AssertionError("an id outside its table was taken")


def move_tables(source, destination):
    """Read tables, or make them and move their rows; write them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    tables = ShardedTables(SIZES, "rowwise-adagrad", lr=0.1, weight_decay=0.01, seed=5)
    if source == "new":
        steps(tables)
    else:
        TableFiles(tables, RunDirectory(source)).load(1)
    place = Path(destination)
    place.mkdir(exist_ok=True)
    TableFiles(tables, RunDirectory(place)).save(1)
    tables.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        {"train": train, "tables": move_tables}[sys.argv[1]](*sys.argv[2:])
    except DienFastError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        # Threads of the group would abort the process at its end.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
