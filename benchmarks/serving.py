"""Latency of scoring under load: 200 candidates of a user with T events, requests that come at rising rates.

    python benchmarks/serving.py [--threads 1] [--seconds 10] [--steps 50 500] [--ways ...] [--output results.json]
    python benchmarks/serving.py --overhead ROUNDS [--steps 50 500]
    python benchmarks/serving.py --soak MINUTES

Requests arrive at random times that do not wait for answers (an open loop), and their latency counts from these
times. In a process, one thread answers them in their order; over HTTP, one thread of another process asks on 64
connections that stay open. A rate is raised by a quarter until the 99th percentile passes 20 ms. Nothing leaves
this machine.

run         Run.score_candidates: from words to probabilities
encoded     the model's score_candidates on encoded features
http        dien-fast serve
package     the .pt2 file, called from Python
onnx        the .onnx file in ONNX Runtime
loop        dien_fast.reference for the repeated user
scripted    the same, with the loop over steps compiled by TorchScript
cpp         the .pt2 file in examples/serve_cpp, from words to probabilities; without load, and the time to begin

Every way must give the probabilities of ``run`` before it is timed.

``--overhead`` asks 40 times in Python, then 40 times over HTTP, in each of so many rounds, and prints by how much
the median is larger. The table's figures are measured minutes apart, in which a machine may change its speed.

``--soak`` keeps a server half busy and prints its memory and open files each minute, and how its memory grows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet
import torch

from dien_fast import reference
from dien_fast.cli import main as command
from dien_fast.ops.backend import LIBRARY
from dien_fast.serving import Exported, OnnxModel, Package, export, export_onnx
from dien_fast.training.candidates import Request, encode_request
from dien_fast.training.runs import Run, load, model_arguments

CANDIDATES, ITEMS, WIDTH = 200, 5000, 32
LIMIT = 0.020  # seconds, of the 99th percentile
CLIENTS = 64
SCHEMA = """
label = "clicked"
categorical = ["item"]
sequences = ["past"]
min_count = 1
max_length = {steps}
negatives = "none"
[[groups]]
name = "items"
pairs = [{{ ad = "item", pos_hist = "past" }}]
"""
WAYS = ("run", "encoded", "http", "package", "onnx", "loop", "scripted", "cpp")
ROOT = Path(__file__).parents[1]
Call = Callable[[], np.ndarray]


def trained(directory: Path, steps: int) -> Run:
    """Return a run on random clicks; what it has learned does not matter here."""
    generator = np.random.default_rng(0)
    rows = 2000
    histories = [generator.integers(0, ITEMS, steps).tolist() for _ in range(rows)]
    table = {
        "clicked": generator.integers(0, 2, rows),
        "item": generator.integers(0, ITEMS, rows),
        "past": histories,
    }
    pa.parquet.write_table(pa.table(table), directory / "clicks.parquet")
    (directory / "clicks.toml").write_text(SCHEMA.format(steps=steps))
    words = ["--dataset", str(directory / "clicks.parquet"), "--schema", str(directory / "clicks.toml")]
    words += [
        "--output",
        str(directory / "run"),
        "--epochs",
        "1",
        "--embedding-size",
        str(WIDTH),
        "--cpu",
        "--quiet",
    ]
    if command(["train", *words]):
        raise SystemExit("the training failed")
    return load(directory / "run")


def exported(model: Exported, program: str, request: Request) -> Call:
    """Return a call of an exported model on an encoded request."""
    features = request.user | request.candidates
    values = {
        item.name: request.offsets
        if item.name == "candidates.offsets"
        else features[item.name.removesuffix(".offsets")].offsets
        if item.name.endswith(".offsets")
        else getattr(features[item.name], "values", None)
        if item.size.startswith("events")
        else features[item.name]
        for item in model.inputs(program)
    }
    arguments = list(values.values())
    return lambda: model.run(program, arguments).numpy()


def loop(run: Run, request: Request, scripted: bool) -> Call:
    """Return a call of the reference on the padded user, once for each candidate."""
    model = reference.DIEN(**model_arguments(run.config, run.encoders))
    model.load_state_dict(run.model.state_dict())
    model.eval()
    if scripted:
        for layer in model.attention_poolings.values():
            layer.interest_evolution = torch.jit.script(layer.interest_evolution)
    past = request.user["past"].pad().expand(CANDIDATES, -1)

    def call() -> np.ndarray:
        with torch.no_grad():
            logits, _ = model({"item": request.candidates["item"], "past": past})
        return logits.sigmoid().numpy()

    return call


@contextmanager
def served(run: Run, threads: int) -> Iterator[tuple[int, int]]:
    """Serve a run in a process of its own; give the port and the process."""
    words = [sys.executable, "-m", "dien_fast.cli", "serve", str(run.directory), "--port", "0"]
    process = subprocess.Popen([*words, "--threads", str(threads)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


class Connection:
    """A connection that stays open, on which one request is asked again and again.

    A plain socket: http.client, which parses heads as those of mail, takes three times as long.
    """

    def __init__(self, port: int, body: bytes) -> None:
        head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._port, self._request, self._answer = port, head.encode() + body, b""
        self._open()

    def fileno(self) -> int:
        return self._socket.fileno()

    def __call__(self) -> np.ndarray:
        self.ask()
        while (found := self.answer()) is None:
            pass
        return found

    def ask(self) -> None:
        self._answer = b""
        try:
            self._socket.sendall(self._request)
        except ConnectionError:
            self._open()
            self._socket.sendall(self._request)

    def answer(self) -> np.ndarray | None:
        """Receive once; return probabilities ``[C]`` float32 when all are there."""
        try:
            part = self._socket.recv(2**16)
        except ConnectionResetError:
            part = b""
        if not part:
            if self._answer:
                raise ConnectionError("the server closed the connection amid an answer")
            # It closes connections that nobody used for seconds.
            self._open()
            self.ask()
            return None
        self._answer += part
        head, end, content = self._answer.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head.lower()) if end else None
        if size is None or len(content) < int(size[1]):
            return None
        answer = orjson.loads(content)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer["error"])
        return np.array(answer["probabilities"], np.float32)

    def again(self) -> Connection:
        """Return another connection for the same request."""
        return Connection(self._port, self._request.partition(b"\r\n\r\n")[2])

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def arrivals_of(rate: float, seconds: float) -> np.ndarray:
    """Return the seconds at which requests arrive, at random times."""
    return np.random.default_rng(0).exponential(1 / rate, max(int(rate * seconds), 20)).cumsum()


def latencies(call: Call, rate: float, seconds: float) -> np.ndarray:
    """Return the seconds from the arrival of each request to its answer, where one thread answers one by one."""
    arrivals = arrivals_of(rate, seconds)
    found = np.empty(len(arrivals))
    start = time.perf_counter() + 0.05
    for number, arrival in enumerate(arrivals):
        wait = start + arrival - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        call()
        found[number] = time.perf_counter() - start - arrival
    return found


def latencies_over_http(connections: list[Connection], rate: float, seconds: float) -> np.ndarray:
    """Return the same for requests that are asked as they arrive, while a connection is free."""
    arrivals = arrivals_of(rate, seconds)
    found = np.empty(len(arrivals))
    free, asked = list(connections), dict[Connection, int]()
    start, number = time.perf_counter() + 0.05, 0
    while number < len(arrivals) or asked:
        wait = start + arrivals[number] - time.perf_counter() if number < len(arrivals) else None
        if wait is not None and wait <= 0 and free:
            asked[connection := free.pop()] = number
            connection.ask()
            number += 1
            continue
        # Not epoll, which waits for whole milliseconds.
        for connection in select.select(list(asked), [], [], wait if free else None)[0]:
            if connection.answer() is not None:
                done = asked.pop(connection)
                found[done] = time.perf_counter() - start - arrivals[done]
                free.append(connection)
    return found


def under_load(call: Call, seconds: float) -> dict[str, Any]:
    """Return p50 and p99 at each rate, in ms, and the highest rate whose p99 is below the limit."""
    alone = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        alone.append(time.perf_counter() - start)
    clients = [call, *(call.again() for _ in range(CLIENTS - 1))] if isinstance(call, Connection) else []
    rate, rates, best = 0.1 / float(np.median(alone)), [], 0.0
    for _ in range(20):
        found = latencies_over_http(clients, rate, seconds) if clients else latencies(call, rate, seconds)
        p50, p99 = np.percentile(found, [50, 99]).tolist()
        rates.append({"rate": round(rate, 2), "p50": round(1e3 * p50, 3), "p99": round(1e3 * p99, 3)})
        if p99 > LIMIT:
            break
        best, rate = rate, 1.25 * rate
    return {"alone": round(1e3 * float(np.median(alone)), 3), "highest_rate": round(best, 1), "rates": rates}


def request_of(run: Run) -> tuple[dict[str, list[int]], list[int]]:
    """Return the user and the candidates that every way scores."""
    generator = np.random.default_rng(1)
    longest = run.encoders.sequence("past").max_length()
    return {"past": generator.integers(0, ITEMS, longest).tolist()}, generator.integers(
        0, ITEMS, CANDIDATES
    ).tolist()


def package_of(run: Run, directory: Path) -> Path:
    """Return the .pt2 file of a run, which takes minutes to compile, once."""
    path = directory / "model.pt2"
    return path if path.exists() else export(run, path)


def in_cpp(run: Run, directory: Path, threads: int) -> dict[str, float]:
    """Build the C++ program; return its median of one request in ms, and the seconds to load and score once."""
    user, items = request_of(run)
    rows = ["past,item", "|".join(map(str, user["past"])) + "," + "|".join(map(str, items))]
    (directory / "users.csv").write_text("\n".join(rows) + "\n")
    headers = importlib.util.find_spec("nlohmann_json")
    if headers is None or not headers.submodule_search_locations:
        raise SystemExit("nlohmann-json is not installed")
    build = directory / "build"
    configure = ["cmake", "-S", ROOT / "examples" / "serve_cpp", "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    configure += [f"-DJSON_INCLUDE={headers.submodule_search_locations[0]}/include"]
    for step in (configure, ["cmake", "--build", build]):
        subprocess.run(step, check=True, stdout=subprocess.DEVNULL)
    words = [
        build / "serve",
        package_of(run, directory),
        LIBRARY,
        directory / "users.csv",
        "candidates",
        "--repeat",
        "1000",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, env=environment)
    if not np.allclose(np.array(done.stdout.split(), float), run.score_candidates(user, items), rtol=0, atol=2e-6):
        raise SystemExit("cpp gives other probabilities")
    load, alone = re.findall(r"(\S+) m?s$", done.stderr, re.MULTILINE)
    return {"alone": float(alone), "load_and_first_s": float(load)}


def soak(run: Run, minutes: int, threads: int) -> None:
    """Keep a server half busy; print its memory and open files each minute, and how its memory grows."""
    user, items = request_of(run)
    with served(run, threads) as (port, process):
        body = json.dumps({"user": user, "items": items}).encode()
        clients = [Connection(port, body) for _ in range(CLIENTS)]
        alone = float(np.median(timeit.repeat(clients[0], number=1, repeat=50)))
        memory = []
        for minute in range(minutes + 1):
            if minute:
                found = latencies_over_http(clients, 0.5 / alone, 60)
            status = Path(f"/proc/{process}/status").read_text()
            memory.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
            files = len(list(Path(f"/proc/{process}/fd").iterdir()))
            p50 = f", {len(found)} requests, p50 {1e3 * np.median(found):.1f} ms" if minute else ""
            print(f"minute {minute}: {memory[-1]:.1f} MiB, {files} open files{p50}", flush=True)
    # In the first minute, every client's connection and every size of buffer comes up once.
    if minutes > 1:
        slope = np.polyfit(np.arange(1, minutes + 1), memory[1:], 1)[0]
        print(f"growth after the first minute: {slope:+.3f} MiB a minute")


def overhead(run: Run, rounds: int, threads: int) -> str:
    """Return by how much HTTP takes longer than Python; the two are asked by turns."""
    with served(run, threads) as (port, _):
        found: dict[str, list[list[float]]] = {"run": [], "http": []}
        both = calls(run, list(found), run.directory, port)
        for _ in range(rounds):
            for way, call in both.items():
                # The first ones find the other's caches.
                found[way].append(timeit.repeat(call, number=1, repeat=43)[3:])
    python, http = (1e3 * np.median(times, 1) for times in found.values())
    low, middle, high = np.percentile(http - python, [25, 50, 75])
    more = f"HTTP {middle:.2f} ms more (in half of the rounds {low:.2f} to {high:.2f})"
    return f"Python {np.median(python):.2f} ms, {more}"


def calls(run: Run, ways: list[str], directory: Path, port: int) -> dict[str, Call]:
    """Return the call of each way, for one and the same request."""
    user, items = request_of(run)
    request = encode_request(run, user, items)

    def encoded() -> np.ndarray:
        logits = run.model.score_candidates(request.user, request.candidates, request.offsets)
        return logits.sigmoid().numpy()

    makers: dict[str, Callable[[], Call]] = {
        "run": lambda: lambda: run.score_candidates(user, items),
        "encoded": lambda: encoded,
        "http": lambda: Connection(port, json.dumps({"user": user, "items": items}).encode()),
        "package": lambda: exported(Package(package_of(run, directory)), "candidates", request),
        "onnx": lambda: exported(
            OnnxModel(export_onnx(run, directory / "m.onnx"), torch.get_num_threads()), "candidates", request
        ),
        "loop": lambda: loop(run, request, scripted=False),
        "scripted": lambda: loop(run, request, scripted=True),
    }
    found = {way: makers[way]() for way in ways}
    expected = run.score_candidates(user, items)
    for way, call in found.items():
        if not np.allclose(call(), expected, rtol=0, atol=2e-6):
            raise SystemExit(f"{way} gives other probabilities")
    return found


def main() -> None:
    parser = machine.parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each rate (10)")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 500], help="events of the user (50 500)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what is timed (all)")
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--overhead", type=int, metavar="ROUNDS", help="compare HTTP with Python, no more")
    parser.add_argument("--soak", type=int, metavar="MINUTES", help="watch a server's memory for so long, no more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    if arguments.soak:
        with tempfile.TemporaryDirectory() as name:
            soak(trained(Path(name), arguments.steps[0]), arguments.soak, arguments.threads)
        return
    if arguments.overhead:
        for steps in arguments.steps:
            with tempfile.TemporaryDirectory() as name:
                print(
                    f"T={steps}: {overhead(trained(Path(name), steps), arguments.overhead, arguments.threads)}",
                    flush=True,
                )
        return
    results: dict[str, Any] = {}
    for steps in arguments.steps:
        with tempfile.TemporaryDirectory() as name:
            run = trained(Path(name), steps)
            with served(run, arguments.threads) as (port, _):
                results[str(steps)] = {}
                if "cpp" in arguments.ways:
                    results[str(steps)]["cpp"] = in_cpp(run, Path(name), arguments.threads)
                    print(f"T={steps} cpp: {results[str(steps)]['cpp']}", flush=True)
                ways = [way for way in arguments.ways if way != "cpp"]
                for way, call in calls(run, ways, Path(name), port).items():
                    found = under_load(call, arguments.seconds)
                    results[str(steps)][way] = found
                    last = {key: value for key, value in found.items() if key != "rates"}
                    print(f"T={steps} {way}: {last}, {found['rates'][0]}", flush=True)
    result = machine.description(arguments.threads) | {
        "candidates": CANDIDATES,
        "D": WIDTH,
        "seconds": arguments.seconds,
        "limit_ms": 1e3 * LIMIT,
        "T": results,
    }
    machine.save(result, arguments.output or machine.RESULTS / f"serving-{machine.here(os.cpu_count() or 1)}.json")


if __name__ == "__main__":
    main()
