"""What nvdisasm prints of a compiled kernel: instructions with ptxas' control bits, blocks and loops.

An instruction of sm_70 or later has 128 bits, some of which control its issue: how many clocks later the warp's
next instruction may follow (stall), which of six barriers is set until its result is there or its operands are
read, and which barriers it waits for. The places of these bits are known from CuAssembler (MIT licence) and from
Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

CONTROL = 105  # the lowest of the control bits


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # such as "@!P0", or empty
    opcode: str  # such as "LDS.128"
    operands: str
    control: int

    @property
    def stall(self) -> int:
        """Clocks before the warp's next instruction."""
        return self.control & 15

    @property
    def barriers(self) -> tuple[int, int]:
        """The barrier for its result and that for its operands; 7 is none."""
        return self.control >> 5 & 7, self.control >> 8 & 7

    @property
    def waits(self) -> list[int]:
        """The barriers that it waits for."""
        return [i for i in range(6) if self.control >> 11 + i & 1]

    @property
    def kind(self) -> str:
        return kind_of(self.opcode)


# Kinds by the opcode's beginning, the first that fits. IMAD.MOV, HFMA2 and CS2R only move constants and registers.
KINDS = (
    ("multiply-adds", ("FFMA", "DFMA")),
    ("other float", ("FADD", "FMUL", "FMNMX", "FSEL", "DADD", "DMUL")),
    ("special functions", ("MUFU",)),
    ("shared reads", ("LDS",)),
    ("shared writes", ("STS",)),
    ("shuffles", ("SHFL",)),
    ("global memory", ("LDG", "STG", "LDGSTS", "LDGDEPBAR", "LD.", "ST.")),
    ("predicates", ("ISETP", "FSETP", "PLOP3", "UPLOP3", "UISETP", "R2P", "P2R", "SEL", "USEL", "DSETP", "VOTE")),
    (
        "control",
        ("BRA", "BSSY", "BSYNC", "BAR", "DEPBAR", "EXIT", "WARPSYNC", "NOP", "CALL", "RET", "YIELD", "BREAK"),
    ),
    ("moves", ("MOV", "UMOV", "IMAD.MOV", "IMAD.U32", "HFMA2", "CS2R", "S2R", "S2UR", "R2UR", "LDC", "ULDC")),
)
REST = "integers"
NAMES = (*(name for name, _ in KINDS), REST)


def kind_of(opcode: str) -> str:
    if opcode.startswith("LDGSTS"):
        return "global memory"
    for name, beginnings in KINDS:
        if opcode.startswith(beginnings):
            return name
    return REST


LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?([\w.]+)\s*(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
REST_OF_WORD = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    followers: list[int] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(i.kind == kind for i in self.instructions)


class Kernel:
    """The control flow of one kernel: ``blocks`` in the order of their addresses."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        instructions, labels = read(text)
        targets = {
            i.address: labels[m[1]] for i in instructions if (m := re.search(r"`\((\.L_x_\d+)\)", i.operands))
        }
        branches = {i.address for i in instructions if i.opcode in ("BRA", "EXIT", "RET", "CALL.REL.NOINC")}
        begins = {targets[a] for a in targets if a in branches} | {instructions[0].address}
        self.blocks: list[Block] = []
        for before, instruction in zip([None, *instructions], instructions, strict=False):
            if instruction.address in begins or (before is not None and before.address in branches):
                self.blocks.append(Block())
            self.blocks[-1].instructions.append(instruction)
        at = {block.instructions[0].address: i for i, block in enumerate(self.blocks)}
        for i, block in enumerate(self.blocks):
            last = block.instructions[-1]
            # For sm_80 a call of a label may stand where a branch would.
            if last.opcode in ("BRA", "CALL.REL.NOINC") and last.address in targets:
                block.followers.append(at[targets[last.address]])
            jumps = last.opcode in ("BRA", "EXIT", "RET.REL.NODEC") or last.address in targets
            falls = last.predicate or not (jumps and last.address in branches)
            if falls and i + 1 < len(self.blocks):
                block.followers.append(i + 1)

    def loops(self) -> list[tuple[int, int]]:
        """First and last block of each loop, the outer ones first; ptxas lays a loop's blocks side by side."""
        last: dict[int, int] = {}
        for i, block in enumerate(self.blocks):
            for follower in block.followers:
                if follower <= i:
                    last[follower] = max(i, last.get(follower, i))
        return sorted(last.items(), key=lambda loop: loop[0] - loop[1])


def read(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of one kernel and the addresses that its labels stand before."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    found = None
    for line in text.splitlines():
        if match := LINE.match(line):
            found = match
            labels.update(dict.fromkeys(waiting, int(match[1], 16)))
            waiting = []
        elif found is not None and (match := REST_OF_WORD.match(line)):
            control = (int(match[1], 16) << 64) >> CONTROL & (1 << 21) - 1
            address, predicate, opcode, operands = found.groups()[:4]
            instructions.append(
                Instruction(int(address, 16), (predicate or "").strip(), opcode, operands, control)
            )
            found = None
        elif match := re.match(r"(\.L_x_\d+):", line):
            waiting.append(match[1])
    if not instructions:
        raise ValueError("text must be what `nvdisasm -hex` prints of a kernel, got no instruction")
    return instructions, labels


def kernels(listing: str) -> dict[str, Kernel]:
    """The kernels of what ``nvdisasm -hex`` printed of a cubin, by their mangled names."""
    parts = re.split(r"^\t\.section\t\.text\.(\S+?),.*$", listing, flags=re.MULTILINE)
    return {
        name: Kernel(name, re.split(r"^\t\.section\t", text, maxsplit=1, flags=re.MULTILINE)[0])
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def disassemble(source: Path, architecture: int, folder: Path, include: Path | None = None) -> str:
    """Compile ``source`` with nvcc for one architecture, such as 90, and return nvdisasm's listing."""
    for tool, advice in (("nvcc", "it comes with CUDA"), ("nvdisasm", "pip install nvidia-cuda-nvdisasm has it")):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} must be on PATH: {advice}")
    cubin = folder / f"{source.stem}.sm_{architecture}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-cubin", source, "-o", cubin]
    subprocess.run([*command, *([f"-I{include}"] if include else [])], check=True)
    return subprocess.run(["nvdisasm", "-hex", cubin], check=True, capture_output=True, text=True).stdout
