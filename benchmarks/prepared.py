"""Data larger than memory: made in a stream, prepared, and trained on; speed and resident memory of each.

``python benchmarks/prepared.py --rows 50000000 --directory /data`` writes Parquet files of clicks (histories of up
to 50 events, 5 million items), prepares them, and takes 2,000 steps. Each stage is a process of its own, whose
highest resident memory is printed. ``--compare`` also reads and trains on the same rows in memory, which must fit
there, in five turns, of which the median counts. Files that are there are not written again. ``--save`` adds the
figures to ``results/prepared.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from dien_fast.data import (
    ClickDataset,
    EpochLoader,
    NegativeSampler,
    PreparedData,
    Schema,
    fit_encoders,
    prepare,
    read_table,
)

TURNS = 5  # of the stages that are compared
FILE_ROWS = 1 << 20
GROUP_ROWS = 1 << 17
TOML = """
user = "user"
time = "time"
numeric = ["price"]
categorical = ["item", "country"]
sequences = ["past"]
[[groups]]
name = "items"
pairs = [{ ad = "item", pos_hist = "past" }]
"""
SCHEMA = Schema.from_dict(tomllib.loads(TOML))


def main() -> None:
    """Run one stage, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--directory", type=Path, required=True, help="on a disk with 300 bytes a row")
    parser.add_argument("--compare", action="store_true", help="with the same rows in memory")
    parser.add_argument("--save", action="store_true", help="the figures for docs/prepared.md")
    parser.add_argument("--stage", choices=list(STAGES))
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="options of dien-fast train")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(STAGES[arguments.stage](arguments) | {"peak_mib": peak_mib()}))
        return
    figures: dict[str, list[dict[str, Any]]] = {}
    stages = [stage for stage in STAGES if arguments.compare or not stage.endswith("memory")]
    for turn in range(TURNS if arguments.compare else 1):
        # What is compared takes turns, as the speed of a machine changes with the minutes.
        for stage in stages:
            if turn > 0 and "-" not in stage:  # writing and preparing, which are done
                continue
            command = [sys.executable, __file__, "--stage", stage, *sys.argv[1:]]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            figures.setdefault(stage, []).append(json.loads(output.splitlines()[-1]))
            print(f"{stage}: {figures[stage][-1]}", flush=True)
    if arguments.save:
        save({stage: middle(found) for stage, found in figures.items()}, arguments)


def middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the turn of median speed."""
    return sorted(found, key=lambda figures: figures.get("rows_per_second", 0))[len(found) // 2]


def save(figures: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Add the figures of a number of rows to the results file."""
    path = machine.RESULTS / "prepared.json"
    saved = json.loads(path.read_text())["rows"] if path.exists() else {}
    described = machine.description(torch.get_num_threads()) | {
        "B": arguments.batch_size,
        "items": arguments.items,
    }
    machine.save(described | {"rows": {**saved, str(arguments.rows): figures}}, path)


