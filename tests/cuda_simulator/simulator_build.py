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
RECURRENCE = tuple(
    f"attention_gru/{name}" for name in ("schedule", "kernels_float", "kernels_double", "kernels_half")
)
INTEREST = tuple(f"attention_scores/scores_{name}" for name in ("float", "double"))
INTEREST += (*(f"auxiliary_loss/loss_{name}" for name in ("float", "double")), "rows/rows")


def simulator():
    """The folder of the simulator that GPGPUSIM_ROOT names, or None where it is not set."""
    named = os.environ.get("GPGPUSIM_ROOT")
    if not named:
        return None
    root = Path(named).resolve()
    if not (root / "env.sh").exists():
        raise FileNotFoundError(f"GPGPUSIM_ROOT must name a folder made by {HERE / 'build.sh'}, got {named}")
    if (root / ".patched").read_bytes() != (HERE / "gpgpu-sim.patch").read_bytes():
        raise RuntimeError(f"{root} was built with another gpgpu-sim.patch: remove it and run {HERE / 'build.sh'}")
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


def kernels(names, variables, others=None):
    """The objects of units of csrc/cuda; ``others`` as in :func:`build`."""
    for name in names:
        sources = (others or {}).get(name, ROOT / "csrc")
        unit = sources / "cuda" / f"{name}.cu"
        command = ["nvcc", *FLAGS, f"-I{sources / 'cuda' / 'common' / 'platform'}", "-c", unit]
        yield make(f"{unit.stem}.o", command, [unit, *headers_of(sources)], variables)


def glue(name, flags, variables):
    """The object of what calls the kernels."""
    unit = HERE / f"{name}.cpp"
    flags = ["-std=c++17", "-O2", "-Wall", *flags, f"-I{variables['CUDA_INSTALL_PATH']}/include"]
    needs = [unit, HERE / "device.h", *(ROOT / "tests" / "support").glob("cuda_*.h"), *headers_of(ROOT / "csrc")]
    needs += [*(ROOT / "csrc").glob("cuda/*/*.cpp")] if name == "operators" else []
    return make(f"{name}.o", ["g++", *flags, "-c", unit], needs, variables)


def link(name, objects, libraries, variables):
    # The simulator knows the generation of CUDA by this name; its own library of that name comes first in
    # LD_LIBRARY_PATH.
    runtime = Path(variables["CUDA_INSTALL_PATH"]) / "lib64" / "libcudart.so.11.0"
    return make(name, ["g++", *objects, *libraries, runtime], objects, variables)


def build(root, others=None):
    """Return the path of the recurrence's driver with the kernels of this checkout, built if it is not there yet.

    ``others`` names kernels that are compiled from another folder than csrc.
    """
    variables = environment(root)
    objects = [*kernels(RECURRENCE, variables, others)]
    objects += [glue(name, [], variables) for name in ("device", "driver")]
    return link("driver", objects, [], variables)


def build_operators(root):
    """Return the path of the program that runs the other operators, built if it is not there yet."""
    from torch.utils.cpp_extension import include_paths, library_paths

    variables = environment(root)
    flags = ["-fvisibility=hidden", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-isystem{path}" for path in include_paths()]
    objects = [*kernels(INTEREST, variables)]
    objects += [glue("device", [], variables), glue("operators", flags, variables)]
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries += ["-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch", "-lc10"]
    return link("operators", objects, libraries, variables)
