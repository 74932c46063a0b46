"""The pages' figures come out of the committed results, by benchmarks/report.py; the script for GPUs runs."""

import os
import subprocess
from pathlib import Path

import auc
import auc_tables
import charts
import machine
import pandas as pd
import pytest
import report
import serving
import tables

from dien_fast import cli

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
            row(tables.FORWARD, small, **{"reference loop": 25.0, "nn.GRU packed": 1.0, "dien-fast": 2.0}),
            row(tables.BOTH, small, **{"reference loop": 99.4, "torch.compile loop": 9.0, "dien-fast": 9.0})
            | {"compile seconds": 81.6},
            row("augru_official forward + backward, dense", dense, **{"oneDNN": 3.0, "dien-fast": 2.0})
            | {"GFLOP/s": rates},
        ],
    }


def test_tables(speed):
    rows = tables.rows_of(speed)
    assert tables.loop_table(rows).splitlines() == [
        "| B, T, H | AUGRU forward | AUGRU forward + backward | `Interest` forward + backward |",
        "|---|---|---|---|",
        "| 2, 3, 4 | **12.5x** (25 → 2.00) | **11.0x** (99 → 9.00) |  |",
    ]
    assert tables.others_table(rows).splitlines()[2:] == [
        "| 2, 3, 4, forward |  | 0.50x (1.00) |",
        "| 2, 3, 4, forward + backward | 1.0x (9.00) |  |",
    ]
    assert tables.onednn_table(rows).splitlines()[2:] == ["| 1024, 50, 32 |  | 1.5x |  |  |"]
    assert tables.rates_table(rows, 40.0).splitlines()[2:] == ["| 1024, 50, 32 |  | 20 (50 %) | 16 (40 %) |"]


def test_losses_are_told(speed):
    rows = tables.rows_of(speed)
    assert tables.losses(rows) == "Faster than dien-fast: nn.GRU packed at 2, 3, 4 forward (0.50x)."
    assert tables.show_ratio(0.999) == "0.99x"


@pytest.fixture
def peers():
    times = {"milliseconds": {"library": 50.0, "accelerated": 8.0}}
    return {"recbole": {"sizes": [{"size": [128, 50, 32], "recurrence": times, "step": times}]}}


@pytest.fixture
def trainings():
    both = {
        "unpatched, 2 threads": {"epoch_seconds": 27.31, "auc": 0.77825},
        "accelerated, 2 threads": {"epoch_seconds": 5.8, "auc": 0.77831},
    }
    return {"libraries": {"recbole": {"version": "1.2.1", "epochs": 3, "trainings": both}}}


def test_other_libraries(peers):
    assert tables.peers_table(peers).splitlines()[2:] == [
        "| recbole | 128, 50, 32 | **6.2x** (50 → 8.00) | **6.2x** (50 → 8.00) |"
    ]


def test_sessions(speed):
    times = {"DeepCTR": 50.0, "dien-fast": 8.0}
    row = {"B": 128, "K": 5, "L": 10, "D": 32, "forward": times, "forward + backward": times}
    dsin = {"versions": {"deepctr": "0.9", "tensorflow-cpu": "2.0"}, "threads": 2, "rounds": 15, "rows": [row]}
    assert tables.sessions_table([row]).splitlines()[2:] == [
        "| 128, 5, 10, 32 | **6.2x** (50 → 8.00) | **6.2x** (50 → 8.00) |"
    ]
    words = " ".join(report.benchmarks_block(report.Results("some-cpu", speed, dsin=dsin), []).split())
    assert "DeepCTR 0.9 on TensorFlow 2.0 (CPU)" in words
    assert "2 threads" in words