def write(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the clicks, a file for each million."""
    folder = arguments.directory / "clicks"
    folder.mkdir(parents=True, exist_ok=True)
    begin, written = time.perf_counter(), 0
    for number in range(-(-arguments.rows // FILE_ROWS)):
        rows = min(FILE_ROWS, arguments.rows - number * FILE_ROWS)
        path = folder / f"{number:05d}.parquet"
        if path.exists():
            continue
        unfinished = path.with_suffix(".unfinished")
        with pa.parquet.ParquetWriter(unfinished, clicks(1, 1, 0, 0).schema) as writer:
            for start in range(0, rows, GROUP_ROWS):
                first = number * FILE_ROWS + start
                writer.write_table(clicks(min(GROUP_ROWS, rows - start), arguments.items, first, first))
        unfinished.replace(path)
        written += rows
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    return {"rows_per_second": round(written / (time.perf_counter() - begin)), "gib": round(size / 2**30, 2)}


def clicks(rows: int, items: int, first: int, seed: int) -> pa.Table:
    """Return clicks: items of skewed popularity, whose names are large numbers without order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 51, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def draw(count: int) -> np.ndarray:
        index = (items * rng.random(count) ** 3).astype(np.uint64)
        return ((index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(16)).astype(np.int64)

    item = draw(rows)
    return pa.table(
        {
            "user": rng.integers(0, max(rows, 10**6), rows),
            "time": np.arange(first, first + rows),
            "label": ((item + lengths) % 3 == 0).astype(np.int8),
            "price": rng.random(rows),
            "item": item,
            "country": pa.array(np.array(["NO", "IS", "DE", "FR"])[rng.integers(0, 4, rows)]),
            "past": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(draw(int(offsets[-1])))),
        }
    )


def prepare_rows(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare the clicks."""
    output = arguments.directory / "prepared"
    if (output / "manifest.json").exists():
        return {"done": True}
    begin = time.perf_counter()
    data = prepare(arguments.directory / "clicks", SCHEMA, output, progress=True)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {
        "rows_per_second": round(sum(data.rows.values()) / seconds),
        "seconds": round(seconds),
        "gib": round(size / 2**30, 2),
        "words": data.encoders.category("item").dimension(),
    }


def read_prepared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read batches of the prepared rows, and do nothing with them."""
    begin = time.perf_counter()
    data = PreparedData(arguments.directory / "prepared")
    loader = EpochLoader(data.dataset("train", negatives=data.negatives()), arguments.batch_size, shuffle=True)
    return loading(loader, begin, arguments)


def read_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read batches of the same rows in memory."""
    begin = time.perf_counter()
    table = read_table(arguments.directory / "clicks", SCHEMA)
    encoders = fit_encoders(table, SCHEMA)
    negatives = NegativeSampler.fit(table, SCHEMA, encoders)
    dataset = ClickDataset(table, SCHEMA, encoders, negatives=negatives, checked=True)
    return loading(EpochLoader(dataset, arguments.batch_size, shuffle=True), begin, arguments)


def loading(loader: EpochLoader, begin: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how soon the first batch comes, and how fast so many as a window and a half has rows."""
    batches = iter(loader)
    next(batches)
    opened = time.perf_counter()
    rows = 0
    for batch in batches:
        rows += len(batch["__row__"])
        if rows > 3 * FILE_ROWS:
            break
    return {
        "first_batch_s": round(opened - begin, 2),
        "rows_per_second": round(rows / (time.perf_counter() - opened)),
    }


def train_prepared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take steps on the prepared rows."""
    return training(["--dataset", str(arguments.directory / "prepared")], arguments)


def train_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take steps on the same rows in memory."""
    schema = arguments.directory / "clicks.toml"
    schema.write_text(TOML)
    return training(["--dataset", str(arguments.directory / "clicks"), "--schema", str(schema)], arguments)


def training(source: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what steps took; those of the first tenth, which warm up, count for nothing but the first batch."""
    from dien_fast.cli import build_parser
    from dien_fast.cli.train import settings
    from dien_fast.training.pipeline import train_run
    from dien_fast.training.position import TrainingStopped

    words = ["train", *source, "--batch-size", str(arguments.batch_size), "--epochs", "1", *arguments.train]
    described, config = settings(build_parser().parse_args(words), arguments.directory / "run")
    stop = StopAfter(arguments.steps)
    begin = time.perf_counter()
    try:
        train_run(
            described, config, arguments.directory / "run", overwrite=True, cpu=True, progress=False, stop=stop
        )
    except TrainingStopped as stopped:
        print(stopped)
    times = np.diff(stop.times)[len(stop.times) // 10 :]
    return {
        "first_step_s": round(stop.times[0] - begin, 1),
        "steps": len(stop.times),
        "step_ms": round(float(np.median(times)) * 1e3, 2),
        "rows_per_second": round(arguments.batch_size * len(times) / float(times.sum())),
    }


class StopAfter:
    """Asks a training to stop after some steps, and remembers when each ended; a kind of StopRequest."""

    def __init__(self, steps: int) -> None:
        from dien_fast.training.position import StopRequest

        self._steps, self.hearing = steps, StopRequest().hearing
        self.times: list[float] = []

    @property
    def asked(self) -> bool:
        """Whether so many steps were taken; looked at after each."""
        self.times.append(time.perf_counter())
        return len(self.times) >= self._steps


def peak_mib() -> int:
    """Return the highest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "write": write,
    "prepare": prepare_rows,
    "read-prepared": read_prepared,
    "read-memory": read_memory,
    "train-prepared": train_prepared,
    "train-memory": train_memory,
}

if __name__ == "__main__":
    main()
