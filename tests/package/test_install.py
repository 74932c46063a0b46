"""Real installations with pip, each in an environment of its own; they fetch torch."""

import re
import subprocess
import sys

import pytest
from source_copy import ROOT, UNOPTIMISED_COMPILER, build_environment, copy_sources

pytestmark = pytest.mark.slow
NO_TORCH = "dien-fast: the native library is compiled against torch, which is not installed for "


def pinned(name):
    (line,) = re.findall(rf"^{name}==.*$", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    return line


def new_environment(folder):
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def pip(python, copy, *arguments):
    command = [python, "-I", "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = build_environment(copy, UNOPTIMISED_COMPILER)
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def commit(copy):
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "sources"]):
        subprocess.run(["git", *command], cwd=copy, check=True)


def test_without_torch_pip_stops_before_it_fetches_anything(tmp_path):
    python = new_environment(tmp_path / "environment")
    stopped = pip(python, copy_sources(tmp_path), "install", ".")
    assert stopped.returncode == 1
    said = stopped.stdout + stopped.stderr
    assert said.count(NO_TORCH) == 1, said
    assert "Traceback" not in said
    assert "Collecting torch" not in said


def test_pip_installs_the_native_library(tmp_path):
    """From a git repository, and as the wheel that pip makes of a folder; nothing says --no-build-isolation."""
    python = new_environment(tmp_path / "environment")
    copy = copy_sources(tmp_path)
    commit(copy)
    code = (
        "import dien_fast\n"
        "report = dien_fast.accelerate(dien_fast.reference.Interest(4))\n"
        "print(dien_fast.__file__, len(report.fast), dien_fast.backend())"
    )
    for command in (
        ["install", "--quiet", pinned("torch"), pinned("numpy")],
        ["install", "--no-deps", f"git+file://{copy}"],
        ["wheel", "--no-deps", "-w", "dist", "."],
        ["install", "--no-deps", "--force-reinstall", "--no-index", "--find-links", "dist", "dien-fast"],
    ):
        done = pip(python, copy, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        if "--no-deps" in command:
            found = subprocess.run(
                [python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
            )
            assert found.stdout.startswith(f"{tmp_path}/environment/lib/"), found.stdout
            assert " 3 native (CPU kernels for " in found.stdout, found.stdout
    (wheel,) = (copy / "dist").iterdir()
    assert re.fullmatch(r"dien_fast-.*-py3-none-manylinux_2_\d+_.*\.whl", wheel.name)