def test_serving(speed):
    assert {*tables.SERVED} == {*serving.WAYS}
    ways = {"run": {"alone": 2.4, "highest_rate": 390.6}, "cpp": {"alone": 12.3}}
    result = {"candidates": 200, "D": 32, "threads": 1, "limit_ms": 20.0, "seconds": 10.0, "T": {"50": ways}}
    result |= {name: speed[name] for name in ("machine", "versions")}
    result["T"]["500"] = {"run": {"alone": 9.0, "highest_rate": 1234.5}}
    assert tables.serving_table(result).splitlines() == [
        "| way | T 50: ms alone | T 50: requests a second | T 500: ms alone | T 500: requests a second |",
        "|---|---|---|---|---|",
        "| `Run.score_candidates`, from words | 2.40 | 391 | 9.00 | 1,234 |",
        "| `.pt2` file in `examples/serve_cpp`, from words | 12 |  |  |  |",
    ]
    words = " ".join(report.benchmarks_block(report.Results("some-cpu", speed, serving=result), []).split())
    assert "2 cores of Some CPU, threads that compute: 1, torch 2.0." in words
    assert "99th percentile of latency below 20 ms" in words
    assert "10 s at each rate" in words


def test_several_processes():
    assert tables.scaling_table({"1": 100.0, "2": 125.0}, batch=128).splitlines()[2:] == [
        "| 1 | 100 | 1,280 | 1.0x |",
        "| 2 | 125 | 2,048 | 1.6x |",
    ]


def test_the_table_of_prepared_data():
    read = {"first_batch_s": 0.25, "rows_per_second": 20_000, "peak_mib": 700}
    trained = {"steps": 2000, "rows_per_second": 40, "peak_mib": 1900}
    stages = {
        "prepare": {"rows_per_second": 90_000, "peak_mib": 1400},
        "read-prepared": read,
        "train-prepared": trained,
    }
    both = stages | {"read-memory": read | {"peak_mib": 9000}, "train-memory": trained}
    assert tables.prepared_table({"5000": both, "70000": stages}).splitlines()[2:] == [
        "| 70,000, prepared | 90,000 rows/s, 1,400 MiB | 0.2 s | 20,000 rows/s, 700 MiB | 40 rows/s, 1,900 MiB |",
        "| 5,000, prepared | 90,000 rows/s, 1,400 MiB | 0.2 s | 20,000 rows/s, 700 MiB | 40 rows/s, 1,900 MiB |",
        "| 5,000, in memory |  | 0.2 s | 20,000 rows/s, 9,000 MiB | 40 rows/s, 1,900 MiB |",
    ]


def test_trainings(trainings):
    libraries = trainings["libraries"]
    assert tables.trainings_table(libraries).splitlines()[2:] == [
        "| recbole 1.2.1 | **4.7x** (27.3 → 5.8) | 3 | 1 | 0.7782 | 0.7783 |"
    ]
    libraries["recbole"]["seeds"] = 8
    assert tables.trainings_table(libraries).splitlines()[2].split(" | ")[3] == "8"


def test_the_table_of_the_readme(speed, trainings):
    size = (128, 50, 32)
    speed["rows"].append(row(tables.BOTH, size, **{"reference loop": 120.4, "dien-fast": 9.0}))
    assert tables.readme_table(speed, None, trainings).splitlines()[2:] == [
        "| AUGRU recurrence, forward + backward, B 128, T 50, H 32 | 120 ms | 9.0 ms | **13.4x** |",
        "| epoch of a library's own DIEN, accelerated (1 libraries) | 27.3 s | 5.8 s | **4.7x** |",
    ]
    slower = {f"{kind}, 2 threads": {"epoch_seconds": 40.0, "auc": 0.7} for kind in ("unpatched", "accelerated")}
    trainings["libraries"]["fuxictr"] = {"version": "2.3.10", "epochs": 3, "trainings": slower}
    assert tables.readme_table(speed, None, trainings).splitlines()[-1] == (
        "| epoch of a library's own DIEN, accelerated (2 libraries) | 27.3 to 40.0 s | 5.8 to 40.0 s "
        "| **1.0x to 4.7x** |"
    )


def test_the_summary(speed, peers):
    text = " ".join(report.summary(report.Results("some-cpu", speed, peers=peers)).split())
    assert text.startswith("On 2 cores of Some CPU, a training step of a whole DIEN is 6.2 to 6.2 times as fast")


