"""Measures the memory of a forward and backward pass, each in a process of its own.

    python benchmarks/memory.py [--threads 2]

Dense input, float32, I = H, gradients of the states into x, attention and weights. "Extra" is the peak of the
resident set during the passes, less what was resident before them (inputs, weights and the states' gradients, all
touched) and less the results (states, last states, all gradients, by their shapes), in units of N x H numbers.
The kernels should stay below 1.5 of them and 64 MiB, whatever T.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import torch

import dien_fast
from dien_fast.functional import attention_gru

# The first three differ in T alone; above 10^7 numbers of state backward computes the gates again.
SIZES = [(1024, 250, 64), (256, 1000, 64), (64, 4000, 64), (256, 4000, 64)]
# The loop over steps takes minutes and tens of bytes a number beyond these.
LOOP_SIZES = SIZES[:2]
BACKENDS = {"dien-fast": "native", "fallback loop": "reference"}
LIMIT_UNITS, LIMIT_MIB = 1.5, 64


def resident(field: str) -> int:
    """Return VmRSS or VmHWM (the peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def passes(batch: int, steps: int, hidden: int) -> tuple[int, int]:
    """Run forward and backward once; return what was resident before, and the bytes of the results."""
    x = torch.randn(batch, steps, hidden).requires_grad_()
    att = torch.rand(batch, steps).requires_grad_()
    weights = [value.requires_grad_() for value in torch.randn(6 * hidden, hidden).mul(0.1).split(3 * hidden)]
    lengths, dstates = torch.full((batch,), steps), torch.ones(batch, steps, hidden)
    before = resident("VmRSS")
    states, last = attention_gru(x, att, *weights, lengths=lengths)
    assert states is not None
    gradients = torch.autograd.grad(states, [x, att, *weights], dstates)
    return before, sum(value.nbytes for value in (states, last, *gradients))


def measure(provider: str, batch: int, steps: int, hidden: int) -> dict[str, Any]:
    """Measure in this process, which should be fresh."""
    with dien_fast.use_backend(BACKENDS[provider]):
        passes(2, 2, hidden)  # Starts the threads and loads what is loaded late.
        before, results = passes(batch, steps, hidden)
    extra = resident("VmHWM") - before - results
    unit = 4 * batch * steps * hidden
    return {
        "provider": provider,
        "B": batch,
        "T": steps,
        "H": hidden,
        "extra MiB": round(extra / 2**20, 1),
        "extra / (N H)": round(extra / unit, 3),
        "within": extra < LIMIT_UNITS * unit + LIMIT_MIB * 2**20,
    }


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--one", nargs=4, metavar=("PROVIDER", "B", "T", "H"), help="measure here, print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        provider, *size = arguments.one
        print(json.dumps(measure(provider, *map(int, size))))
        return
    result = machine.description(arguments.threads) | {"rows": []}
    for provider in BACKENDS:
        for size in SIZES if provider == "dien-fast" else LOOP_SIZES:
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--one", provider]
            done = subprocess.run([*command, *map(str, size)], stdout=subprocess.PIPE, text=True, check=True)
            result["rows"].append(json.loads(done.stdout))
            print(done.stdout.strip(), flush=True)
    name = f"memory-{machine.here(arguments.threads)}.json"
    machine.save(result, arguments.output or machine.RESULTS / name)


if __name__ == "__main__":
    main()
