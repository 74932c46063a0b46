"""Times the DIEN of a library as it is against the same one accelerated.

    VENV/bin/python benchmarks/peers.py LIBRARY [--threads 2] [--rounds 15] [--sizes 128,50,32 256,100,36]

by an interpreter that has the library (``tests/peers/requirements``). Two things are timed, in one process and in
turn: ``recurrence``, the library's AUGRU forward and backward on the batch of that size, and ``step``, a whole
training step of its model with Adam: embeddings, both recurrences, attention, auxiliary loss, the layers behind,
backward, update. Lengths are uniform in [T / 4, T]. Before that the two must agree. Figures are medians over the
rounds and go to ``benchmarks/results/peers-MACHINE-THREADS-threads.json``, beside those of the other libraries.

``--profile`` prints instead where a step spends its time, before and after.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
from collections.abc import Callable
from typing import Any

import machine
import torch
from peer_models import BUILDERS, Peer, Sizes
from providers import lengths_of
from speed import interleaved, sgemm_gflops
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import dien_fast
from dien_fast.patches.recurrence import Loop
from dien_fast.patches.registry import LIBRARIES
from dien_fast.patches.swap import Accelerated

DEFAULT_SIZES = [(128, 50, 32), (256, 100, 36), (1024, 100, 64)]
ITEMS = 10_000


def build(library: str, size: tuple[int, int, int]) -> tuple[Peer, nn.Module]:
    """Return a library's model, and an accelerated copy of it."""
    torch.manual_seed(0)
    batch, steps, hidden = size
    peer = BUILDERS[library](Sizes(batch, steps, hidden, ITEMS, lengths_of(batch, steps)))
    # RecBole turns it on where it is imported (its sine.py), and then spends a third of a step looking for NaN.
    torch.autograd.set_detect_anomaly(False)
    fast = copy.deepcopy(peer.model)
    report = dien_fast.accelerate(fast)
    if report.left or not report.fast:
        raise RuntimeError(f"{library} was not accelerated: {report}")
    return peer, fast


def check(peer: Peer, fast: nn.Module) -> None:
    """Raise unless both models have the same loss and gradients, as far as float32 tells."""
    losses, gradients = [], []
    for model in (peer.model, fast):
        loss = peer.loss(peer.call(model))
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
        model.zero_grad()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    largest = max(float(value.abs().max()) for value in gradients[0])
    # A bias before batch normalisation has rounding noise for a gradient: up to 1.2e-5 of the largest here.
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        if float((ours - theirs).abs().max()) > 1e-3 * max(float(theirs.abs().max()), 0.1 * largest):
            raise AssertionError("the accelerated model has other gradients")


def step_of(peer: Peer, model: nn.Module) -> Callable[[int], object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(_: int) -> None:
        loss = peer.loss(peer.call(model))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def loop_of(fast: nn.Module) -> tuple[str, Loop]:
    """Return the path of the loop that runs as one operator in an accelerated model, and what it computes."""
    found = [
        (path, module._dien_fast.details)
        for path, module in fast.named_modules()
        if isinstance(module, Accelerated) and isinstance(module._dien_fast.details, Loop)
    ]
    if len(found) != 1:
        raise RuntimeError(f"the model must have one loop as one operator, found {[path for path, _ in found]}")
    return found[0]


def recurrence_of(loop: nn.Module, details: Loop, size: tuple[int, int, int]) -> Callable[[int], object]:
    """Return what runs a loop forward and backward on a random batch."""
    batch, steps, hidden = size
    lengths = lengths_of(batch, steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, steps, hidden, generator=generator, requires_grad=True)
    att = torch.rand(batch, steps, generator=generator, requires_grad=True)
    dstates = torch.randn(batch, hidden, generator=generator)
    if details.arguments == ("x", "item", "mask"):  # torch-rechub's, whose loop has the attention in it
        item, mask = dstates.clone().requires_grad_(), torch.arange(steps) < lengths.unsqueeze(1)

        def run(_: int) -> None:
            torch.autograd.grad(loop(x, item, mask)[1], [x, item, *loop.parameters()], dstates)

        return run

    def packed(value: Tensor) -> Any:
        return pack_padded_sequence(value.detach(), lengths, batch_first=True, enforce_sorted=False)

    rows, scores = packed(x), packed(att)
    leaves = [rows.data.requires_grad_(), scores.data.requires_grad_()]
    drows = torch.randn(rows.data.shape, generator=generator)

    def run_packed(_: int) -> None:
        out = loop(rows, scores)
        states = out[0].data if isinstance(out[0], nn.utils.rnn.PackedSequence) else out.data
        torch.autograd.grad(states, [*leaves, *loop.parameters()], drows, allow_unused=True)

    return run_packed


def measure(library: str, size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    peer, fast = build(library, size)
    check(peer, fast)
    found: dict[str, Any] = {"size": list(size)}
    path, details = loop_of(fast)
    loops = [model.get_submodule(path) for model in (peer.model, fast)]
    for name, runs in (
        ("recurrence", [recurrence_of(loop, details, size) for loop in loops]),
        ("step", [step_of(peer, model) for model in (peer.model, fast)]),
    ):
        times = interleaved(dict(zip(("library", "accelerated"), runs, strict=True)), rounds)
        found[name] = {"milliseconds": times, "ratio": round(times["library"] / times["accelerated"], 2)}
    return found


def profile(library: str, size: tuple[int, int, int]) -> None:
    peer, fast = build(library, size)
    for name, model in (("library", peer.model), ("accelerated", fast)):
        step = step_of(peer, model)
        for number in range(2):
            step(number)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            step(0)
        print(f"{library} {size}: {name}")
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=50))


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("library", choices=sorted(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=None, help="B,T,D ...")
    parser.add_argument("--profile", action="store_true", help="print where a step spends its time instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = [tuple(map(int, size.split(","))) for size in arguments.sizes or []] or DEFAULT_SIZES
    if arguments.profile:
        for size in sizes:
            profile(arguments.library, size)
        return
    distribution = LIBRARIES[arguments.library].distribution
    result = machine.description(arguments.threads)
    result["versions"][distribution] = importlib.metadata.version(distribution)
    result["sgemm GFLOP/s"] = sgemm_gflops(arguments.rounds)
    result["rounds"] = arguments.rounds
    result["load"] = os.getloadavg()[0]
    result["sizes"] = []
    for size in sizes:
        found = measure(arguments.library, size, arguments.rounds)
        print(arguments.library, found, flush=True)
        result["sizes"].append(found)
    path = machine.RESULTS / f"peers-{machine.here(arguments.threads)}.json"
    every = json.loads(path.read_text()) if path.exists() else {}
    machine.save(every | {arguments.library: result}, path)


if __name__ == "__main__":
    main()
