"""oneDNN's AUGRU as a benchmark provider: fetched from PyPI, compiled here, called through ctypes.

Its forward is an oracle for ``augru_official``; the gradients of oneDNN 3.2 are wrong, so of its backward only
the time counts. It takes dense input alone: ragged lengths are padded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths

REQUIREMENT = "onednn-cpu-gomp==2023.2.0"  # oneDNN 3.2


def load() -> ctypes.CDLL:
    """Return the compiled library, built on the first call."""
    cache = Path(os.environ.get("DIEN_FAST_CACHE", ".cache")) / "onednn"
    library = cache / "libaugru.so"
    source = Path(__file__).with_name("augru.cpp")
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                folder,
                REQUIREMENT,
            ]
            subprocess.run(command, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith("libdnnl.so.3.2"))
                (cache / "libdnnl.so.3").write_bytes(wheel.read(name))
        compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", *(f"-isystem{path}" for path in include_paths())]
        link = [str(cache / "libdnnl.so.3"), "-Wl,-rpath,$ORIGIN"]
        subprocess.run([compiler, *flags, str(source), *link, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library.resolve()))
    loaded.augru_create.restype = ctypes.c_void_p
    loaded.augru_create.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_int]
    loaded.augru_destroy.argtypes = [ctypes.c_void_p]
    loaded.augru_forward.argtypes = loaded.augru_backward.argtypes = [ctypes.c_void_p] * 8
    return loaded


class OneDnnAugru:
    """One lbr_augru of fixed shape over time-major float32 tensors.

    Args:
        steps: T.
        batch: B.
        hidden: H, the input's size too.
        training: whether backward will run.
    """

    def __init__(self, steps: int, batch: int, hidden: int, training: bool) -> None:
        self._library = load()
        self._augru = self._library.augru_create(steps, batch, hidden, int(training))

    def __del__(self) -> None:
        self._library.augru_destroy(self._augru)

    def forward(
        self, x: Tensor, attention: Tensor, w: Tensor, u: Tensor, bias_ih: Tensor, bias_hh: Tensor
    ) -> Tensor:
        """Return the states ``[T, B, H]`` of ``x`` ``[T, B, H]`` and ``attention`` ``[T, B]``."""
        states = torch.empty_like(x)
        tensors = (x, attention, w, u, bias_ih, bias_hh, states)
        self._library.augru_forward(self._augru, *(value.data_ptr() for value in tensors))
        return states

    def backward(
        self, x: Tensor, attention: Tensor, w: Tensor, u: Tensor, dstates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what oneDNN gives as the gradients of ``x`` and ``attention``, after :meth:`forward`."""
        dx, dattention = torch.empty_like(x), torch.empty_like(attention)
        tensors = (x, attention, w, u, dstates, dx, dattention)
        self._library.augru_backward(self._augru, *(value.data_ptr() for value in tensors))
        return dx, dattention
