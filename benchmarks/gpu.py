"""Times the CUDA kernels with events, beside the reference loop and cuDNN's GRU; run by benchmarks/gpu.sh.

    python benchmarks/gpu.py time [--output gpu.json] [--seconds 240]
    python benchmarks/gpu.py kernels [--output kernels.json]
    python benchmarks/gpu.py sanitize

Medians of rounds whose inputs rotate. nn.GRU is another function, without attention: what cuDNN does with such a
batch. A size is left out where its arrays would not fit or the time is spent. The floor is the larger of those of
memory and arithmetic in gpu_floors.py, an H100's; predictions are from there and from gpu_layer.py. `kernels` says
how long each kernel of a call takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gpu_layer
import torch
from gpu_floors import BATCHES, HIDDEN, floors, predicted
from machine import description, save
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import dien_fast
from dien_fast import Interest, Ragged, reference
from dien_fast.functional import attention_gru

LARGEST = 12 << 30  # bytes of x; states and gradients are as large
VARIANTS = 3

SHORT = {name: short for short, name in gpu_layer.NAMES.items()}
PROFILED = [(256, 100, 32), (256, 1000, 64), (1024, 100, 64), (4096, 100, 64), (1024, 100, 128), (256, 100, 256)]

Size = tuple[int, int, int]


def lengths_of(batch: int, steps: int) -> Tensor:
    lengths = torch.randint(steps // 4, steps + 1, (batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = steps
    return lengths


def milliseconds(run: Callable[[int], object], budget: float = 1.0) -> tuple[float, int]:
    """The median of a few to 30 rounds, and the peak of memory in bytes."""
    for number in range(2):
        run(number)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (len(times) < 30 and time.perf_counter() - begin < budget):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(len(times))
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), torch.cuda.max_memory_allocated()


class Recurrence:
    """AUGRU over ragged rows, and cuDNN's GRU on the same rows padded."""

    def __init__(self, size: Size, dtype: torch.dtype) -> None:
        self.batch, self.steps, self.hidden = size
        self.dtype = dtype
        lengths = lengths_of(self.batch, self.steps)
        self.lengths, self.rows = lengths, int(lengths.sum())
        self.offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cuda()
        bound = self.hidden**-0.5

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device="cuda", dtype=dtype)

        self.x = [draw(self.rows, self.hidden).requires_grad_() for _ in range(VARIANTS)]
        self.att = [torch.rand(self.rows, device="cuda").requires_grad_() for _ in range(VARIANTS)]
        self.weights = [
            (torch.empty(shape, device="cuda").uniform_(-bound, bound).to(dtype).requires_grad_())
            for shape in [(3 * self.hidden, self.hidden)] * 2 + [(3 * self.hidden,)] * 2
        ]
        self.gradient = draw(self.rows, self.hidden)

    def providers(self, backward: bool) -> Iterator[tuple[str, Callable[[int], object]]]:
        yield "dien-fast", lambda number: self.differentiate(number, backward, self.native)
        if self.steps == 100 and self.rows * self.hidden <= 1024 * 100 * 64:  # it takes a second for 1,000 steps
            yield "reference loop", lambda number: self.differentiate(number, backward, self.loop)
        gru = nn.GRU(self.hidden, self.hidden, batch_first=True, device="cuda", dtype=self.dtype)
        shape = (self.batch, self.steps, self.hidden)
        if self.batch * self.steps * self.hidden * self.dtype.itemsize > LARGEST // 2:
            return
        padded = torch.randn(shape, device="cuda", dtype=self.dtype, requires_grad=backward)
        packed = pack_padded_sequence(padded, self.lengths, batch_first=True, enforce_sorted=False)

        def run(x: Any) -> None:
            with torch.set_grad_enabled(backward):
                output, _ = gru(x)
                if backward:
                    value = output if isinstance(output, Tensor) else output.data
                    torch.autograd.grad(
                        value, [padded, *gru.parameters()], torch.ones_like(value), retain_graph=True
                    )

        yield "nn.GRU padded (another function)", lambda _: run(padded)
        yield "nn.GRU packed (another function)", lambda _: run(packed)

    def differentiate(self, number: int, backward: bool, run: Callable[[int], Tensor]) -> list[Tensor]:
        index = number % VARIANTS
        if not backward:
            with torch.no_grad():
                return [run(index)]
        states = run(index)
        return [
            states,
            *torch.autograd.grad(states, [self.x[index], self.att[index], *self.weights], self.gradient),
        ]

    def native(self, index: int) -> Tensor:
        states, _ = attention_gru(self.x[index], self.att[index], *self.weights, offsets=self.offsets)
        assert states is not None
        return states

    def loop(self, index: int) -> Tensor:
        with dien_fast.use_backend("reference"):
            states, _ = attention_gru(self.x[index], self.att[index], *self.weights, offsets=self.offsets)
        assert states is not None
        return states

    def check(self) -> None:
        """Compare with the loop; raises before anything is timed."""
        want, got = (self.differentiate(0, True, run) for run in (self.loop, self.native))
        for one, other in zip(got, want, strict=True):
            error = (one.double() - other.double()).norm() / other.double().norm()
            # Sums of a hundred thousand terms of 24 bits; 16-bit results are rounded.
            assert error < (1e-4 if self.dtype == torch.float32 else 2e-2), f"dien-fast is off by {error:.1e}"


