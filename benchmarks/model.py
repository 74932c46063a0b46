"""Times whole models: a training step, an epoch with its data, the official setting, serving; and peak memory.

    python benchmarks/model.py [--threads 2] [--rounds 15] [--only step,epoch,official,serving,memory]

The step and the epoch are MovieLens-100K's with the article's hyper-parameters and the same fused Adam on both
sides; the epoch of the article's pipeline is a data set that looks up row by row, a DataLoader and the reference
model. The official setting is that of mouna99/dien on random data. Serving scores 200 candidates of one user.
Each of these runs in three processes, and medians over them count: where a process has its memory moves the time
of plain loops by half. Memory is the peak of the resident set in a training step of the interest layer, less what
was resident before it, in a process of its own. The results go to
``benchmarks/results/model-MACHINE-THREADS-threads.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from memory import resident
from providers import interest, lengths_of
from speed import interleaved, sgemm_gflops
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dien_fast
from dien_fast import AttentionGroup, Ragged, reference
from dien_fast.data import fit_encoders, pad_batch
from dien_fast.data.sources import Source
from dien_fast.training import runs, seed_everything
from dien_fast.training.optimizers import make_optimizer, tables_of
from dien_fast.training.pipeline import make_loaders

SECTIONS = ("step", "epoch", "official", "serving", "parts", "memory")
PROCESSES = 3
LAYER_SIZES = [(128, 50, 32), (256, 100, 36), (1024, 100, 64), (64, 1000, 64)]
BATCH = 128
Batch = dict[str, Any]


def step_of(model: nn.Module, optimizers: list[torch.optim.Optimizer], label: str) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        logits, auxiliary_loss = model(batch)
        loss = F.binary_cross_entropy_with_logits(logits, batch[label].to(logits.dtype)) + auxiliary_loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


class MovieLens:
    """The training rows, and both models with the same weights."""

    def __init__(self) -> None:
        config = runs.RunConfig()
        self.tables = Source("ml-100k").load(config.seed)
        self.schema = self.tables.schema
        self.encoders = fit_encoders(self.tables.train, self.schema)
        config.schema = self.schema.to_dict()
        self.loader = make_loaders(self.tables, self.schema, self.encoders, config)[0]
        seed_everything(config.seed, 0)
        self.native = runs.build_model(config, self.encoders)
        self.eager = reference.DIEN(**runs.model_arguments(config, self.encoders))
        self.eager.load_state_dict(self.native.state_dict())

    def steps(self) -> tuple[Callable[[Batch], None], Callable[[Batch], None]]:
        native, eager = (
            step_of(model, [adam(model.parameters())], self.schema.label) for model in (self.native, self.eager)
        )
        return native, eager


def measure_step(rounds: int) -> dict[str, Any]:
    data = MovieLens()
    batches = [batch for _, batch in zip(range(16), data.loader, strict=False)]
    padded = [pad_batch(batch) for batch in batches]
    native, eager = data.steps()
    runs_of: dict[str, Callable[[int], object]] = {
        "reference": lambda number: eager(padded[number % len(padded)]),
        "dien-fast": lambda number: native(batches[number % len(batches)]),
    }
    return {"milliseconds": interleaved(runs_of, rounds)}


def measure_epoch() -> dict[str, Any]:
    from test_loader import RowByRow

    data = MovieLens()
    native, eager = data.steps()
    seconds = {}
    begin = time.perf_counter()
    for batch in data.loader:
        native(batch)
    seconds["dien-fast"] = time.perf_counter() - begin
    rows = RowByRow(data.tables.train, data.schema, data.encoders)
    label = data.schema.label

    def read(batch: Batch) -> Batch:
        scalar = {name: batch[name].float() for name in [label, *data.schema.numeric]}
        return {name: value.long() for name, value in batch.items()} | scalar

    begin = time.perf_counter()
    for batch in DataLoader(rows, batch_size=BATCH, shuffle=True, drop_last=True):
        eager(read(batch | {label: batch["label"]}))
    seconds["article's pipeline"] = time.perf_counter() - begin
    return {"rows": len(rows), "seconds": {name: round(value, 2) for name, value in seconds.items()}}


def official(cls: type[nn.Module], vocabulary: int = 100_000) -> Any:
    """Return a model of the official code's sizes: 18 numbers an id, items and their categories."""
    pairs = [
        {"ad": "item", "pos_hist": "items", "neg_hist": "otherItems"},
        {"ad": "category", "pos_hist": "categories", "neg_hist": "otherCategories"},
    ]
    shared = dict.fromkeys(["items", "otherItems"], "item") | dict.fromkeys(
        ["categories", "otherCategories"], "category"
    )
    return cls(
        num_features=[],
        cat_features=["user", "item", "category"],
        seq_features=list(shared),
        cat_nums=dict.fromkeys(["user", "item", "category", *shared], vocabulary),
        embedding_size=18,
        attention_groups=[AttentionGroup("clicks", pairs, hidden_layers=[80, 40], activation="sigmoid")],
        mlp_hidden_layers=[200, 80],
        mlp_activation="dice",
        use_negsampling=True,
        shared_embeddings=shared,
    )


