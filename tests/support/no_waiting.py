"""A mode that finds operators for which the host would wait for a device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The host waits for a device to finish before it has the results of these.
WAITING = (
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique",
)


class NoWaiting(TorchDispatchMode):
    """Raises for operators that need the numbers of a tensor on the host, or for the shape of their result."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = name.startswith(WAITING)
        if name.startswith(("aten.index.", "aten.index_put")):
            waits = any(value is not None and value.dtype == torch.bool for value in args[1])
        if name.startswith("aten.repeat_interleave"):
            waits = (kwargs or {}).get("output_size") is None
        assert not waits, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))
