"""Compiles the CUDA kernels to PTX, with the nvcc of the simulator's toolkit, and links them to the simulator."""

import hashlib
import os
import subprocess
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# As setup.py compiles them, for one architecture and as PTX alone, which is what the simulator executes.
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-gencode", "arch=compute_80,code=compute_80"]
FLAGS += ["-cudart", "none", "-allow-unsupported-compiler"]
# GPGPU-Sim knows no .bf16 and would refuse the program.
KERNELS = ("schedule", "kernels_float", "kernels_double", "kernels_half")


def simulator():
    """The folder of the simulator that GPGPUSIM_ROOT names, or None where it is not set."""
    named = os.environ.get("GPGPUSIM_ROOT")
    if not named:
        return None
    root = Path(named).resolve()
    if not (root / "env.sh").exists():
        raise FileNotFoundError(f"GPGPUSIM_ROOT must name a folder made by {HERE / 'build.sh'}, got {named}")
    return root


def environment(root):
    """The variables of a process that uses the simulator and its toolkit."""
    command = ["bash", "-c", f'source "{root}/env.sh" && env -0']
    listing = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return dict(entry.split("=", 1) for entry in listing.split("\0") if entry)


def make(name, command, contents, variables):
    """Run a compiler that makes ``name`` from ``contents``, unless the cache has it; return its path."""
    content = hashlib.sha256(" ".join(map(str, command)).encode())
    for path in contents:
        content.update(path.name.encode() + path.read_bytes())
    cache = Path(os.environ.get("DIEN_FAST_CACHE") or ROOT / ".cache") / "cuda_simulator"
    target = cache / content.hexdigest()[:20] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_name(f"partial.{name}")
            subprocess.run([*command, "-o", partial], check=True, env=variables)
            partial.rename(target)
    return target


def headers_of(sources):
    return sorted([*sources.glob("*.h"), *sources.glob("cuda/**/*.h"), *sources.glob("cuda/**/*.cuh")])


def build(root, others=None):
    """Return the path of the driver with the kernels of this checkout, built if it is not there yet.

    ``others`` names kernels that are compiled from another folder than csrc.
    """
    variables = environment(root)
    objects = []
    for name in KERNELS:
        sources = (others or {}).get(name, ROOT / "csrc")
        unit = sources / "cuda" / "attention_gru" / f"{name}.cu"
        command = ["nvcc", *FLAGS, f"-I{sources / 'cuda' / 'common' / 'platform'}", "-c", unit]
        objects.append(make(f"{name}.o", command, [unit, *headers_of(sources)], variables))
    unit = HERE / "driver.cpp"
    command = ["g++", "-std=c++17", "-O2", "-Wall", f"-I{variables['CUDA_INSTALL_PATH']}/include", "-c", unit]
    needs = [unit, ROOT / "tests" / "support" / "cuda_arguments.h", *headers_of(ROOT / "csrc")]
    objects.append(make("driver.o", command, needs, variables))
    # The simulator knows the generation of CUDA by this name; its own library of that name comes first in
    # LD_LIBRARY_PATH.
    library = Path(variables["CUDA_INSTALL_PATH"]) / "lib64" / "libcudart.so.11.0"
    return make("driver", ["g++", *objects, library], objects, variables)