def official_batches(count: int, steps: int = 100, vocabulary: int = 100_000) -> list[Batch]:
    torch.manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = lengths_of(BATCH, steps)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        batch: Batch = {name: torch.randint(1, vocabulary, (BATCH,)) for name in ("user", "item", "category")}
        for name in ("items", "categories", "otherItems", "otherCategories"):
            batch[name] = Ragged(torch.randint(1, vocabulary, (int(offsets[-1]),)), offsets, steps)
        batches.append(batch | {"label": torch.randint(2, (BATCH,)).float()})
    return batches


def measure_official(rounds: int) -> dict[str, Any]:
    batches = official_batches(8)
    padded = [pad_batch(batch) for batch in batches]
    torch.manual_seed(0)
    eager, dense, sparse = official(reference.DIEN), official(dien_fast.DIEN), official(dien_fast.DIEN)
    dense.load_state_dict(eager.state_dict())
    sparse.load_state_dict(eager.state_dict())
    for table in tables_of(sparse):
        table.sparse = True
    steps = {
        "reference": step_of(eager, [adam(eager.parameters())], "label"),
        "dien-fast": step_of(dense, [adam(dense.parameters())], "label"),
        "dien-fast, sparse tables": step_of(
            sparse, [make_optimizer(sparse, "sparse-adam", lr=1e-3, weight_decay=0.0)], "label"
        ),
    }
    runs_of: dict[str, Callable[[int], object]] = {
        name: lambda number, step=step, given=padded if name == "reference" else batches: step(  # type: ignore[misc]
            given[number % len(given)]
        )
        for name, step in steps.items()
    }
    milliseconds = interleaved(runs_of, rounds)
    per_second = {name: round(1e3 * BATCH / value) for name, value in milliseconds.items()}
    return {"milliseconds": milliseconds, "records a second": per_second}


