"""The operators of csrc/cuda but for the recurrence's, on a device that GPGPU-Sim simulates."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from simulated import Driver

NAMESPACE = "dien_fast_simulated"
NAMES = (
    "attention_scores",
    "attention_scores_backward",
    "auxiliary_loss",
    "weighted_sum",
    "weighted_sum_backward",
    "padded_from_rows",
)
# By the number that torch::headeronly::ScalarType has for each.
DTYPES = {3: torch.int32, 4: torch.int64, 6: torch.float32, 7: torch.float64, 11: torch.bool, 15: torch.bfloat16}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def encoded(value):
    """Yield the bytes of an argument, as operators.cpp reads them."""
    if value is None:
        yield b"0\n"
    elif isinstance(value, torch.Tensor):
        yield " ".join(map(str, (1, NUMBERS[value.dtype], value.dim(), *value.shape))).encode() + b"\n"
        yield value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, list | tuple):
        yield f"{len(value)}\n".encode()
        for item in value:
            yield from encoded(item)
    else:
        yield f"{int(value) if isinstance(value, bool) else value!r}\n".encode()


@dataclass
class Operators:
    """Runs the operators in a process of the simulator, and what they are told of the device."""

    process: Driver
    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    chunk_bytes: int = 1 << 40
    library: Any = None  # as long as which the definitions last

    def integer(self):
        return int.from_bytes(self.process.receive(8), "little")

    def tensor(self):
        dtype, dimensions = DTYPES[self.integer()], self.integer()
        shape = torch.Size(self.integer() for _ in range(dimensions))
        found = bytearray(self.process.receive(shape.numel() * dtype.itemsize))
        if not found:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(found, dtype=torch.uint8).view(dtype).view(shape)

    def call(self, name, returns, *arguments):
        """Return the outputs of an operator, whose schema has ``returns``."""
        head = f"{name} {self.multiprocessors} {self.shared_bytes} {self.chunk_bytes}\n"
        self.process.send([head.encode(), *(chunk for value in arguments for chunk in encoded(value))])
        outputs = []
        for value in returns:
            listed = isinstance(value.type, torch.ListType)
            outputs.append([self.tensor() for _ in range(self.integer())] if listed else self.tensor())
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def defined(self):
        """Define the operators under the schemas that the library has, for tensors of the CPU; return self."""
        self.library = torch.library.Library(NAMESPACE, "DEF")
        for name in NAMES:
            schema = getattr(torch.ops.dien_fast, name).default._schema
            self.library.define(str(schema).partition("::")[2])
            self.library.impl(name, functools.partial(self.call, name, schema.returns), "CPU")
        return self
