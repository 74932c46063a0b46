"""The launchers on a device that GPGPU-Sim simulates, in a process of its own."""

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from cuda_launchers import Launchers
from simulator_build import environment

HERE = Path(__file__).parent


class Driver:
    """A process of the simulator that runs requests one after the other."""

    def __init__(self, executable, root):
        self.folder = tempfile.TemporaryDirectory(prefix="dien-fast-simulator-")
        folder = Path(self.folder.name)
        shutil.copy(HERE / "functional.config", folder / "gpgpusim.config")
        self.log = folder / "log.txt"
        self.read = 0  # of the log
        ours, theirs = os.pipe()
        self.errors = folder / "errors.txt"
        with self.log.open("wb") as log, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [executable, str(theirs)],
                cwd=folder,
                env=environment(root),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=errors,
                pass_fds=[theirs],
            )
        os.close(theirs)
        self.replies = os.fdopen(ours, "rb")
        atexit.register(self.close)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def send(self, chunks):
        """Send the bytes of a request."""
        try:
            for chunk in chunks:
                self.process.stdin.write(chunk)
            self.process.stdin.flush()
        except BrokenPipeError:
            self.fail()

    def ask(self, direction, arguments, pieces=()):
        """Call a launcher, as driver.cpp describes; return the number that is the reply, or fill ``pieces``."""
        lines = [f"{direction} {len(arguments)} {len(pieces)}"]
        lines += [f"{name} {value}" for name, value in arguments.items()]
        lines += [f"{piece.data_ptr()} {piece.numel()}" for piece in pieces]
        self.send(["\n".join(lines).encode() + b"\n", *(piece.numpy().tobytes() for piece in pieces)])
        if not pieces:
            return int.from_bytes(self.receive(8), "little")
        for piece in pieces:
            piece.copy_(torch.frombuffer(bytearray(self.receive(piece.numel())), dtype=torch.uint8))
        return None

    def receive(self, count):
        found = self.replies.read(count)
        if len(found) < count:
            self.fail()
        return found

    def fail(self):
        status = self.process.wait()
        tail = self.log.read_text(errors="replace")[-500:] + self.errors.read_text(errors="replace")[-500:]
        raise RuntimeError(f"the simulator ended with status {status}:\n{tail}")

    def launched(self):
        """The mangled names of the kernels that ran since the last call."""
        with self.log.open("rb") as log:
            log.seek(self.read)
            text = log.read().decode(errors="replace")
        self.read += len(text.encode())
        return re.findall(r"pushing kernel '(\w+)'", text)


@functools.cache
def driver(executable, root):
    return Driver(executable, root)


@dataclass
class Simulated(Launchers):
    """The simulated launchers, and what they are told of the device."""

    driver: Driver
    multiprocessors: int = 64
    shared_bytes: int = 227 * 1024
    chunk_bytes: dict | int = 256 << 20  # for both directions, or by direction

    def run(self, direction, arguments, memory):
        """Run ``"forward"`` or ``"backward"`` in a workspace between guard zones."""
        chunk_bytes = self.chunk_bytes[direction] if isinstance(self.chunk_bytes, dict) else self.chunk_bytes
        arguments = arguments | {
            "chunk_bytes": chunk_bytes,
            "multiprocessors": self.multiprocessors,
            "shared_bytes": self.shared_bytes,
        }
        size = self.driver.ask(f"{direction}_workspace", arguments)
        arguments["workspace"] = memory.empty((size,), torch.uint8).data_ptr()
        self.driver.ask(direction, arguments, [raw for raw, _ in memory.pieces])
