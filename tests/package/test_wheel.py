"""The wheel, built from the source distribution: its tag, what is in it, and that it runs where it is unpacked."""

import os
import platform
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile

import pytest
import setuptools
from source_copy import COPYING_COMPILER, LIBRARY, ROOT, build_environment, copy_sources

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The unpacked source distribution of a copy of the sources."""
    copy = copy_sources(tmp_path_factory.mktemp("copy"))
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    (archive,) = (copy / "dist").iterdir()
    with tarfile.open(archive) as content:
        # Python 3.11 has filters from 3.11.4 on.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        content.extractall(copy.parent / "unpacked", **filters)
    (folder,) = (copy.parent / "unpacked").iterdir()
    return folder


def wheel_of(folder, destination, **environment):
    command = f"pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w {destination} ."
    environment = build_environment(folder, COPYING_COMPILER) | environment
    subprocess.run([sys.executable, "-m", *command.split()], cwd=folder, env=environment, check=True)
    (path,) = destination.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(sources):
    return wheel_of(sources, sources.parent / "wheel")


@pytest.fixture(scope="module")
def unpacked(wheel):
    with zipfile.ZipFile(wheel) as content:
        content.extractall(wheel.parent)
    return wheel.parent


def test_the_source_distribution_is_complete(sources):
    native = {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert {path for path in native if not (sources / path).is_file()} == set()
    assert any(path.suffix == ".h" for path in native)


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
    assert names == sources | {"dien_fast/py.typed", "dien_fast_command.py", LIBRARY}
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


def test_without_the_native_library_on_purpose(sources, wheel):
    """Any system's wheel; the library that an earlier build left behind is not in it."""
    assert list((sources / "build").rglob("libdien_fast_cpu.so")), "no earlier build to leave a library behind"
    path = wheel_of(sources, sources.parent / "python", DIEN_FAST_NATIVE="0", CXX="/no/such/compiler")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as content:
        assert not [name for name in content.namelist() if name.endswith(".so")]
        content.extractall(path.parent)
    code = "import dien_fast; print(dien_fast.__file__, dien_fast.backend())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True, check=True
    )
    assert str(path.parent) in done.stdout
    assert "reference (a loop over time steps in PyTorch, as no native library was built)" in done.stdout
    assert "dien-fast runs without its native library" in done.stderr


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