@pytest.fixture
def aucs():
    """Two seeds of DIN and two kinds of DIEN in one task."""
    variants = {"DIEN, gru_type AUGRU, negatives uniform": 0.8, "DIN": 0.7}
    variants |= {"DIEN, gru_type AUGRU, negatives none": 0.75, "DIEN, gru_type GRU, negatives none": 0.9}
    rows = [
        {"variant": name, "seed": seed, "test_auc": mean + 0.01 * seed, "epochs": 5}
        | {"test_gauc": 0.6, "test_logloss": 0.5, "best_reachable_auc": 0.9, "seconds": 480.0}
        | {"machine": ("zen4", "zen3")[seed], "jobs": 2 - seed}
        for name, mean in variants.items()
        for seed in (0, 1)
    ]
    result = {"title": "the next film", "command": "dien-fast compare --models din,dien", "rows": rows}
    result |= {
        "machine": {"cores": 2, "cpu": "Some CPU", "name": "some-1-threads"},
        "versions": {"torch": "2.0"},
    }
    return {"next-popularity": result | {"epoch seconds": dict.fromkeys(variants, 8.5)}}


def test_the_overview_of_the_models(aucs):
    assert auc_tables.overview(aucs).splitlines()[2:] == [
        "| DIN | 0.7050 ± 0.0071 |",
        "| DIEN, AUGRU, no auxiliary loss | 0.7550 ± 0.0071 |",
        "| DIEN, AUGRU | **0.8050 ± 0.0071** |",
    ]


def test_the_tasks_of_the_models(aucs):
    block = report.tasks_block(aucs)
    assert "\n    dien-fast compare --models din,dien --seeds 2 --output compared/next-popularity\n" in block
    words = " ".join(block.split())
    assert "1 or 2 at a time on 2 cores of zen3 and zen4, 48 minutes; torch 2.0." in words
    assert "The best reachable AUC is 0.9000." in words
    assert block.splitlines()[-1] == (
        "| DIEN, AUGRU | 0.8050 ± 0.0071 | +0.1000 (+0.1000 to +0.1000) | +48.8 % | 0.6000 | 0.5000 | 5.0 | 8.5 |"
    )


def test_a_comparison_goes_on_from_its_results_file(aucs, tmp_path, monkeypatch):
    (result,) = aucs.values()
    auc.restore(result["rows"], tmp_path)

    def one_more(words, directory):
        ended = [pd.read_csv(directory / "results.csv"), pd.DataFrame([result["rows"][0] | {"seed": 2}])]
        # Where the command has trained all of them, it knows of no machine.
        return 130, pd.concat(ended).drop(columns=["machine", "jobs"])

    monkeypatch.setattr(auc, "compare", one_more)
    monkeypatch.setattr(machine, "short_name", lambda fields, model: "here")
    status, measured = auc.measured(auc.TASKS["next-popularity"], tmp_path, 3, 3, result["rows"])
    rows = measured["rows"]
    assert status == 130
    assert [row["jobs"] for row in rows] == [2] * 4 + [1] * 4 + [3]
    assert [row["machine"] for row in rows] == ["zen4"] * 4 + ["zen3"] * 4 + ["here"]
    # The third seed was interrupted.
    assert auc_tables.complete(measured, 4)["rows"] == rows[:8]


def test_a_task_that_not_every_model_was_trained_on_has_gaps(aucs):
    (result,) = aucs.values()
    fewer = result | {"rows": [row for row in result["rows"] if "none" not in row["variant"]]}
    overview = auc_tables.overview(aucs | {"next-uniform": fewer})
    assert overview.splitlines()[3] == "| DIEN, AUGRU, no auxiliary loss | 0.7550 ± 0.0071 |  |"


