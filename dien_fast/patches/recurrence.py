"""Fast versions of the loops that other libraries run over a packed batch, and of their nn.GRU."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dien_fast.functional import attention_gru
from dien_fast.ops.attention_gru import KERNELS
from dien_fast.ops.backend import wants_native
from dien_fast.ops.cells import Weights
from dien_fast.patches.cells import LAYOUTS, CellRule, is_altered, layout_of
from dien_fast.patches.probe import RefusedError, check_same, rule_of
from dien_fast.patches.swap import Accelerated, Recipe
from dien_fast.patches.trial import packed_inputs


class Loop(NamedTuple):
    """What a fast loop keeps in its class.

    Attributes:
        attribute: name of the loop's cell.
        cell_type: the cell's class.
        layout: name of the cell's layout in ``cells.LAYOUTS``.
        rule: what the cell computes.
        arguments: names that the loop's forward gives to x, attention and initial states.
        returns_last: whether the loop returns the last states too, in the caller's order.
    """

    attribute: str
    cell_type: type[nn.Module]
    layout: str
    rule: CellRule
    arguments: tuple[str, str, str]
    returns_last: bool


def takes_kernel(x: Tensor) -> bool:
    """Whether the kernel takes x, which must be on the CPU; if not, the library's own code runs."""
    return x.is_cpu and x.is_floating_point() and wants_native()


def _replaces_loop(x: Tensor) -> bool:
    """Whether a kernel takes x on its device; a GPU too, where nn.GRU has cuDNN and a loop has nothing faster."""
    return KERNELS.are_used(x)


class PackedLoop(Accelerated):
    """A loop over a packed batch as one operator; the library's own loop where the operator does not apply."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Arguments and results as the original's."""
        loop: Loop = self._dien_fast.details
        given = [*args, *(kwargs.get(name) for name in loop.arguments[len(args) :])]
        cell = getattr(self, loop.attribute)
        x, att, h0 = given if len(given) == 3 else (None, None, None)
        if (
            not isinstance(x, PackedSequence)
            or not isinstance(att, PackedSequence)
            or not _replaces_loop(x.data)
            or not kwargs.keys() <= set(loop.arguments[len(args) :])
            or not runs_as_found(cell, loop)
        ):
            return super().forward(*args, **kwargs)
        rows, batch_sizes, sorted_indices, unsorted_indices = x
        if h0 is not None:
            h0 = h0[: int(batch_sizes[0])]
        states, last = attention_gru(
            rows,
            att.data.reshape(-1),
            *loop.rule.rows(LAYOUTS[loop.layout].stacked(cell)),
            h0,
            batch_sizes=batch_sizes,
            cell=loop.rule.cell,
        )
        assert states is not None
        packed = PackedSequence(states, batch_sizes, sorted_indices, unsorted_indices)
        return (packed, last[unsorted_indices]) if loop.returns_last else packed


def runs_as_found(cell: nn.Module, loop: Loop) -> bool:
    """Whether a cell is still the one that was compared with the rules, without hooks or another forward."""
    return type(cell) is loop.cell_type and not is_altered(cell, *cell.children())


def packed_loop(module: nn.Module, attribute: str, returns_last: bool = False) -> Recipe:
    """Find out what a loop over packed batches computes, and how to replace it by one operator.

    Args:
        module: the loop.
        attribute: name of its cell.
        returns_last: whether its forward returns the last states too.

    Returns:
        The recipe of the loop's fast class.

    Raises:
        RefusedError: if the operator does not compute what the loop does.
    """
    cell = getattr(module, attribute, None)
    if not isinstance(cell, nn.Module):
        raise RefusedError(f"it must have its cell in {attribute}, found {sorted(dict(module.named_children()))}")
    if "forward" in module.__dict__:
        raise RefusedError("its forward was replaced on the instance")
    if is_altered(cell, *cell.modules()):
        raise RefusedError(
            f"its cell {type(cell).__name__} has hooks or a forward of its own, which would no longer run"
        )
    others = [name for name, _ in module.named_children() if name != attribute]
    if others or any(True for _ in module.parameters(recurse=False)):
        raise RefusedError(
            f"it must have nothing but its cell {attribute}, found {', '.join(others) or 'parameters'} too"
        )
    names = [str(name) for name in inspect.signature(type(module).forward).parameters][1:]
    if len(names) != 3:
        raise RefusedError(f"its forward must take x, attention and initial states, it takes {', '.join(names)}")
    rule = rule_of(cell)
    layout = layout_of(cell)
    assert layout is not None
    loop = Loop(attribute, type(cell), layout, rule, (names[0], names[1], names[2]), returns_last)
    recipe = Recipe(PackedLoop, type(module), loop)
    weight_ih, weight_hh, *_ = LAYOUTS[layout].stacked(cell)
    check_same(module, recipe, packed_inputs(weight_ih.size(1), weight_hh.size(1)), tolerance=1e-10)
    return recipe


class PackedGRU(Accelerated):
    """An nn.GRU of one layer over a packed batch as one operator; torch's own forward for any other input."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor
    bias: bool

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        """Arguments and results as nn.GRU's."""
        if not isinstance(input, PackedSequence) or not takes_kernel(input.data):
            return super().forward(input, hx)
        rows, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None:
            hx = hx[0] if sorted_indices is None else hx[0][sorted_indices]
        states, last = attention_gru(rows, None, *Weights.of_gru(self), hx, batch_sizes=batch_sizes, cell="gru")
        assert states is not None
        if unsorted_indices is not None:
            last = last[unsorted_indices]
        return PackedSequence(states, batch_sizes, sorted_indices, unsorted_indices), last.unsqueeze(0)


def packed_gru(module: nn.Module) -> Recipe:
    """Return the recipe of the fast class of an nn.GRU.

    Raises:
        RefusedError: if the kernel does not compute it: more layers or directions, a projection, another class.
    """
    if type(module) is not nn.GRU:
        raise RefusedError(f"it must be a torch.nn.GRU, got {type(module).__name__}")
    if module.num_layers != 1 or module.bidirectional or module.proj_size:
        raise RefusedError(
            f"an nn.GRU must have one layer and one direction, got {module.num_layers} layers, "
            f"bidirectional={module.bidirectional}, proj_size={module.proj_size}"
        )
    if "forward" in module.__dict__:
        raise RefusedError("its forward was replaced on the instance")
    return Recipe(PackedGRU, nn.GRU, None)
