"""Calls of the CUDA launchers on torch tensors, every one of them between guard zones.

A subclass of :class:`Launchers` runs them, under the emulator (tests/cuda) or in GPGPU-Sim (tests/cuda_simulator).
"""

import torch

GUARD = 512  # bytes on either side
POISON = 0xFF  # NaN in every floating-point format
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


class Memory:
    """Tensors copied or created between guard zones, which :meth:`check` looks at."""

    def __init__(self):
        self.pieces = []

    def empty(self, shape, dtype):
        """Poisoned, so that what is not written is NaN."""
        return self._piece(torch.Size(shape), dtype)[0]

    def copy(self, value):
        """A copy that must not change; None stays None."""
        if value is None:
            return None
        tensor, raw = self._piece(value.shape, value.dtype)
        tensor.copy_(value.detach())
        self.pieces[-1] = (raw, raw.clone())
        return tensor

    def _piece(self, shape, dtype):
        size = shape.numel() * dtype.itemsize
        raw = torch.full((size + 2 * GUARD + 256,), POISON, dtype=torch.uint8)
        begin = GUARD + -(raw.data_ptr() + GUARD) % 256  # aligned as the device's allocator does
        self.pieces.append((raw, (begin, begin + size)))
        return raw[begin : begin + size].view(dtype).view(shape), raw

    def check(self):
        for raw, expected in self.pieces:
            if isinstance(expected, tuple):
                begin, end = expected
                assert (raw[:begin] == POISON).all(), "memory before a tensor was written"
                assert (raw[end:] == POISON).all(), "memory behind a tensor was written"
            else:
                assert torch.equal(raw, expected), "an argument was written"


class Launchers:
    """Something that runs the launchers: ``run(direction, arguments, memory)`` computes what arguments name."""

    def run(self, direction, arguments, memory):
        raise NotImplementedError

    def _run(self, direction, arguments, memory):
        addresses = {
            name: value.data_ptr() if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
            if value is not None
        }
        self.run(direction, addresses, memory)
        memory.check()

    @staticmethod
    def _gradients(leaves, wanted, rows, batch, memory):
        """Empty tensors for the gradients that are wanted, by name."""
        x, weight = leaves["x"], leaves["weight_hh"]
        dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        gradients = {}
        if "x" in wanted:
            gradients["dx"] = memory.empty(x.shape, dtype)
        if "att" in wanted and leaves["att"] is not None:
            gradients["datt"] = memory.empty(rows, wide)
        if "h0" in wanted and leaves["h0"] is not None:
            gradients["dh0"] = memory.empty((batch, weight.size(1)), wide)
        if "weights" in wanted:
            gradients["dweight_ih"] = memory.empty(leaves["weight_ih"].shape, dtype)
            gradients["dweight_hh"] = memory.empty(weight.shape, dtype)
            gradients["dbias_ih"], gradients["dbias_hh"] = (
                memory.empty(weight.shape[:1], dtype) for _ in range(2)
            )
        return gradients

    def outcome(
        self,
        leaves,
        cell,
        *,
        lengths=None,
        offsets=None,
        batch_sizes=None,
        x_start=None,
        dstates=None,
        dlast=None,
        wanted=("x", "att", "weights", "h0"),
        return_states=True,
    ):
        """States, last states and, with ``dstates`` or ``dlast``, every gradient, by name.

        ``leaves`` are the tensors of :func:`dien_fast.functional.attention_gru` in one dtype; attention and h0
        become the wide one, as the operator gets them.
        """
        memory = Memory()
        x = leaves["x"].detach()
        dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
        hidden, inputs = leaves["weight_hh"].size(1), x.size(-1)
        rows = x.shape[:-1] if x_start is None else leaves["att"].shape
        padded = lengths is not None
        steps = x.size(1) if padded else 0
        step_start = None
        if batch_sizes is not None:
            steps = batch_sizes.numel()
            step_start = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)])
            batch = int(batch_sizes[0]) if steps else 0
            batch = batch if leaves["h0"] is None else leaves["h0"].size(0)
        else:
            batch = lengths.numel() if padded else offsets.numel() - 1
        call = {name: memory.copy(value) for name, value in leaves.items()}
        for name in ("att", "h0"):
            if leaves[name] is not None:
                call[name] = memory.copy(leaves[name].detach().to(wide))
        call |= {
            "type": TYPES[dtype],
            "cell": cell,
            "batch": batch,
            "rows": rows.numel(),
            "x_rows": x.shape[:-1].numel(),
            "steps": steps,
            "lengths": memory.copy(lengths),
            "offsets": memory.copy(offsets),
            "step_start": memory.copy(step_start),
            "x_start": memory.copy(x_start),
            "input": inputs,
            "hidden": hidden,
        }
        differentiable = dstates is not None or dlast is not None
        states = memory.empty((*rows, hidden), dtype) if return_states or differentiable else None
        wide_states = memory.empty((*rows, hidden), wide) if differentiable and wide != dtype else None
        last = memory.empty((batch, hidden), dtype)
        self._run("forward", call | {"states": states, "wide_states": wide_states, "last": last}, memory)
        found = {"last": last} | ({"states": states} if return_states else {})
        if not differentiable:
            return found
        gradients = self._gradients(leaves, wanted, rows, batch, memory)
        incoming = {"dstates": memory.copy(dstates), "dlast": memory.copy(dlast)}
        saved = states if wide_states is None else wide_states
        self._run("backward", call | incoming | {"states": saved} | gradients, memory)
        return found | gradients
