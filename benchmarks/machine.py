"""What a results file says about where it was measured, and its name."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dien_fast

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "MKL_NUM_THREADS")


def cpu() -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().partition("\n\n")[0] if path.exists() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def cpu_model() -> str:
    return cpu().get("model name") or platform.processor() or platform.machine()


def short_name(fields: dict[str, str], model: str) -> str:
    """Return the microarchitecture of an AMD processor, whose model names leave it open, else the model."""
    if fields.get("vendor_id") == "AuthenticAMD":
        family, number = int(fields["cpu family"]), int(fields["model"])
        if family == 25:
            return "zen4" if 0x10 <= number <= 0x1F or 0x60 <= number <= 0xAF else "zen3"
        if family in (23, 26):
            return "zen5" if family == 26 else "zen2" if number >= 0x30 else "zen1"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", model).lower()).strip("-")


def here(threads: int) -> str:
    """Return the name that this machine's results carry, such as ``zen3-2-threads``."""
    return f"{short_name(cpu(), cpu_model())}-{threads}-threads"


def description(threads: int) -> dict[str, Any]:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "name": here(threads)},
        "threads": threads,
        "OpenMP": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "dien-fast": dien_fast.__version__,
        },
        "backend": str(dien_fast.backend()),
        "commit": commit.stdout.strip(),
    }


def keep_memory() -> None:
    """Make glibc take all memory from one heap that never shrinks, before anything is measured."""
    trim_threshold, mmap_max = -1, -4
    library = ctypes.CDLL(None)
    if not (library.mallopt(mmap_max, 0) and library.mallopt(trim_threshold, 2**31 - 1)):
        raise RuntimeError("mallopt refused to keep memory")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    return parser


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {path}")
