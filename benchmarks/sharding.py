"""Times a training step with tables that TorchRec divides among 1 and 2 processes, each with a batch of its own.

    .venv-peers/torchrec/bin/python benchmarks/sharding.py [--rows 1000000] [--rounds 20] [--output results.json]

Weak scaling: each process has one thread, a batch as in ``benchmarks/embeddings.py`` and ``--rows`` rows of each
of the two tables, so that two processes have twice the rows and twice the batch. Milliseconds are medians of the
first process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import machine  # noqa: E402
from embeddings import BATCH, LONGEST, SHORTEST, WIDTH, batches_of, model_of  # noqa: E402

from dien_fast.nn.embedding import RemoteEmbedding  # noqa: E402
from dien_fast.training.sharded.tables import ShardedTables  # noqa: E402

PROCESSES = (1, 2)
WARM_UP = 3
_RESULT = "milliseconds "


def worker(rows: int, rounds: int) -> None:
    """Take steps in this process, and print the median of a step if it is the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    processes, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = model_of(2)
    for owner in ("item", "category"):
        model.add_module(f"embedding:{owner}", RemoteEmbedding(rows * processes, WIDTH, padding_idx=0))
    tables = ShardedTables(dict.fromkeys(("item", "category"), (rows * processes, WIDTH)), lr=0.05)
    model.remote_tables = tables
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = batches_of(rows * processes)
    taken = []
    for number in range(WARM_UP + rounds):
        batch = batches[(number + rank) % len(batches)]
        begin = time.perf_counter()
        logits, auxiliary_loss = wrapped(batch)
        (F.binary_cross_entropy_with_logits(logits, batch["label"]) + auxiliary_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(1000 * (time.perf_counter() - begin))
    if rank == 0:
        print(f"{_RESULT}{statistics.median(taken[WARM_UP:])}", flush=True)
    torch.distributed.barrier()
    tables.close()
    torch.distributed.destroy_process_group()


def measure(processes: int, rows: int, rounds: int) -> float:
    """Return the milliseconds of a step of so many processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launch, __file__, "--worker", "--rows", str(rows), "--rounds", str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    return float(line.removeprefix(_RESULT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a table for each process (1000000)")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps (20)")
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.rows, arguments.rounds)
        return
    found = {str(number): measure(number, arguments.rows, arguments.rounds) for number in PROCESSES}
    for number, milliseconds in found.items():
        rate = 1000 * BATCH * int(number) / milliseconds
        print(f"{number} processes: {milliseconds:.1f} ms a step, {rate:,.0f} rows/s")
    if arguments.output:
        result = machine.description(1) | {
            "rounds": arguments.rounds,
            "B of a process": BATCH,
            "T": [SHORTEST, LONGEST],
            "D": WIDTH,
            "rows of a process": arguments.rows,
            "milliseconds": found,
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