def time_recurrence(deadline: float) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        Recurrence((256, 100, 64), dtype).check()
    sizes = [*product(BATCHES, (100, 1000), HIDDEN), *product((256, 1024), (4096,), (64,))]
    sizes.sort(key=lambda size: size[0] * size[1] * size[2] ** 2)
    for size, dtype in product(sizes, (torch.float32, torch.bfloat16)):
        batch, steps, hidden = size
        if batch * steps * hidden * 4 > LARGEST:
            continue
        if time.perf_counter() > deadline:
            print("the time is spent: larger sizes are left out")
            break
        torch.cuda.empty_cache()
        problem = Recurrence(size, dtype)
        for backward in (False, True):
            least = max(floors(problem.rows, hidden, dtype.itemsize, backward))
            for provider, run in problem.providers(backward):
                try:
                    median, memory = milliseconds(run, 0.15)
                except torch.cuda.OutOfMemoryError:
                    continue
                result = {
                    "function": "forward + backward" if backward else "forward",
                    "size": size,
                    "dtype": str(dtype).removeprefix("torch."),
                    "provider": provider,
                    "milliseconds": median,
                    "share of the floor": least / median,
                    "bytes": memory,
                }
                if provider == "dien-fast" and dtype == torch.float32:
                    result["predicted"] = predicted(*size, backward)
                results.append(result)
                print(row_of(result), flush=True)
    return results


def time_layer(deadline: float) -> list[dict[str, Any]]:
    """The interest layer in training mode with its auxiliary loss, forward and backward."""
    results: list[dict[str, Any]] = []
    for size in [(256, 100, 32), (1024, 100, 64), (4096, 100, 64), (256, 1000, 64)]:
        if time.perf_counter() > deadline:
            break
        batch, steps, hidden = size
        lengths = lengths_of(batch, steps)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        query = torch.randn(batch, hidden, device="cuda")
        values = [torch.randn(int(offsets[-1]), hidden, device="cuda") for _ in range(2)]
        keys, negatives = (Ragged(value, offsets.cuda(), steps) for value in values)
        native = Interest(hidden, use_negsampling=True).cuda()
        eager = reference.Interest(hidden, use_negsampling=True).cuda()
        padded = [rows.pad() for rows in (keys, negatives)]

        def run(layer: nn.Module, inputs: list[Any]) -> None:
            output, loss = layer(*inputs)
            torch.autograd.grad(output.sum() + loss, list(layer.parameters()))

        providers: dict[str, Callable[[int], object]] = {
            "dien-fast": lambda _, layer=native, inputs=[query, keys, None, negatives]: run(layer, inputs)
        }
        if batch * steps <= 1024 * 100:
            inputs = [query, padded[0], lengths.cuda(), padded[1]]
            providers["reference"] = lambda _, layer=eager, inputs=inputs: run(layer, inputs)
        for provider, call in providers.items():
            median, memory = milliseconds(call)
            result = {"function": "Interest", "size": size, "dtype": "float32", "provider": provider}
            results.append(result | {"milliseconds": median, "bytes": memory})
            print(row_of(results[-1]), flush=True)
    return results


