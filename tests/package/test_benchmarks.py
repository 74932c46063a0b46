"""The README's figures come out of the committed results, by benchmarks/report.py; the script for GPUs runs."""

import os
import subprocess
from pathlib import Path

import pytest
import report

ROOT = Path(__file__).resolve().parents[2]


def row(part, size, **milliseconds):
    names = {name.replace("_", " "): value for name, value in milliseconds.items()}
    return {"part": part, **dict(zip("BTH", size, strict=True)), "milliseconds": names}


@pytest.fixture
def speed():
    small, dense = (2, 3, 4), (1024, 50, 32)
    rates = {"oneDNN": 10.0, "dien-fast": 20.0, "dien-fast, recomputing": 16.0}
    return {
        "machine": {"cpu": "Some CPU", "cores": 2},
        "threads": 2,
        "versions": {"torch": "2.0"},
        "backend": "native (kernels)",
        "rounds": 7,
        "sgemm GFLOP/s": 40.0,
        "call microseconds": 5.4,
        "rows": [
            row(report.FORWARD, small, **{"reference loop": 25.0, "nn.GRU packed": 1.0, "dien-fast": 2.0}),
            row(report.BOTH, small, **{"reference loop": 99.4, "torch.compile loop": 9.0, "dien-fast": 9.0})
            | {"compile seconds": 81.6},
            row("augru_official forward + backward, dense", dense, **{"oneDNN": 3.0, "dien-fast": 2.0})
            | {"GFLOP/s": rates},
        ],
    }


def test_tables(speed):
    rows = report.rows_of(speed)
    assert report.loop_table(rows).splitlines() == [
        "| B, T, H | AUGRU forward | AUGRU forward + backward | `Interest` forward + backward |",
        "|---|---|---|---|",
        "| 2, 3, 4 | **12.5x** (25 → 2.00) | **11.0x** (99 → 9.00) |  |",
    ]
    assert report.others_table(rows).splitlines()[2:] == [
        "| 2, 3, 4, forward |  | 0.50x (1.00) |",
        "| 2, 3, 4, forward + backward | 1.0x (9.00) |  |",
    ]
    assert report.onednn_table(rows).splitlines()[2:] == ["| 1024, 50, 32 |  | 1.5x |  |  |"]
    assert report.rates_table(rows, 40.0).splitlines()[2:] == ["| 1024, 50, 32 |  | 20 (50 %) | 16 (40 %) |"]


def test_losses_are_told(speed):
    rows = report.rows_of(speed)
    assert report.losses(rows) == "Faster than dien-fast: nn.GRU packed at 2, 3, 4 forward (0.50x)."
    assert report.show_ratio(0.999) == "0.99x"


def test_other_libraries():
    times = {"milliseconds": {"library": 50.0, "accelerated": 8.0}}
    peers = {"recbole": {"sizes": [{"size": [128, 50, 32], "recurrence": times, "step": times}]}}
    assert report.peers_table(peers).splitlines()[2:] == [
        "| recbole | 128, 50, 32 | **6.2x** (50 → 8.00) | **6.2x** (50 → 8.00) |"
    ]


def test_trainings():
    trainings = {
        "unpatched, 2 threads": {"epoch_seconds": 27.31, "auc": 0.77825},
        "accelerated, 2 threads": {"epoch_seconds": 5.8, "auc": 0.77831},
    }
    libraries = {"recbole": {"version": "1.2.1", "epochs": 3, "trainings": trainings}}
    assert report.trainings_table(libraries).splitlines()[2:] == [
        "| recbole 1.2.1 | **4.7x** (27.3 → 5.8) | 3 | 1 | 0.7782 | 0.7783 |"
    ]
    libraries["recbole"]["seeds"] = 8
    assert report.trainings_table(libraries).splitlines()[2].split(" | ")[3] == "8"


def test_the_section(speed):
    memory = {"rows": [{"provider": "dien-fast", "B": 10, "T": 200, "extra / (N H)": 0.26}]}
    section = report.block("some-cpu", speed, memory)
    words = " ".join(section.split())
    assert "torch.compile took 82 s" in words
    assert "inference) takes 5 µs." in words
    assert "dien-fast at most 0.26." in words
    readme = report.replaced(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", section)
    assert readme == f"before\n{report.BEGIN}\n{section}\n{report.END}\nafter\n"
    assert report.replaced(readme, section) == readme
    assert report.named(readme) == "some-cpu"
    with pytest.raises(ValueError, match="once each"):
        report.replaced("no marks", section)


def test_the_picture(speed, tmp_path):
    report.draw(speed, tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").read_text().lstrip().startswith("<?xml")


def test_the_readme_tells_the_committed_results(monkeypatch, tmp_path, capsys):
    assert report.main(["--check"]) == 0
    changed = tmp_path / "README.md"
    changed.write_text(report.README.read_text().replace(report.END, f"1000x\n{report.END}"))
    monkeypatch.setattr(report, "README", changed)
    assert report.main(["--check"]) == 1
    assert "differs" in capsys.readouterr().err


@pytest.fixture
def gpu_script(tmp_path):
    """Runs benchmarks/gpu.sh over an interpreter and a sanitizer that only note what they were asked for."""
    commands = {
        "python": """echo "$@ [$PYTHONPATH]" >>"$LOG"
                     case "$*" in *capability*) echo 9.0 ;; *pytest*) echo "$SAYS" ;; esac""",
        "compute-sanitizer": """[ -z "$REFUSES" ] || { echo "$REFUSES"; exit 9; }
                                while [ "$1" != "$PYTHON" ]; do shift; done; exec "$@\"""",
    }
    for name, command in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)

    def run(*parts, says="3 passed in 1s", refuses=""):
        log = tmp_path / "log"
        log.write_text("")
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "OUT": str(tmp_path / "out"),
            "LOG": str(log),
            "SAYS": says,
            "REFUSES": refuses,
        }
        done = subprocess.run(
            ["sh", ROOT / "benchmarks" / "gpu.sh", *parts],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text().splitlines()

    return run


def test_the_script_for_gpus_does_every_part(gpu_script):
    done, lines = gpu_script()
    assert done.returncode == 0, done.stderr
    asked = ("setup.py", "dien_fast.backend", "tests/cuda/test_cuda.py", *["gpu.py sanitize"] * 3, "gpu.py time")
    for word, line in zip(asked, lines[1:], strict=True):
        assert word in line
    assert all(f"[{ROOT}" in line for line in lines), "the package is found though it is not installed"


@pytest.mark.parametrize(
    ("parts", "says", "status"),
    [(["test"], "1 failed, 2 passed in 1s", 1), (["test"], "no tests ran", 1), (["nonsense"], "", 2)],
)
def test_the_script_for_gpus_fails(gpu_script, parts, says, status):
    assert gpu_script(*parts, says=says)[0].returncode == status


def test_the_script_for_gpus_without_a_sanitizer_that_works(gpu_script):
    done, lines = gpu_script(refuses="Error: Device not supported")
    assert done.returncode == 0
    assert "NOT SANITIZED" in done.stdout
    assert "gpu.py time" in lines[-1]
    done, lines = gpu_script(refuses="Error: Invalid __global__ write of size 4 bytes")
    assert done.returncode == 1
    assert "Invalid __global__ write" in done.stdout
    assert "gpu.py time" not in lines[-1]
