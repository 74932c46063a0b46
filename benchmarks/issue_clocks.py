"""Counts the instructions of a step of the CUDA kernels, as ptxas scheduled them, and the clocks that they take.

    python benchmarks/issue_clocks.py [--output benchmarks/results/issue-clocks.json]

compiles csrc/cuda with nvcc for sm_80 and sm_90 and disassembles it with nvdisasm. No GPU is needed, and no clock
is measured. It takes the longest way through the loop over the steps: all histories of the block have the step,
and of two branches the longer is taken, but that rows are not packed. Not counted are slow paths that are called
(reciprocals of denormal numbers) and what one warp alone does (the sum of a step's attention gradient).

A step's issue clocks are what the busiest of four schedulers needs to issue its warps' instructions, one a clock.
`modelled` adds what else is known: the stalls between the instructions of a warp, barriers, waits for results,
and units that take an instruction of a warp in more than one clock. The throughputs of units are from the CUDA
C++ Programming Guide (arithmetic instructions); the latency of shared memory is from Luo et al., "Benchmarking
and Dissecting the Nvidia Hopper GPU Architecture", 2024; those of other results are round guesses.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, inf
from pathlib import Path
from typing import Any

from sass import NAMES, Instruction, Kernel, disassemble, kernels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "issue-clocks.json"
ARCHITECTURES = (80, 90)
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block may have
HIDDEN = (32, 64, 128, 256)
GATES = 3
SCHEDULERS = 4
# Clocks until the result of an instruction of a kind is there, where the kind's results come at no fixed time.
LATENCY = {"shared reads": 29, "shuffles": 24, "special functions": 24, "global memory": 300, "moves": 30}
LONGEST = 3500  # instructions of a step that is modelled
OTHER_LATENCY = 10  # and until operands are read
QUEUE = 8  # passes through shared memory that may wait, before an instruction cannot be issued


@dataclass(frozen=True)
class Scan:
    """A scan's shape: csrc/cuda/attention_gru/weights.cuh and scan.cuh say the same of it."""

    backward: bool
    hidden: int
    rows: int  # histories of a block
    resident: bool

    @property
    def columns(self) -> int:
        return min(ceil(self.hidden / 8) * 8, 128)

    @property
    def blocks(self) -> int:
        return ceil(self.hidden / self.columns)

    @property
    def depth(self) -> int:
        return ceil((GATES if self.backward else 1) * self.hidden / 8) * 8

    @property
    def stride(self) -> int:
        stride = (1 if self.backward else GATES) * self.columns
        return stride + 8 if stride // 8 % 2 == 0 else stride

    @property
    def stage(self) -> int:
        return self.depth if self.resident else 32 if self.backward else 16

    @property
    def warps(self) -> int:
        return self.columns // 8

    @property
    def unrolled(self) -> int:
        """Multiply-adds of a lane for one row of weights."""
        return (2 if self.backward else GATES) * self.rows

    @property
    def name(self) -> str:
        direction = "backward" if self.backward else "forward"
        return f"{direction}_kernelIfLi{GATES}ELi{self.rows}ELb{int(self.resident)}E"

    def bytes(self) -> int:
        """Shared memory of a block, with one step fetched ahead."""
        weights = (self.depth if self.resident else 3 * self.stage) * self.stride
        if self.backward:
            return 4 * (weights + (self.depth + self.blocks * self.columns + self.warps) * self.rows)
        ahead = 1 if self.resident else 2
        return 4 * (weights + 2 * self.depth * self.rows + ahead * GATES * self.rows * self.columns)


