"""Trains every peer's own DIEN on MovieLens-100K, unpatched and accelerated, and compares the curves.

    python tests/peers/compare.py --environments .venv-peers [--seeds 8] [LIBRARY ...]

Five trainings a library, each in a process of its own. Three are unpatched: with 1 thread, with 2, and with 1
and the instructions of a machine without AVX, for other orders of the same float32 sums. Two are accelerated,
with 1 thread and with 2. An accelerated training may differ from the unpatched one of as many threads by twice
what two unpatched ones differ by: in its loss (the mean of every `WINDOW` steps, the largest difference) and in
its test AUC. Its first loss, before any update, must be the same up to rounding, and nothing of the library's
DIEN may be left as it was. Nothing is skipped: an environment or a figure that is missing is a failure.

With several seeds all differences are means over them, and the threads are draws enough: the training with
plain instructions is left out, as is the floor of the AUC's limit.

Writes every figure to benchmarks/results/trainings-MACHINE.json, and ends with "N passed, N failed". With names of
libraries it trains those alone, and keeps what the file says of the others.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

PEERS = Path(__file__).resolve().parent
ROOT = PEERS.parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import machine  # noqa: E402
import ml_100k  # noqa: E402

# The environment of each library: RecBole's pins (numpy 1, pandas 2.2, ray 2.6) conflict with the others'.
ENVIRONMENTS = {
    "recbole": "recbole",
    "deepctr-torch": "others",
    "fuxictr": "others",
    "prediction-flow": "others",
    "torch-rechub": "others",
}
# The first epoch of these ends before rounding errors of 1 and of 2 threads have grown as large as they become.
EPOCHS = {"deepctr-torch": 3, "prediction-flow": 3}
FIRST_SEED = 2024
WINDOW = 10
# Of the loss: where two unpatched runs are all but bit-equal, twice what they differ by is less than rounding.
ROUNDING = 1e-5
# With one seed few runs make few draws of what AUCs differ by, and where these are small by chance another run
# exceeds twice the largest. Layers before batch normalisation have biases without a gradient; Adam makes steps of
# their rounding errors, which training does not see and the averages of evaluation follow late, so that AUCs
# differ where losses agree to six digits. Seven trainings of prediction-flow for an epoch with 1 to 3 threads and
# other instructions: 0.61388 with a deviation of 0.00016 unpatched, 0.61387 and 0.00017 accelerated.
AUC_FLOOR = 1e-3


@dataclass(frozen=True)
class Run:
    """A training: its arguments, and what it finds in its environment."""

    threads: int
    accelerated: bool = False
    environment: tuple[tuple[str, str], ...] = ()


# Threads alone hardly change DeepCTR-Torch's sums: its losses are bit-equal for some fifty steps. Plain
# instructions make five times the difference.
PLAIN = (("ATEN_CPU_CAPABILITY", "default"), ("MKL_CBWR", "COMPATIBLE"))
RUNS = {
    "unpatched, 1 thread": Run(1),
    "accelerated, 1 thread": Run(1, accelerated=True),
    "unpatched, 2 threads": Run(2),
    "accelerated, 2 threads": Run(2, accelerated=True),
    "unpatched, plain instructions": Run(1, environment=PLAIN),
}


def train(library, name, seed, environments, data, scratch):
    """Run one training in its environment and return what it wrote."""
    run = RUNS[name]
    output = scratch / f"{library}, {name}, seed {seed}.json"
    output.unlink(missing_ok=True)
    python = environments / ENVIRONMENTS[library] / "bin" / "python"
    script = PEERS / f"train_{library.replace('-', '_')}.py"
    command = [python, script, "--data", data, "--output", output, "--threads", str(run.threads)]
    command += ["--epochs", str(EPOCHS.get(library, 1)), "--seed", str(seed)]
    command += ["--accelerate"] if run.accelerated else []
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(run.threads)} | dict(run.environment)
    )
    log = output.with_suffix(".log")
    with log.open("w") as file:
        result = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{name} ended with {result.returncode}:\n{tail}")
    return json.loads(output.read_text())


def curve(losses):
    """Return the means of `WINDOW` steps each, the last of what is left."""
    return np.array([np.mean(losses[start : start + WINDOW]) for start in range(0, len(losses), WINDOW)])


def distance(a, b):
    """Return the largest difference of two trainings' curves, and the difference of their AUCs, over seeds."""
    losses = [np.abs(curve(x["losses"]) - curve(y["losses"])).max() for x, y in zip(a, b, strict=True)]
    aucs = [abs(x["auc"] - y["auc"]) for x, y in zip(a, b, strict=True)]
    return float(np.mean(losses)), float(np.mean(aucs))


