"""Trains every peer's own DIEN on MovieLens-100K, unpatched and accelerated, and compares the curves.

    python tests/peers/compare.py --environments .venv-peers

Four trainings a library, each in a process of its own: unpatched and accelerated, with 1 and with 2 threads.
What two unpatched runs differ by is what the order of float32 sums makes of a training; an accelerated one may
differ by twice that from the unpatched one of the same thread count, in its loss (the mean of every `WINDOW`
steps, at most over the epoch) and in its test AUC. Nothing is skipped: an environment or a figure that is
missing is a failure.

Writes every figure to benchmarks/results/peers-MACHINE.json, and ends with "N passed, N failed".
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
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
THREADS = (1, 2)
WINDOW = 10
LOSS_FLOOR = AUC_FLOOR = 0.0


@dataclass(frozen=True)
class Run:
    """One training, as train_*.py describes it."""

    library: str
    accelerated: bool
    threads: int

    @property
    def name(self):
        return f"{self.library}-{'accelerated' if self.accelerated else 'unpatched'}-{self.threads}"


def train(run, environments, data, scratch):
    """Run one training in its environment and return what it wrote."""
    output = scratch / f"{run.name}.json"
    output.unlink(missing_ok=True)
    python = environments / ENVIRONMENTS[run.library] / "bin" / "python"
    script = PEERS / f"train_{run.library.replace('-', '_')}.py"
    command = [python, script, "--data", data, "--output", output, "--threads", str(run.threads)]
    command += ["--accelerate"] if run.accelerated else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(run.threads)}
    log = scratch / f"{run.name}.log"
    with log.open("w") as file:
        result = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{run.name} ended with {result.returncode}:\n{tail}")
    return json.loads(output.read_text())


def curve(losses):
    """Return the means of `WINDOW` steps each, the last of what is left."""
    return np.array([np.mean(losses[start : start + WINDOW]) for start in range(0, len(losses), WINDOW)])


def distance(a, b):
    """Return the largest difference of two trainings' curves, and the difference of their AUCs."""
    return float(np.abs(curve(a["losses"]) - curve(b["losses"])).max()), abs(a["auc"] - b["auc"])


def judge(unpatched, accelerated):
    """Return what is wrong with the accelerated trainings, and the figures; arguments are {threads: result}."""
    first, second = (unpatched[threads] for threads in THREADS)
    if len(first["losses"]) != len(second["losses"]):
        return ["the unpatched trainings have another number of steps"], {}
    loss_spread, auc_spread = distance(first, second)
    figures = {"loss spread": loss_spread, "AUC spread": auc_spread}
    wrong = []
    for threads in THREADS:
        if len(accelerated[threads]["losses"]) != len(unpatched[threads]["losses"]):
            wrong.append(f"{threads} threads: another number of steps")
            continue
        loss, auc = distance(accelerated[threads], unpatched[threads])
        figures |= {f"loss difference, {threads}": loss, f"AUC difference, {threads}": auc}
        if not loss <= max(2 * loss_spread, LOSS_FLOOR):
            wrong.append(f"{threads} threads: losses differ by {loss:.2e}, unpatched by {loss_spread:.2e}")
        if not auc <= max(2 * auc_spread, AUC_FLOOR):
            wrong.append(f"{threads} threads: AUC differs by {auc:.2e}, unpatched by {auc_spread:.2e}")
    return wrong, figures


def summary(result):
    """Return what the results file keeps of one training."""
    means = [round(mean, 6) for mean in curve(result["losses"]).tolist()]
    return {"auc": result["auc"], "epoch_seconds": round(result["epoch_seconds"], 2), "losses": means}


def compare(library, environments, data, scratch):
    """Run the trainings of one library; return what is wrong and what the results file says of it."""
    kinds = {"unpatched": {}, "accelerated": {}}
    for threads in THREADS:
        for kind, results in kinds.items():
            results[threads] = train(Run(library, kind == "accelerated", threads), environments, data, scratch)
            auc, seconds = results[threads]["auc"], results[threads]["epoch_seconds"]
            print(f"{library}, {kind}, {threads} thread(s): AUC {auc:.4f}, {seconds:.1f} s an epoch", flush=True)
    wrong, figures = judge(**kinds)
    for name, figure in figures.items():
        print(f"  {name}: {figure:.2e}")
    described = {
        name: kinds["unpatched"][1][name] for name in ("version", "torch", "numpy", "batch_size", "steps")
    }
    trainings = {
        kind: {str(threads): summary(result) for threads, result in results.items()}
        for kind, results in kinds.items()
    }
    return wrong, described | {"wrong": wrong, "figures": figures} | trainings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "peers", help="data, logs, every loss")
    parser.add_argument("--output", type=Path, help="results file")
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(ENVIRONMENTS)} (all)")
    arguments = parser.parse_args()
    libraries = arguments.libraries or list(ENVIRONMENTS)
    if unknown := set(libraries) - set(ENVIRONMENTS):
        parser.error(f"unknown library: {', '.join(sorted(unknown))}")
    scratch = arguments.scratch.resolve()
    data = scratch / "ml-100k.npz"
    ml_100k.build(data)

    result = machine.description(max(THREADS)) | {"window": WINDOW, "libraries": {}}
    failed = []
    for library in libraries:
        try:
            # Not resolved: the interpreter is a link out of its environment.
            wrong, figures = compare(library, arguments.environments.absolute(), data, scratch)
        except (RuntimeError, OSError) as error:
            wrong, figures = [str(error)], None
        if figures:
            result["libraries"][library] = figures
        for reason in wrong:
            print(f"FAILED {library}: {reason}", flush=True)
        failed += [library] if wrong else []
    output = arguments.output or machine.RESULTS / f"peers-{result['machine']['name']}.json"
    machine.save(result, output)
    print(f"{len(libraries) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