class Step:
    """The instructions of one warp on its longest way through a loop, inner loops run out."""

    def __init__(self, kernel: Kernel, scan: Scan | None) -> None:
        self.blocks, self.scan = kernel.blocks, scan
        self.loops = dict(kernel.loops())
        outer = [loop for loop in kernel.loops() if self.holds(loop, "BAR") and self.multiply_adds(loop)]
        if not outer:
            raise ValueError(f"{kernel.name} must have a loop with a barrier and multiply-adds")
        self.first, self.last = outer[0]
        self.trace = self.once(self.first, self.last)

    def holds(self, loop: tuple[int, int], opcode: str) -> int:
        first, last = loop
        return sum(i.opcode.startswith(opcode) for b in self.blocks[first : last + 1] for i in b.instructions)

    def multiply_adds(self, loop: tuple[int, int]) -> int:
        return sum(block.count("multiply-adds") for block in self.blocks[loop[0] : loop[1] + 1])

    def trips(self, loop: tuple[int, int]) -> int:
        """How often a loop in the step runs, which is told by what it holds."""
        scan, multiply_adds = self.scan, self.multiply_adds(loop)
        if scan is None:
            return 1
        if loop[0] == loop[1] and multiply_adds:  # over rows of weights, which 4 or 8 lanes share
            return ceil(scan.stage / (8 if scan.backward else 4) / (multiply_adds // scan.unrolled))
        if self.over_stages(loop):
            return ceil(scan.depth / scan.stage)
        if multiply_adds:
            return scan.blocks
        copies = self.holds(loop, "LDGSTS")
        return ceil(scan.stage * scan.stride / (4 * 32 * scan.warps * copies)) if copies else 0

    def over_stages(self, loop: tuple[int, int]) -> bool:
        """The innermost loop with a barrier, where weights are streamed."""
        if self.scan is None or self.scan.resident or not self.holds(loop, "BAR"):
            return False
        return not any(loop[0] < a and b <= loop[1] and self.holds((a, b), "BAR") for a, b in self.loops.items())

    def forbidden(self, number: int) -> bool:
        """A slow path, or what is left of the products where their loop does not come out even; here it does."""
        block = self.blocks[number]
        if any(i.opcode.startswith("CALL") and "$" in i.operands for i in block.instructions):
            return True
        if any(i.opcode.startswith("LDG.E.64") for i in block.instructions):  # where a packed step begins
            return True
        if self.scan is None or number in self.loops:
            return False
        return block.count("multiply-adds") >= self.scan.unrolled and block.count("shared reads") >= 2

    def once(self, first: int, last: int) -> list[Instruction]:
        """The longest way from block ``first`` through the loop that ends with ``last`` back to ``first``."""

        @functools.cache
        def longest(number: int) -> tuple[float, tuple[int, ...]]:
            rest: tuple[float, tuple[int, ...]] = (-inf, ())
            end, followers = number, self.blocks[number].followers
            length: float = len(self.blocks[number].instructions)
            if number != first and number in self.loops:
                end = self.loops[number]
                followers = [
                    f for b in self.blocks[number : end + 1] for f in b.followers if not number <= f <= end
                ]
                trips = self.trips((number, end))
                length = trips * len(self.once(number, end)) if trips else -inf
            elif self.forbidden(number):
                return -inf, ()
            if first in followers:
                rest = (0.0, ())
            for follower in followers:
                if number < follower <= last and longest(follower)[0] > rest[0]:
                    rest = longest(follower)
            return length + rest[0], (number, *rest[1])

        trace: list[Instruction] = []
        for number in longest(first)[1]:
            if number != first and number in self.loops:
                end = self.loops[number]
                trips = self.trips((number, end))
                trace += trips * self.once(number, end) if trips else []
            else:
                trace += self.blocks[number].instructions
        return trace


def unit_of(instruction: Instruction, architecture: int) -> tuple[str, int]:
    """The unit of a scheduler that takes an instruction, and for how many clocks."""
    kind, opcode = instruction.kind, instruction.opcode
    if opcode.startswith(("FFMA", "FADD", "FMUL", "HFMA2")):
        return "float", 2 if architecture == 80 else 1
    if opcode.startswith("IMAD"):
        return ("float" if architecture == 80 else "multiply"), 2
    if kind == "special functions":
        return "special", 8
    if opcode.startswith("U"):
        return "uniform", 2
    if kind in ("integers", "predicates", "moves", "other float") and not opcode.startswith(("LDC", "S2")):
        return "integer", 2
    return "none", 1


def uses_shared(instruction: Instruction) -> bool:
    """Whether the instruction passes through the multiprocessor's shared memory; one that never runs does not."""
    return instruction.kind in ("shared reads", "shared writes", "shuffles") and instruction.predicate != "@!PT"


@dataclass
class Warp:
    """Where a warp is in its trace, and when it may go on."""

    barriers: list[float]
    at: int = 0
    ready: float = 0
    arrived: bool = False


class Multiprocessor:
    """Four schedulers that issue the instructions of one block's warps, one a clock each, in turns."""

    def __init__(self, trace: list[Instruction], warps: int, architecture: int) -> None:
        self.trace = [(i, *unit_of(i, architecture), uses_shared(i)) for i in trace]
        self.warps = [Warp([0.0] * 6) for _ in range(warps)]
        self.free: Counter[tuple[int, str]] = Counter()
        self.shared_free = 0.0
        self.last = [0] * SCHEDULERS

    def when(self, scheduler: int, warp: Warp) -> float:
        """The clock from which on the warp's next instruction may be issued."""
        instruction, unit, _, shared = self.trace[warp.at]
        if warp.arrived:
            return inf
        free = self.free[scheduler, unit] if unit != "none" else 0
        queue = self.shared_free - QUEUE if shared else 0
        return max(warp.ready, free, queue, *(warp.barriers[i] for i in instruction.waits))

    def issue(self, warp: Warp, scheduler: int, clock: float) -> None:
        instruction, unit, clocks, shared = self.trace[warp.at]
        if unit != "none":
            self.free[scheduler, unit] = ceil(clock) + clocks
        begin = clock
        if shared:
            begin = max(self.shared_free, clock)
            self.shared_free = begin + 1
        result, operands = instruction.barriers
        # Nothing waits here for copies to shared memory: they were started steps before.
        if result < 6 and not instruction.opcode.startswith("LDGDEPBAR"):
            latency = LATENCY.get(instruction.kind, OTHER_LATENCY)
            warp.barriers[result] = max(warp.barriers[result], begin + latency)
        if operands < 6:
            warp.barriers[operands] = max(warp.barriers[operands], begin + OTHER_LATENCY)
        warp.ready = clock + max(instruction.stall, 1)
        warp.arrived = instruction.opcode.startswith("BAR")
        warp.at = (warp.at + 1) % len(self.trace)

    def run(self, steps: int) -> float:
        """Clocks of the last of so many steps."""
        begins, clock, done = [0.0], 0.0, 0
        barriers = sum(i.opcode.startswith("BAR") for i, *_ in self.trace)
        while len(begins) <= steps:
            later = inf
            for scheduler in range(min(SCHEDULERS, len(self.warps))):
                own = self.warps[scheduler::SCHEDULERS]
                turns = [(self.last[scheduler] + 1 + turn) % len(own) for turn in range(len(own))]
                times = [self.when(scheduler, own[number]) for number in turns]
                ready = [number for number, time in zip(turns, times, strict=True) if time <= clock]
                if ready:
                    self.last[scheduler] = ready[0]
                    self.issue(own[ready[0]], scheduler, clock)
                    later = clock + 1
                else:
                    later = min(later, *times)
            if all(warp.arrived for warp in self.warps):
                for warp in self.warps:
                    warp.arrived = False
                done += 1
                if done % barriers == 0:
                    begins.append(clock)
                later = clock + 1
            clock = later
        return begins[-1] - begins[-2]


def clocks_of(trace: list[Instruction], warps: int, architecture: int) -> dict[str, Any]:
    """The figures of a step of ``warps`` warps whose instructions are ``trace``."""
    count = Counter(i.kind for i in trace)
    each = ceil(warps / SCHEDULERS)
    units: Counter[str] = Counter()
    for instruction in trace:
        unit, clocks = unit_of(instruction, architecture)
        if unit != "none":
            units[unit] += each * clocks
    issue = each * len(trace)
    # Longer steps keep four warps of each scheduler busy, so that little is added.
    modelled = {}
    if len(trace) <= LONGEST:
        alone = Multiprocessor(trace, 1, architecture).run(2)
        modelled = {"one warp": alone, "modelled": Multiprocessor(trace, warps, architecture).run(2)}
    return modelled | {
        "kinds": {name: count[name] for name in NAMES if count[name]},
        "instructions": len(trace),
        "share": round(count["multiply-adds"] / len(trace), 3),
        "issue": issue,
        "busiest unit": dict([max(units.items(), key=lambda unit: unit[1])]),
        "stalls": sum(max(i.stall, 1) for i in trace),
        "warps of a scheduler": each,
    }


def scans(architecture: int) -> Iterator[Scan]:
    for backward, hidden, resident, rows in product((False, True), HIDDEN, (True, False), (4, 8)):
        scan = Scan(backward, hidden, rows, resident)
        if not resident or (scan.blocks == 1 and scan.bytes() <= SHARED[architecture]):
            yield scan


def find(listing: dict[str, Kernel], part: str) -> Kernel:
    found = [kernel for name, kernel in listing.items() if part in name]
    if len(found) != 1:
        raise ValueError(f"one kernel must have {part} in its name, got {len(found)}")
    return found[0]


PRODUCTS = {"Projection": "10Projection", "StateProduct": "12StateProduct", "InputGradient": "13InputGradient"}


def rows_of(listing: dict[str, Kernel], architecture: int) -> Iterator[dict[str, Any]]:
    for scan in scans(architecture):
        trace = Step(find(listing, scan.name), scan).trace
        wanted = scan.unrolled * scan.depth * scan.blocks // (8 if scan.backward else 4)
        found = sum(i.kind == "multiply-adds" for i in trace)
        if not wanted <= found <= wanted + 40 * scan.rows * scan.blocks:
            raise ValueError(f"{scan} must have about {wanted} multiply-adds, got {found}")
        figures = {"products": wanted} | clocks_of(trace, scan.warps, architecture)
        yield (
            {"kernel": "backward" if scan.backward else "forward"}
            | {
                "architecture": architecture,
                "hidden": scan.hidden,
                "histories": scan.rows,
                "resident": scan.resident,
            }
            | figures
        )
    for name, part in PRODUCTS.items():
        trace = Step(find(listing, f"gemm_kernelINS0_{part}"), None).trace
        yield {"kernel": name, "architecture": architecture} | clocks_of(trace, 8, architecture)


def version_of(tool: str) -> str:
    found = re.search(r"V[\d.]+", subprocess.run([tool, "--version"], capture_output=True, text=True).stdout)
    return found[0] if found else "unknown"


def table(results: dict[str, Any], architecture: int) -> str:
    """A table of the scans and products of one architecture."""
    kinds = ("multiply-adds", "shared reads", "integers", "moves", "predicates", "special functions", "control")
    lines = ["| kernel | H | histories | weights | instructions | " + " | ".join(kinds) + " | issue | modelled |"]
    lines.append("|---" * (len(kinds) + 7) + "|")
    for row in results["rows"]:
        if row["architecture"] != architecture:
            continue
        cells = [row["kernel"]]
        if "hidden" in row:
            weights = "resident" if row["resident"] else "streamed"
            cells += [str(row["hidden"]), str(row["histories"]), weights]
        else:
            cells += ["", "", ""]
        cells.append(str(row["instructions"]))
        for kind in kinds:
            count = row["kinds"].get(kind, 0)
            cells.append(f"{count} ({100 * row['share']:.0f} %)" if kind == "multiply-adds" else str(count))
        lines.append(
            "| "
            + " | ".join([*cells, str(row["issue"]), f"{row['modelled']:.0f}" if "modelled" in row else ""])
            + " |"
        )
    return "\n".join(lines)


def text() -> str:
    """The tables of the saved counts."""
    results = json.loads(RESULTS.read_text())
    titles = {80: "### sm_80 (A100)", 90: "### sm_90 (H100)"}
    tables = (f"{titles[architecture]}\n\n{table(results, architecture)}" for architecture in ARCHITECTURES)
    versions = f"nvcc {results['nvcc']}, nvdisasm {results['nvdisasm']}."
    return "\n\n".join([versions, *tables])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    source = ROOT / "csrc" / "cuda" / "attention_gru" / "kernels_float.cu"
    include = ROOT / "csrc" / "cuda" / "common" / "platform"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            listing = kernels(disassemble(source, architecture, Path(folder), include))
            rows += rows_of(listing, architecture)
    results = {"nvcc": version_of("nvcc"), "nvdisasm": version_of("nvdisasm"), "rows": rows}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    for architecture in ARCHITECTURES:
        print(f"sm_{architecture}\n\n{table(results, architecture)}\n")


if __name__ == "__main__":
    main()