def judge(results):
    """Return what is wrong with the accelerated trainings, and the figures.

    Results are named as in RUNS, a list each, with a training for every seed.
    """
    if len({len(result["losses"]) for name in results for result in results[name]}) > 1:
        return ["trainings differ in their number of steps"], {}
    seeds = len(results["unpatched, 1 thread"])
    unpatched = [results[name] for name in results if not RUNS[name].accelerated]
    pairs = [distance(a, b) for a, b in combinations(unpatched, 2)]
    loss_spread, auc_spread = (max(column) for column in zip(*pairs, strict=True))
    loss_limit = max(2 * loss_spread, ROUNDING * float(np.abs([run["losses"] for run in unpatched[0]]).mean()))
    auc_limit = max(2 * auc_spread, AUC_FLOOR if seeds == 1 else 0.0)
    figures = {"unpatched": {"loss": loss_spread, "AUC": auc_spread}}
    threads = distance(results["unpatched, 1 thread"], results["unpatched, 2 threads"])
    figures["unpatched, 1 thread and 2"] = dict(zip(("loss", "AUC"), threads, strict=True))
    figures["limits"] = {"loss": loss_limit, "AUC": auc_limit}
    wrong = []
    for name, run in RUNS.items():
        if not run.accelerated:
            continue
        plain = next(results[other] for other, its in RUNS.items() if its == Run(run.threads))
        loss, auc = distance(results[name], plain)
        fast = results[name]
        first = max(abs(x["losses"][0] / y["losses"][0] - 1) for x, y in zip(fast, plain, strict=True))
        figures[name] = {"loss": loss, "AUC": auc, "first loss, relative": first}
        left = {part for training in fast for part in training["left"]}
        if left or not all(training["fast"] for training in fast):
            wrong.append(f"{name}: not made fast: {', '.join(sorted(left)) or 'anything'}")
        if not loss <= loss_limit:
            wrong.append(f"{name}: losses differ by {loss:.2e}, the limit is {loss_limit:.2e}")
        if not auc <= auc_limit:
            wrong.append(f"{name}: AUC differs by {auc:.2e}, the limit is {auc_limit:.2e}")
        if not first <= ROUNDING:
            wrong.append(f"{name}: the first losses differ by {first:.2e} of their size, the limit is {ROUNDING}")
    return wrong, figures


def summary(trainings):
    """Return what the results file keeps of a run: means and medians over its seeds, the first one's losses."""
    return {
        "auc": float(np.mean([training["auc"] for training in trainings])),
        "aucs": [training["auc"] for training in trainings],
        "epoch_seconds": float(np.median([training["epoch_seconds"] for training in trainings])),
        "epoch_cpu_seconds": float(np.median([training["epoch_cpu_seconds"] for training in trainings])),
        "fast": trainings[0]["fast"],
        "losses": [round(loss, 6) for loss in curve(trainings[0]["losses"])],
    }


def compare(library, seeds, environments, data, scratch):
    """Run the trainings of one library; return what is wrong and what the results file says of it."""
    results = {name: [] for name, run in RUNS.items() if seeds == 1 or not run.environment}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name, trainings in results.items():
            result = train(library, name, seed, environments, data, scratch)
            trainings.append(result)
            seconds, cpu_seconds = result["epoch_seconds"], result["epoch_cpu_seconds"]
            print(
                f"{library}, seed {seed}, {name}: AUC {result['auc']:.4f}, {seconds} s an epoch "
                f"({cpu_seconds} s of CPU)",
                flush=True,
            )
    wrong, figures = judge(results)
    for name, differences in figures.items():
        print(f"  {name}: {', '.join(f'{what} {value:.2e}' for what, value in differences.items())}", flush=True)
    names = ("version", "torch", "numpy", "batch_size", "epochs", "steps")
    described = {name: results["unpatched, 1 thread"][0][name] for name in names} | {"seeds": seeds}
    trainings = {name: summary(result) for name, result in results.items()}
    return wrong, described | {"wrong": wrong, "differences": figures, "trainings": trainings}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "peers", help="data, logs, every loss")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds to train each run with (1)")
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(ENVIRONMENTS)} (all)")
    arguments = parser.parse_args()
    libraries = arguments.libraries or list(ENVIRONMENTS)
    if unknown := set(libraries) - set(ENVIRONMENTS):
        parser.error(f"unknown library: {', '.join(sorted(unknown))}")
    scratch = arguments.scratch.resolve()
    data = scratch / "ml-100k.npz"
    ml_100k.build(data)

    result = machine.description(threads=2) | {"window": WINDOW}
    output = arguments.output or machine.RESULTS / f"trainings-{result['machine']['name']}.json"
    result["libraries"] = json.loads(output.read_text())["libraries"] if output.exists() else {}
    failed = []
    for library in libraries:
        try:
            # Not resolved: the interpreter is a link out of its environment.
            wrong, figures = compare(library, arguments.seeds, arguments.environments.absolute(), data, scratch)
        except (RuntimeError, OSError) as error:
            wrong, figures = [str(error)], None
        result["libraries"].pop(library, None)
        if figures:
            result["libraries"][library] = figures | {"commit": result["commit"]}
        machine.save(result, output)
        for reason in wrong:
            print(f"FAILED {library}: {reason}", flush=True)
        failed += [library] if wrong else []
    print(f"{len(libraries) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
