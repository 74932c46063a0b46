"""The launchers under the emulator."""

from dataclasses import dataclass

import torch
from cuda_launchers import Launchers


@dataclass
class Emulated(Launchers):
    """The emulated launchers, and how their blocks run."""

    module: object
    order: str = "forward"
    seed: int = 0
    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    chunk_bytes: int = 256 << 20

    def run(self, direction, arguments, memory):
        """Run ``"forward"`` or ``"backward"`` in a workspace between guard zones."""
        arguments = arguments | {"chunk_bytes": self.chunk_bytes}
        self.module.configure(self.order, self.seed, self.multiprocessors, self.shared_bytes)
        size = getattr(self.module, f"{direction}_workspace")(arguments)
        workspace = memory.empty((size,), torch.uint8)
        getattr(self.module, direction)(arguments, workspace.data_ptr())
