"""Times the session layer of DSIN against DeepCTR's, which runs in TensorFlow, with the same weights.

    .venv-peers/deepctr/bin/python benchmarks/dsin.py [--threads 2] [--rounds 15]

Each provider has a process of its own, because the thread pools of TensorFlow and torch disturb one another; the
two take turns, and while one computes the other waits. DeepCTR runs as a compiled graph (``tf.function``), as in
Keras's training. ``forward`` is evaluation; ``forward + backward`` is training with the Bi-LSTM's dropout, the
gradients of candidates, events and all weights included. All sessions are full. Before that the outputs must
agree. Figures are medians over the rounds, in ``benchmarks/results/dsin-MACHINE-THREADS-threads.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# B, K, L, D
SIZES = [(128, 5, 10, 32), (128, 20, 10, 32), (128, 5, 50, 32), (1024, 5, 10, 64)]
PASSES = ("forward", "forward + backward")
PROVIDERS = ("DeepCTR", "dien-fast")
# A turn lasts at least so long, so that a call of a few milliseconds is timed over several.
TURN_SECONDS = 0.05


def deepctr_runs(size: tuple[int, ...], threads: int) -> dict[str, Callable[[], Any]]:
    from deepctr_dsin import DeepCtrSessions, Sizes, tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    layer, inputs = DeepCtrSessions(Sizes(*size)), [tf.constant(value) for value in Sizes(*size).inputs()]
    layer(*inputs, training=False)  # Makes the weights.
    rows = tf.ones((size[0], 2 * size[3]))

    @tf.function
    def forward() -> Any:
        return layer(*inputs, training=False)

    @tf.function
    def backward() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(*inputs, training=True) * rows)
        return tape.gradient(loss, [*inputs, *layer.variables()])

    return {
        "forward": lambda: forward().numpy(),
        "forward + backward": lambda: [gradient.numpy() for gradient in backward()[:2]],
    }


def our_runs(size: tuple[int, ...], threads: int) -> dict[str, Callable[[], Any]]:
    import torch

    from dien_fast import Ragged
    from dien_fast.nn.sessions import SessionInterest

    torch.set_num_threads(threads)
    users, sessions, events, width = size
    layer = SessionInterest(width, max_sessions=sessions, max_events=events)
    steps = sessions * events
    query = torch.randn(users, width, requires_grad=True)
    rows = torch.randn(users * steps, width, requires_grad=True)
    keys = Ragged(rows, torch.arange(users + 1) * steps, steps)
    numbers = torch.arange(users * steps) // events
    leaves = [query, rows, *layer.parameters()]

    def forward() -> Any:
        layer.eval()
        with torch.inference_mode():
            return layer(query, keys, numbers)

    def backward() -> Any:
        layer.train()
        return torch.autograd.grad(layer(query, keys, numbers).sum(), leaves)

    return {"forward": forward, "forward + backward": backward}


def serve(provider: str, threads: int) -> None:
    """Answer the lines of standard input: set up a size, or time a turn of a pass."""
    # deepctr prints where it finds no newer version of itself.
    answers, sys.stdout = sys.stdout, sys.stderr
    runs: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "size":
            make = deepctr_runs if provider == "DeepCTR" else our_runs
            runs = make(tuple(arguments[0]), threads)
            for run in runs.values():
                run()
                run()
            answer: Any = "ready"
        else:
            calls, begin = 0, time.perf_counter()
            while not calls or time.perf_counter() - begin < TURN_SECONDS:
                runs[what]()
                calls += 1
            answer = 1e3 * (time.perf_counter() - begin) / calls
        print(json.dumps(answer), file=answers, flush=True)


class Provider:
    """A process that answers."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--threads", str(threads)]
        # OpenMP's threads of torch would spin through the other's turn.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a provider ended with {self.process.wait()}")
        return json.loads(answer)


def measure(providers: dict[str, Provider], size: tuple[int, ...], rounds: int) -> dict[str, Any]:
    for provider in providers.values():
        provider.ask("size", size)
    row: dict[str, Any] = dict(zip("BKLD", size, strict=True))
    for what in PASSES:
        times: dict[str, list[float]] = {name: [] for name in providers}
        for _ in range(rounds):
            for name, provider in providers.items():
                times[name].append(provider.ask(what))
        row[what] = {name: round(statistics.median(values), 3) for name, values in times.items()}
    return row


def main() -> None:
    import machine

    parser = machine.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--serve", choices=PROVIDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    check = subprocess.run([sys.executable, ROOT / "tests" / "peers" / "compare_dsin.py"], check=False)
    if check.returncode:
        raise SystemExit("the providers differ, so there is nothing to time")
    result = machine.description(arguments.threads)
    result["versions"] |= {name: importlib.metadata.version(name) for name in ("deepctr", "tensorflow-cpu")}
    providers = {name: Provider(name, arguments.threads) for name in PROVIDERS}
    result["rounds"], result["load"] = arguments.rounds, os.getloadavg()[0]
    result["rows"] = []
    for size in SIZES:
        result["rows"].append(measure(providers, size, arguments.rounds))
        print(result["rows"][-1], flush=True)
    for provider in providers.values():
        assert provider.process.stdin is not None
        provider.process.stdin.close()
        provider.process.wait()
    machine.save(result, arguments.output or machine.RESULTS / f"dsin-{machine.here(arguments.threads)}.json")


if __name__ == "__main__":
    main()