def test_ablations_take_what_the_task_has_trained(aucs, tmp_path):
    (result,) = aucs.values()
    own = [result["rows"][0] | {"variant": "DIEN, negatives uniform", "seed": 0, "test_auc": 0.5}]
    auc.restore(own + auc.shared(result["rows"]), tmp_path)
    found = pd.read_csv(tmp_path / "results.csv").set_index(["variant", "seed"])["test_auc"]
    assert sorted(found.index) == [
        *[("DIEN, negatives none", seed) for seed in (0, 1)],
        *[("DIEN, negatives uniform", seed) for seed in (0, 1)],
    ]
    assert found["DIEN, negatives uniform", 0] == 0.5
    for name, task in auc.TASKS.items():
        if task.shares:
            other = auc.TASKS[task.shares]
            assert (task.options, task.own["dien"]) == (other.options, other.own["dien"]), name


def test_the_ablations(aucs):
    (result,) = aucs.values()
    names = {"DIN": "DIEN, negatives none", "DIEN, gru_type AUGRU, negatives uniform": "DIEN, negatives uniform"}
    rows = [row | {"variant": names[row["variant"]]} for row in result["rows"] if row["variant"] in names]
    assert auc_tables.ablation_table({"auxiliary-order": result | {"rows": rows}}).splitlines()[2:] == [
        "| the next film | uniform | 0.7050 | 0.8050 | +0.1000 (+0.1000 to +0.1000) |"
    ]


@pytest.mark.parametrize("name", auc.TASKS)
def test_the_commands_of_the_tasks_are_valid(name, tmp_path):
    arguments = cli.build_parser().parse_known_args(auc.words_of(auc.TASKS[name], tmp_path))
    arguments[0].more = arguments[1]
    trainings = cli.compare._trainings(arguments[0])
    assert len({training.variant for training in trainings}) in (2, 3, 10)


def test_the_sections(speed):
    memory = {"rows": [{"provider": "dien-fast", "B": 10, "T": 200, "extra / (N H)": 0.26}]}
    results = report.Results("some-cpu", speed, memory)
    section = report.benchmarks_block(results, [report.Results("other-cpu", speed)])
    words = " ".join(section.split())
    assert "torch.compile took 82 s" in words
    assert "inference) takes 5 µs." in words
    assert "dien-fast at most 0.26." in words
    assert "Another machine: other-cpu" in words
    assert report.named(section) == "some-cpu"


def test_marks():
    page = "before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n"
    written = report.replaced(page, "speed", "new")
    assert written == "before\n<!-- speed:begin -->\nnew\n<!-- speed:end -->\nafter\n"
    assert report.replaced(written, "speed", "new") == written
    with pytest.raises(ValueError, match="once each"):
        report.replaced("no marks", "speed", "new")


def test_the_pictures(speed, peers, trainings, tmp_path):
    charts.draw_speed(speed, tmp_path / "speed.svg")
    charts.draw_models(None, peers, trainings, tmp_path / "models.svg")
    for name in ("speed.svg", "models.svg"):
        assert (tmp_path / name).read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("page", "mark"),
    [
        ("README", "summary"),
        ("README", "speed"),
        ("BENCHMARKS", "results"),
        ("CUDA", "predictions"),
        ("CUDA", "layer"),
        ("MODELS", "tasks"),
        ("README", "models"),
        ("LARGE", "sizes"),
        ("LARGE", "scaling"),
        ("PREPARED", "prepared"),
    ],
)
def test_the_pages_tell_the_committed_results(page, mark, monkeypatch, tmp_path, capsys):
    assert report.main(["--check"]) == 0
    path = getattr(report, page)
    changed = tmp_path / path.name
    end = f"<!-- {mark}:end -->"
    changed.write_text(path.read_text().replace(end, f"1000x\n{end}"))
    monkeypatch.setattr(report, page, changed)
    assert report.main(["--check"]) == 1
    assert path.name in capsys.readouterr().err


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
            "TORCH_CUDA_ARCH_LIST": "",  # the script asks the device then
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
    # The tests and the sanitizers run side by side.
    checks = ["import xdist", *["gpu.py sanitize"] * 3, "tests/cuda/test_cuda.py"]
    asked = ["setup.py", "dien_fast.backend", *checks, "gpu.py kernels", "gpu.py time"]
    lines[3:8] = sorted(lines[3:8], key=lambda line: [check in line for check in checks], reverse=True)
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