class Operators:
    """The attention scores and the auxiliary loss of an interest layer, each with its gradients."""

    def __init__(self, size: Size) -> None:
        batch, steps, hidden = size
        lengths = lengths_of(batch, steps)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cuda()
        self.layer = Interest(hidden, use_negsampling=True, att_activation="dice").cuda()
        self.query = torch.randn(batch, hidden, device="cuda", requires_grad=True)
        self.states, self.events, self.negatives = (
            Ragged(torch.randn(int(lengths.sum()), hidden, device="cuda", requires_grad=True), offsets, steps)
            for _ in range(3)
        )
        self.gradient = torch.randn(self.states.values.size(0), device="cuda")

    def scores(self) -> None:
        wanted = [self.query, self.states.values, *self.layer.attention.parameters()]
        torch.autograd.grad(self.layer.attention.ragged_scores(self.query, self.states), wanted, self.gradient)

    def loss(self) -> None:
        values = [self.states.values, self.events.values, self.negatives.values]
        loss = self.layer.auxiliary_net.ragged_loss(self.states, *values[1:])
        torch.autograd.grad(loss, [*values, *self.layer.auxiliary_net.parameters()])


def time_operators(deadline: float) -> list[dict[str, Any]]:
    """The operators around the recurrences, forward and backward, beside the same in plain PyTorch."""
    results: list[dict[str, Any]] = []
    for size in [(256, 100, 64), (1024, 100, 64), (256, 1000, 64), (1024, 1000, 64), (1024, 4096, 64)]:
        if time.perf_counter() > deadline:
            break
        torch.cuda.empty_cache()
        problem = Operators(size)
        for function, run in (("attention scores", problem.scores), ("auxiliary loss", problem.loss)):
            for provider, backend in (("dien-fast", "native"), ("plain PyTorch", "reference")):
                try:
                    with dien_fast.use_backend(backend):
                        median, memory = milliseconds(lambda _, run=run: run())
                except torch.cuda.OutOfMemoryError:
                    continue
                result = {"function": function, "size": size, "dtype": "float32", "provider": provider}
                if provider == "dien-fast":
                    result["predicted"] = gpu_layer.predicted(SHORT[function], *size)
                results.append(result | {"milliseconds": median, "bytes": memory})
                print(row_of(results[-1]), flush=True)
    return results


def time_model(deadline: float) -> list[dict[str, Any]]:
    """A training step of a DIEN with the sizes of the official code, on the GPU."""
    from model import adam, official, official_batches, step_of

    if time.perf_counter() > deadline:
        return []
    model = official(dien_fast.DIEN).cuda()
    step = step_of(model, [adam(model.parameters())], "label")

    def to_gpu(value: Any) -> Any:
        if isinstance(value, Ragged):
            return Ragged(value.values.cuda(), value.offsets.cuda(), value.max_length)
        return value.cuda()

    batches = [{name: to_gpu(value) for name, value in batch.items()} for batch in official_batches(4)]
    median, memory = milliseconds(lambda number: step(batches[number % len(batches)]))
    result = {"function": "DIEN step", "size": (128, 100, 36), "dtype": "float32", "provider": "dien-fast"}
    print(row_of(result | {"milliseconds": median, "bytes": memory}), flush=True)
    return [result | {"milliseconds": median, "bytes": memory}]


def short_name(kernel: str) -> str:
    """A kernel's name without its namespaces, arguments and return type."""
    name = kernel.removeprefix("void ").replace("dien_fast::cuda::", "").replace("(anonymous namespace)::", "")
    return name.partition("(")[0] if "lambda" not in name else name[:80]


