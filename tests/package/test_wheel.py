"""The wheel: its tag, what is in it, and that it runs where it is unpacked."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "dien_fast/_native/libdien_fast_cpu.so"


# What stands for the compiler. The quick one links the library that is built already; the other compiles without
# optimisation, which takes a third of the time.
COMPILERS = {
    "built": """for output; do :; done
case " $* " in *" -shared "*) cp "$LIBRARY" "$output" ;; *) : >"$output" ;; esac""",
    "compiled": 'exec "$COMPILER" "$@" -O0',
}


@pytest.fixture(scope="module", params=["built", pytest.param("compiled", marks=pytest.mark.slow)])
def wheel(request, tmp_path_factory):
    """The wheel of a copy of the sources, without CUDA, which takes minutes."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("csrc", "dien_fast"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    compiler = copy / "compiler"
    compiler.write_text(f"#!/bin/sh\n{COMPILERS[request.param]}\n")
    compiler.chmod(0o755)
    environment = os.environ | {"COMPILER": os.environ.get("CXX", "c++"), "LIBRARY": str(ROOT / LIBRARY)}
    environment |= {"CXX": str(compiler), "DIEN_FAST_CUDA": "0"}
    command = "pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist ."
    subprocess.run([sys.executable, "-m", *command.split()], cwd=copy, env=environment, check=True)
    (path,) = (copy / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(wheel):
    with zipfile.ZipFile(wheel) as content:
        content.extractall(wheel.parent)
    return wheel.parent


def test_the_tag_says_the_oldest_glibc_and_no_python(wheel, unpacked):
    name = re.fullmatch(r"dien_fast-[^-]+-py3-none-manylinux_2_(\d+)_(.+)\.whl", wheel.name)
    assert name, wheel.name
    assert name[2] == platform.machine()
    symbols = subprocess.check_output(["objdump", "-T", unpacked / LIBRARY], text=True)
    taken = [int(version) for version in re.findall(r"\(GLIBC_2\.(\d+)", symbols)]
    ours = int(platform.libc_ver()[1].split(".")[1])
    assert max(taken) <= int(name[1]) <= ours
    assert not re.search(r"\bPy[A-Z]\w*_", symbols)


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = content.read(metadata).decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "dien_fast").rglob("*.py")}
    assert names == sources | {"dien_fast/py.typed", LIBRARY}
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nRequires-Dist: torch>=2.10\n" in metadata


def test_the_wheel_runs(unpacked):
    code = (
        "import dien_fast, torch\n"
        "rows, scores = torch.randn(2, 3, 4), torch.rand(2, 3)\n"
        "gru = torch.randn(15, 4), torch.randn(15, 5)\n"
        "dien_fast.functional.attention_gru(rows, scores, *gru, lengths=torch.tensor([3, 1]))\n"
        "print(dien_fast.__file__, dien_fast.backend().name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(unpacked / "dien_fast" / "__init__.py"), "native"]


@pytest.mark.parametrize(
    ("symbols", "glibc"),
    [
        ("GLIBC_2.2.5 GLIBC_2.14 GLIBCXX_3.4 GLIBCXX_3.4.21", 28),
        ("GLIBC_2.2.5 GLIBC_2.32 GLIBCXX_3.4.26", 32),
        ("GLIBC_2.17 GLIBCXX_3.4.29", 34),
        ("GLIBCXX_3.4.29", 0),
    ],
)
def test_the_oldest_glibc(monkeypatch, symbols, glibc):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    oldest_glibc = runpy.run_path(str(ROOT / "setup.py"))["oldest_glibc"]
    strings = "".join(f"\0{name}" for name in symbols.split()) + "\0"
    assert oldest_glibc(strings.encode()) == glibc
    with pytest.raises(RuntimeError, match=r"no glibc is known for GLIBCXX_3\.4\.99"):
        oldest_glibc(strings.encode() + b"GLIBCXX_3.4.99\0")
