"""Loads the native libraries, knows which tensors their kernels take, and chooses the backend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parents[1] / "_native" / "libdien_fast_cpu.so"
CUDA_LIBRARY = LIBRARY.with_name("libdien_fast_cuda.so")

_ENVIRONMENT = os.environ.get("DIEN_FAST_BACKEND")
_chosen: ContextVar[str | None] = ContextVar("dien_fast_backend", default=None)


@dataclass(frozen=True)
class Backend:
    """The code that runs :func:`dien_fast.functional.attention_gru`.

    Attributes:
        name: ``"native"``, the library of kernels, or ``"reference"``, the loop of
            :mod:`dien_fast.reference`.
        detail: one sentence on it.
    """

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})"


def _load() -> bool:
    """Load the library if it was built; raise if it is there and cannot be loaded."""
    if not LIBRARY.exists():
        return False
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(f"dien-fast's native library cannot be loaded: {error}") from error
    return True


def _load_cuda() -> bool:
    """Load the CUDA kernels if they were built and torch has CUDA; only warn if that fails: the CPU's remain."""
    if torch.version.cuda is None or not CUDA_LIBRARY.exists():
        return False
    try:
        torch.ops.load_library(CUDA_LIBRARY)
    except OSError as error:
        warnings.warn(f"dien-fast's CUDA kernels cannot be loaded: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


LOADED = _load()
CUDA_LOADED = LOADED and _load_cuda()
_warned = False
_warned_of: set[str] = set()


_FLOATS = (torch.float32, torch.float64)


class Kernels:
    """The tensors that an operator's native kernels take.

    Args:
        operator: name of the operator.
        dtypes: what its kernels take on each kind of device; None is float32 and float64 on CPU and CUDA. Kinds
            for which the loaded libraries register no kernel are dropped, so a device is used as soon as a library
            brings kernels for it.

    Attributes:
        dtypes: the dtypes by kind of device. The CPU stays without a library, whose absence :func:`wants_native`
            warns of.
    """

    def __init__(self, operator: str, dtypes: Mapping[str, Collection[torch.dtype]] | None = None) -> None:
        self.dtypes = {
            device: frozenset(taken)
            for device, taken in (dtypes or dict.fromkeys(("cpu", "cuda"), _FLOATS)).items()
            if device == "cpu" or _has_kernel(operator, device)
        }
        self._on_cpu = self.dtypes.get("cpu", frozenset())

    def take(self, tensor: Tensor, *others: Tensor) -> bool:
        """Whether there are kernels for the device and dtype of the tensors, which must be the same for all."""
        # The name of a device costs more than all else here.
        taken = self._on_cpu if tensor.is_cpu else self.dtypes.get(tensor.device.type, ())
        if tensor.dtype not in taken:
            return False
        for other in others:  # noqa: SIM110 - all() of a generator takes twice the time
            if other.dtype != tensor.dtype or other.device != tensor.device:
                return False
        return True

    def are_used(self, tensor: Tensor, *others: Tensor) -> bool:
        """Whether the kernels take the tensors and the native backend is wanted."""
        return self.take(tensor, *others) and wants_native()


def _has_kernel(operator: str, device: str) -> bool:
    """Whether a loaded library registers a kernel of the operator for a kind of device."""
    return LOADED and torch._C._dispatch_has_kernel_for_dispatch_key(f"dien_fast::{operator}", device.upper())


def backend() -> Backend:
    """Return the code in use, a small object that prints readably.

    Example:
        >>> backend().name in ("native", "reference")
        True
    """
    if wants_native():
        cuda = " and CUDA kernels" if CUDA_LOADED else ""
        return Backend("native", f"CPU kernels for {torch.ops.dien_fast.cpu_capability()}{cuda}")
    why = "as asked for" if LOADED else "as no native library was built"
    return Backend("reference", f"a loop over time steps in PyTorch, {why}")


def wants_native() -> bool:
    """Whether the native operators are to run; warns once if they are missing and nobody chose the loop."""
    global _warned
    name = _chosen.get() or _ENVIRONMENT or ("native" if LOADED else None)
    if name == "native":
        if not LOADED:
            raise RuntimeError(f"the native backend needs the library {LIBRARY.name}, which was not built")
        return True
    if name not in (None, "reference"):
        raise ValueError(f"DIEN_FAST_BACKEND must be 'native' or 'reference', got {name!r}")
    if name is None and not _warned:
        _warned = True
        warnings.warn(
            "dien-fast runs without its native library, several times slower: it was not built; "
            "DIEN_FAST_BACKEND=reference chooses this without a warning",
            RuntimeWarning,
            stacklevel=3,
        )
    return False


# torch.compile cannot read a ContextVar, so the choice is made while it traces. The mark is all that
# torch.compiler.assume_constant_result does, but for importing the compiler, which takes a second.
wants_native._dynamo_marked_constant = True  # type: ignore[attr-defined]


def warn_of_device(device: torch.device) -> None:
    """Warn once for each kind of device that the loop runs there, unless it was chosen."""
    chosen = _chosen.get() or _ENVIRONMENT
    if device.type in ("cpu", "meta", *_warned_of) or chosen == "reference" or not LOADED:
        return
    if device.type == "cuda" and CUDA_LOADED:
        return
    _warned_of.add(device.type)
    warnings.warn(
        f"dien-fast has no kernels for {device.type} here and runs a loop over time steps there, several times "
        "slower; DIEN_FAST_BACKEND=reference chooses this without a warning",
        RuntimeWarning,
        stacklevel=4,
    )


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run a block with the ``"native"`` or the ``"reference"`` backend, in this thread or task alone.

    Raises:
        ValueError: for another name.
        RuntimeError: if the native library was not built.

    Example:
        >>> with use_backend("reference"):
        ...     print(backend().name)
        reference
    """
    if name not in ("native", "reference"):
        raise ValueError(f"name must be 'native' or 'reference', got {name!r}")
    if name == "native" and not LOADED:
        raise RuntimeError(f"the native backend needs the library {LIBRARY.name}, which was not built")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