def kernels_of(run: Callable[[int], object], rounds: int = 10) -> list[dict[str, Any]]:
    """The kernels of a call, those that take longest first: their number and microseconds a call."""
    run(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for number in range(rounds):
            run(number)
        torch.cuda.synchronize()
    found = [
        {
            "kernel": short_name(event.key),
            "calls": event.count / rounds,
            "microseconds": event.self_device_time_total / rounds,
        }
        for event in profile.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(found, key=lambda row: -row["microseconds"])


def profile_kernels() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for size in PROFILED:
        recurrence, operators = Recurrence(size, torch.float32), Operators(size)
        calls: dict[str, Callable[[int], object]] = {
            "AUGRU": lambda number, one=recurrence: one.differentiate(number % VARIANTS, True, one.native),
            "attention scores": lambda _, one=operators: one.scores(),
            "auxiliary loss": lambda _, one=operators: one.loss(),
        }
        for function, call in calls.items():
            found = kernels_of(call)
            results.append({"function": function, "size": size, "kernels": found})
            total = sum(row["microseconds"] for row in found)
            print(f"{function}, {size}: {total:.0f} us in {sum(row['calls'] for row in found):.0f} kernels")
            for row in found[:12]:
                print(f"  {row['microseconds']:9.1f} us {row['calls']:5.1f}  {row['kernel']}", flush=True)
    return results


def row_of(result: dict[str, Any]) -> str:
    share = f"{result['share of the floor']:6.3f}" if "share of the floor" in result else " " * 6
    share += f" predicted {result['predicted']:8.3f}" if "predicted" in result else " " * 19
    size = " x ".join(f"{number:4d}" for number in result["size"])
    return (
        f"{result['function']:18s} {size} {result['dtype']:8s} {result['milliseconds']:10.3f} ms {share} "
        f"{result['bytes'] / 2**20:9.0f} MiB  {result['provider']}"
    )


def sanitize_layer() -> None:
    """Small calls of the layer on ragged rows: attention scores, auxiliary loss and weighted sums."""
    lengths = torch.tensor([3, 0, 140, 1, 77])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cuda()
    for dtype, gru_type in product((torch.float32, torch.float64), ("AUGRU", "GRU")):
        layer = Interest(
            18,
            gru_type=gru_type,
            use_negsampling=True,
            att_hidden_layers=(70, 9),
            att_activation="dice",
            att_dropout=0.1,
        ).to("cuda", dtype)
        query = torch.randn(5, 18, device="cuda", dtype=dtype)
        keys, negatives = (
            Ragged(torch.randn(221, 18, device="cuda", dtype=dtype), offsets, 140) for _ in range(2)
        )
        interest, loss = layer(query, keys, None, negatives)
        torch.autograd.grad(interest.sum() + loss, list(layer.parameters()))
        keys.pad()


def sanitize() -> None:
    """Small calls of every kernel: resident and streamed weights, both tiles, all layouts and types."""
    torch.manual_seed(0)
    sanitize_layer()
    shapes = [(5, 4, 3, 18), (600, 3, 5, 36), (5, 3, 4, 100), (4, 3, 4, 136)]
    for batch, steps, inputs, hidden in shapes:
        for dtype, cell in product((torch.float32, torch.bfloat16, torch.float64), ("augru", "agru", "gru")):
            lengths = torch.randint(0, steps + 1, (batch,), device="cuda")
            rows = (2 if cell == "agru" else 3) * hidden
            leaves = [
                torch.randn(shape, device="cuda", dtype=dtype).mul_(0.3).requires_grad_()
                for shape in [
                    (batch, steps, inputs),
                    (batch, steps),
                    (rows, inputs),
                    (rows, hidden),
                    (rows,),
                    (rows,),
                ]
            ]
            if cell == "gru":
                leaves[1] = None  # type: ignore[call-overload]
            states, last = attention_gru(*leaves, lengths=lengths, cell=cell)
            assert states is not None
            torch.autograd.grad(states.sum() + last.sum(), [leaf for leaf in leaves if leaf is not None])
    torch.cuda.synchronize()
    print("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["time", "kernels", "sanitize"])
    parser.add_argument("--output", type=Path, help="build/gpu/gpu.json, or kernels.json there")
    parser.add_argument("--seconds", type=float, default=240, help="after which no further size is begun")
    options = parser.parse_args()
    if options.task == "sanitize":
        sanitize()
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    deadline = time.perf_counter() + options.seconds
    properties = torch.cuda.get_device_properties(0)
    result = description(torch.get_num_threads()) | {
        "gpu": {"name": properties.name, "multiprocessors": properties.multi_processor_count},
        "cuda": torch.version.cuda,
    }
    if options.task == "kernels":
        result["results"] = profile_kernels()
    else:
        result["results"] = [
            *time_layer(deadline),
            *time_operators(deadline),
            *time_model(deadline),
            *time_recurrence(deadline),
        ]
    save(result, options.output or Path("build/gpu") / ("gpu.json" if options.task == "time" else "kernels.json"))


if __name__ == "__main__":
    main()
