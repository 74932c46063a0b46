"""Builds the native libraries with ninja; everything else about the package is in pyproject.toml.

They use LibTorch's stable ABI and do not link to Python, so one build serves every Python and every torch from
2.10 on. They are compiled against the headers of the environment's torch, which may be one without CUDA.

A build that lacks torch or a C++ compiler stops; DIEN_FAST_NATIVE=0 in the environment installs without the native
libraries. Without nvcc, or with DIEN_FAST_CUDA=0, the package installs without the CUDA kernels, whose work torch
then does; DIEN_FAST_CUDA=1 stops if there is no nvcc.
"""

import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

if int(setuptools.__version__.partition(".")[0]) < 77:  # without build isolation, pip does not ask
    raise SystemExit(
        f"dien-fast: setuptools must be 77 or newer, found {setuptools.__version__}: pip install -U setuptools"
    )
from setuptools.command.bdist_wheel import bdist_wheel

SOURCES = Path("csrc")
NATIVE = os.environ.get("DIEN_FAST_NATIVE") != "0"
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi -fno-math-errno -ffp-contract=fast"
FLAGS += " -Werror=switch -Werror=return-type"  # a variant that a switch forgets must not compile
# DIEN_FAST_SANITIZE=1 builds what reports every wrong access and undefined operation, and =thread what reports
# accesses of threads that nothing puts in order; `make sanitize` uses both.
# Without optimisation, which takes minutes over the checks and could remove what they are to find.
SANITIZE = os.environ.get("DIEN_FAST_SANITIZE", "0")
_SANITIZERS = {"0": "", "1": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
if SANITIZE not in _SANITIZERS:
    raise SystemExit(f"DIEN_FAST_SANITIZE must be {', '.join(_SANITIZERS)}, got {SANITIZE}")
SANITIZERS = _SANITIZERS[SANITIZE]
if SANITIZERS:
    FLAGS = FLAGS.replace(
        "-O3",
        f"-O0 -g1 -DDIEN_FAST_SANITIZED -fno-omit-frame-pointer {SANITIZERS} -fno-sanitize-recover",
    )
CUDA = os.environ.get("DIEN_FAST_CUDA") != "0" and SANITIZE == "0"
# One translation unit of the kernel an instruction set; the compiler's target is all that differs.
CAPABILITIES = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    CAPABILITIES["avx2"] = "-mavx2 -mfma"
    CAPABILITIES["avx512"] = "-mavx512f -mavx512vl -mavx512dq -mavx512bw"
    CAPABILITIES["avx512vl"] = CAPABILITIES["avx512"] + " -DDIEN_FAST_HALF_VECTORS"

# What torch's own variable of this name says, else every architecture from Ampere to Hopper, and later ones by
# the PTX of the last.
CUDA_ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;8.6;8.9;9.0+PTX"
TORCH_INCLUDES = ("include", "include/torch/csrc/api/include")
CUDA_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"


class Tools(NamedTuple):
    torch: Path
    compiler: str
    ninja: str
    nvcc: Path | None


class NativeLibrary(Extension):
    """A plain shared library inside the package, not an extension module of one Python."""

    def __init__(self, name: str, sources: list[Path]) -> None:
        # Only the CUDA kernels may be left out, which setuptools must know to build in place.
        optional = any(path.suffix == ".cu" for path in sources)
        files = [str(path) for path in sorted(sources)]
        super().__init__(name, sources=files, py_limited_api=True, optional=optional)


class BuildNative(build_ext):
    """Writes build.ninja and runs ninja."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            # Instead of a temporary folder that of other builds, so that only what changed is compiled.
            self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        tools = find_tools()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        cuda = any(source.endswith(".cu") for source in ext.sources)
        if cuda and tools.nvcc is None:
            why = "no nvcc found" if CUDA else "as asked for"
            print(f"dien-fast: {why}, installing without the CUDA kernels", file=sys.stderr)
            target.unlink(missing_ok=True)  # an earlier build's
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve() / ext.name.rpartition("_")[2]
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text("\n".join(ninja_lines(ext.sources, target, tools, cuda)))
        if subprocess.run([tools.ninja, "-C", str(build)]).returncode:
            stop("the native library does not compile, for the reason that the compiler gave above")


def ninja_lines(sources: list[str], target: Path, tools: Tools, cuda: bool) -> list[str]:
    """The lines of build.ninja for one of the libraries."""
    includes = " ".join(f"-isystem {tools.torch / path}" for path in TORCH_INCLUDES)
    # libtorch.so brings in whatever else torch has, CUDA's part too, but a linker may think it unused.
    libraries = f"-ltorch_cpu -ltorch -L{tools.torch / 'lib'}"
    needed, linker = "-Wl,--no-as-needed", f"{tools.compiler} -shared {SANITIZERS}"
    if cuda:
        needed, linker = "-Xlinker --no-as-needed", f"{tools.nvcc} -ccbin {tools.compiler} -shared"
    target_version = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {tools.compiler}",
        f"flags = {FLAGS} {target_version} {includes}{' -DUSE_CUDA' * cuda}",
        "rule compile",
        "  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule compile_cuda",
        f"  command = {tools.nvcc} -ccbin $cxx {CUDA_FLAGS} {architecture_flags(CUDA_ARCHITECTURES)} "
        f"-I{(SOURCES / 'cuda' / 'common' / 'platform').resolve()} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {linker} {needed} $in {libraries} -o $out",
    ]
    objects = []
    for source in map(Path, sources):
        stem = "_".join(source.relative_to(SOURCES).with_suffix("").parts)
        if source.suffix == ".cu":
            units = {stem: "compile_cuda"}
        elif stem.endswith("_kernel"):
            units = {f"{stem}_{name}": "compile" for name in CAPABILITIES}
        else:
            units = {stem: "compile"}
        for name, rule in units.items():
            isa = CAPABILITIES.get(name.rpartition("_")[2], "")
            lines += [f"build {name}.o: {rule} {source.resolve()}", f"  isa = {isa}"]
            objects.append(f"{name}.o")
    return [*lines, f"build {target}: link {' '.join(objects)}", f"default {target}", ""]


class Metadata(dist_info):
    """Asks for the tools before pip collects what the package needs: torch alone may be gigabytes."""

    def run(self) -> None:
        if NATIVE:
            find_tools()
        super().run()


def find_tools() -> Tools:
    """The tools that compile the library; a build without one of them stops with what to do about it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        stop(
            "no C++ compiler was found: install one, such as g++, or name one in CXX; DIEN_FAST_NATIVE=0 installs "
            "without the native library, several times slower"
        )
    ninja = find_ninja()
    if ninja is None:
        stop("ninja was not found, which compiles the native library: pip install ninja")
    nvcc = find_nvcc() if CUDA else None
    if nvcc is None and os.environ.get("DIEN_FAST_CUDA") == "1":
        stop(
            "no nvcc was found for the CUDA kernels that DIEN_FAST_CUDA=1 asks for: "
            "name CUDA's folder in CUDA_HOME"
        )
    return Tools(find_torch(), compiler, ninja, nvcc)


def find_ninja() -> str | None:
    try:
        from ninja import BIN_DIR
    except ImportError:
        return shutil.which("ninja")
    return str(Path(BIN_DIR) / "ninja")


def find_torch() -> Path:
    """The folder of the torch to compile against, which is not imported.

    An isolated build hides the environment's packages, but its interpreter is the environment's, so that they are
    found by their place. torch is no build requirement: that would download gigabytes, perhaps of another variant
    than the environment's, for headers that any torch from 2.10 has.
    """
    found = importlib.util.find_spec("torch")
    if found is None:
        places = [*site.getsitepackages([sys.prefix, sys.base_prefix]), site.getusersitepackages()]
        found = importlib.machinery.PathFinder.find_spec("torch", places)
    if found is None or not found.submodule_search_locations:
        stop(
            f"the native library is compiled against torch, which is not installed for {sys.executable}: "
            "pip install 'torch>=2.10' and then this package again, with --no-build-isolation where another tool "
            "than pip builds it; DIEN_FAST_NATIVE=0 installs without the native library, several times slower"
        )
    folder = Path(found.submodule_search_locations[0])
    version = re.search(r"__version__ = '(\d+)\.(\d+)[^']*'", (folder / "version.py").read_text())
    if version and (int(version[1]), int(version[2])) < (2, 10):
        stop(f"{folder} is torch {version[1]}.{version[2]}, and must be 2.10 or newer: pip install 'torch>=2.10'")
    return folder


def stop(sentence: str) -> NoReturn:
    raise SystemExit(f"dien-fast: {sentence}")


def find_nvcc() -> Path | None:
    for home in ("CUDA_HOME", "CUDA_PATH"):
        path = Path(os.environ.get(home, "")) / "bin" / "nvcc"
        if home in os.environ and path.exists():
            return path
    found = shutil.which("nvcc")
    return Path(found) if found else None


def architecture_flags(architectures: str) -> str:
    """The flags of nvcc for a list such as ``8.0;9.0+PTX``."""
    flags = []
    for name in re.split(r"[;\s]+", architectures.strip()):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


# The newest symbols GLIBCXX_3.4.x that Linux distributions with glibc 2.y and later ship; torch itself needs 2.28.
GLIBC_OF_LIBSTDCXX = ((25, 28), (28, 31), (29, 34), (30, 35), (33, 39))


def oldest_glibc(library: bytes) -> int:
    """The y of the oldest glibc 2.y that a library runs with, from the symbols it takes; 0 without glibc."""
    glibc, libstdcxx = (
        max((int(version) for version in re.findall(rb"\0%s(\d+)" % name, library)), default=0)
        for name in (rb"GLIBC_2\.", rb"GLIBCXX_3\.4\.")
    )
    known = [system for symbols, system in GLIBC_OF_LIBSTDCXX if symbols >= libstdcxx]
    if not known:
        raise RuntimeError(f"no glibc is known for GLIBCXX_3.4.{libstdcxx}; extend GLIBC_OF_LIBSTDCXX in setup.py")
    return max(glibc, known[0]) if glibc else 0


class PlatformWheel(bdist_wheel):
    """The wheel depends on the platform, on no Python; the tag says the oldest glibc."""

    def get_tag(self) -> tuple[str, str, str]:
        system = super().get_tag()[2]
        libraries = Path(self.get_finalized_command("build").build_lib).rglob("*.so")
        glibc = max((oldest_glibc(path.read_bytes()) for path in libraries), default=0)
        if glibc and system.startswith("linux_"):
            system = f"many{system}".replace("linux_", f"linux_2_{glibc}_")
        return ("py3", "none", system)


setup(
    ext_modules=[
        NativeLibrary(
            "dien_fast._native.libdien_fast_cpu",
            [*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")],
        ),
        NativeLibrary(
            "dien_fast._native.libdien_fast_cuda",
            [path for path in SOURCES.glob("cuda/*/*") if path.suffix in (".cpp", ".cu")],
        ),
    ]
    if NATIVE
    else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel, "dist_info": Metadata},
)