def measure_serving(rounds: int, steps: int = 50, size: int = 32, candidates: int = 200) -> dict[str, Any]:
    torch.manual_seed(0)
    eager, native = reference.Interest(size).eval(), dien_fast.Interest(size).eval()
    native.load_state_dict(eager.state_dict())
    histories = [torch.randn(steps, size) for _ in range(8)]
    queries = [torch.randn(candidates, size) for _ in range(8)]
    with torch.inference_mode():
        kept = [native.extract(history) for history in histories]
        lengths = torch.full((candidates,), steps)
        runs_of: dict[str, Callable[[int], Tensor]] = {
            "reference": lambda i: eager(
                queries[i], histories[i].expand(candidates, steps, size).contiguous(), lengths
            )[0],
            "dien-fast": lambda i: native.evolve_candidates(queries[i], histories[i]),
            "dien-fast, states kept": lambda i: native.evolve_candidates(queries[i], states=kept[i]),
        }
        for name, run in runs_of.items():
            torch.testing.assert_close(run(0), runs_of["reference"](0), rtol=1e-4, atol=1e-5, msg=name)
        times: dict[str, list[float]] = {name: [] for name in runs_of}
        for _, i in zip(range(20 * rounds), cycle(range(8)), strict=False):
            for name, run in runs_of.items():
                run((i + 1) % 8)
                begin = time.perf_counter()
                run(i)
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {
        "T": steps,
        "D": size,
        "candidates": candidates,
        "p50 milliseconds": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "p99 milliseconds": {
            name: round(sorted(values)[-len(values) // 100 - 1], 3) for name, values in times.items()
        },
    }


def operations(batch: int, steps: int, hidden: int) -> dict[str, float]:
    """Return the multiplications and additions of each part, forward and backward, as a plain layer has them."""
    rows = int(lengths_of(batch, steps).sum())
    first, second = 80, 40
    scores = hidden * first + first * second + second
    pairs = hidden * 100 + 2 * (hidden * 100 + 100 * 50 + 50)  # of a state, with a click and a negative
    return {
        "recurrences": 2 * 36.0 * hidden**2 * rows,
        "attention scores": 6.0 * scores * rows,
        "auxiliary loss": 6.0 * pairs * (rows - batch),
    }


def measure_parts(rounds: int) -> list[dict[str, Any]]:
    """Measure where a step of the interest layer spends its time, by torch's profiler."""
    names = {
        "attention_gru": "recurrences",
        "attention_scores": "attention scores",
        "auxiliary_loss": "auxiliary loss",
    }
    peak = sgemm_gflops(rounds)
    results = []
    for size in LAYER_SIZES:
        run = interest(size).runs["dien-fast"]
        for number in range(3):
            run(number)
        begin = time.perf_counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for number in range(rounds):
                run(number)
        total = (time.perf_counter() - begin) / rounds * 1e3
        milliseconds = dict.fromkeys(names.values(), 0.0)
        for event in profile.key_averages():
            name = event.key.removeprefix("dien_fast::").removesuffix("_backward")
            if event.key.startswith("dien_fast::") and name in names:
                milliseconds[names[name]] += event.self_cpu_time_total / rounds / 1e3
        rates = {name: value / milliseconds[name] / 1e6 for name, value in operations(*size).items()}
        milliseconds["everything else"] = total - sum(milliseconds.values())
        results.append(
            dict(zip("BTH", size, strict=True))
            | {"milliseconds": {name: round(value, 3) for name, value in milliseconds.items()}}
            | {"share of sgemm": {name: round(value / peak, 2) for name, value in rates.items()}}
        )
    return results


def peak_of_step(provider: str, batch: int, steps: int, hidden: int) -> float:
    """Return the MiB that a step takes beyond its inputs, in this process, which should be fresh."""
    cls = dien_fast.Interest if provider == "dien-fast" else reference.Interest

    def step(batch: int, steps: int) -> int:
        lengths = lengths_of(batch, steps)
        valid = (torch.arange(steps) < lengths.unsqueeze(1)).unsqueeze(-1)
        layer = cls(hidden, use_negsampling=True)
        query = torch.randn(batch, hidden).requires_grad_()
        keys, negatives = ((torch.randn(batch, steps, hidden) * valid).requires_grad_() for _ in range(2))
        before = resident("VmRSS")
        output, loss = layer(query, keys, lengths, negatives)
        torch.autograd.grad(output.sum() + loss, [query, keys, negatives, *layer.parameters()])
        return before

    step(4, 4)  # Starts the threads and loads what is loaded late.
    before = step(batch, steps)
    return round((resident("VmHWM") - before) / 2**20, 1)


def measure_memory(threads: int) -> list[dict[str, Any]]:
    rows = []
    for size in LAYER_SIZES:
        row: dict[str, Any] = dict(zip("BTH", size, strict=True)) | {"MiB": {}}
        for provider in ("reference", "dien-fast"):
            command = [sys.executable, __file__, "--threads", str(threads), "--one", provider, *map(str, size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row["MiB"][provider] = json.loads(done.stdout)
        rows.append(row)
    return rows


def median_of(results: list[Any]) -> Any:
    """Return the medians of the numbers in equal structures."""
    if isinstance(results[0], dict):
        return {name: median_of([result[name] for result in results]) for name in results[0]}
    return statistics.median(results)


def in_processes(section: str, threads: int, rounds: int) -> Any:
    """Return the medians of what a section says in processes of its own."""

    def everywhere() -> None:
        # OMP_PROC_BIND binds this thread to one processor, which children would inherit.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))

    results = []
    for _ in range(PROCESSES):
        command = [sys.executable, __file__, "--threads", str(threads), "--rounds", str(rounds)]
        command += ["--section", section]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=everywhere)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(section, json.dumps(results[-1]), flush=True)
    return median_of(results)


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each provider (15)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, all unless named")
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--one", nargs=4, metavar=("PROVIDER", "B", "T", "H"), help="measure memory here")
    parser.add_argument("--section", choices=SECTIONS[:4], help="measure one section here, once")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        provider, *size = given.one
        print(json.dumps(peak_of_step(provider, *map(int, size))))
        return
    sections: dict[str, Callable[[], Any]] = {
        "step": lambda: measure_step(given.rounds),
        "epoch": measure_epoch,
        "official": lambda: measure_official(given.rounds),
        "serving": lambda: measure_serving(given.rounds),
        "parts": lambda: measure_parts(given.rounds),
        "memory": lambda: measure_memory(given.threads),
    }
    if given.section:
        print(json.dumps(sections[given.section]()))
        return
    result = machine.description(given.threads) | {"rounds": given.rounds, "processes": PROCESSES}
    for name in given.only.split(","):
        alone = name in SECTIONS[:4]
        result[name] = in_processes(name, given.threads, given.rounds) if alone else sections[name]()
        print(name, json.dumps(result[name]), flush=True)
    if given.output or given.only == ",".join(SECTIONS):
        path = machine.RESULTS / f"model-{machine.here(given.threads)}.json"
        machine.save(result, given.output or path)


if __name__ == "__main__":
    main()
