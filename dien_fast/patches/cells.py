"""Where the cells of other libraries have their weights, and how the kernel's rows are taken from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dien_fast.nn.native_layers import is_watched
from dien_fast.ops.cells import ORDERS

Stacked = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""weight_ih ``[G * H, I]``, weight_hh ``[G * H, H]``, bias_ih, bias_hh ``[G * H]``: gates in the cell's order."""


class CellRule(NamedTuple):
    """What a cell computes.

    Attributes:
        cell: its name in :func:`dien_fast.functional.attention_gru`.
        take: for each gate, in the kernel's order, the index of its block of rows in the cell's weights. A block
            that no gate uses is left out.
        blocks: how many blocks the cell's weights have.
        reset: ``"after"`` or ``"before"``: whether the reset gate acts after or before the product with the state.
    """

    cell: str
    take: tuple[int, ...]
    blocks: int
    reset: str = "after"

    def __str__(self) -> str:
        order = ["-"] * self.blocks
        for gate, block in zip(ORDERS[self.cell], self.take, strict=True):
            order[block] = gate
        return f"{self.cell}, reset {self.reset} the product, gates ({' | '.join(order)})"

    def rows(self, weights: Stacked) -> Stacked:
        """Return a cell's weights with the gates that the kernel uses, in the kernel's order."""
        if self.take == tuple(range(self.blocks)):
            return weights
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        return (
            self._taken(weight_ih),
            self._taken(weight_hh),
            None if bias_ih is None else self._taken(bias_ih),
            None if bias_hh is None else self._taken(bias_hh),
        )

    def _taken(self, value: Tensor) -> Tensor:
        blocks = value.chunk(self.blocks)
        return torch.cat([blocks[block] for block in self.take])


class CellLayout(NamedTuple):
    """Where a cell has its weights and how it is called.

    Attributes:
        attributes: names of the parameters and layers of such a cell; it has no others.
        stacked: reads the weights.
        step: calls a cell's own forward with x ``[B, I]``, h ``[B, H]`` and attention ``[B]``.
    """

    attributes: tuple[str, ...]
    stacked: Callable[[Any], Stacked]
    step: Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def _from_rows(cell: Any) -> Stacked:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def _from_linears(cell: Any) -> Stacked:
    return cell.x2h.weight, cell.h2h.weight, cell.x2h.bias, cell.h2h.bias


def _from_columns(cell: Any) -> Stacked:
    # Weights multiply from the right. The one set of biases is added outside the product with r, as bias_ih is.
    return (
        torch.cat([cell.Wu.t(), cell.Wr.t(), cell.Wh.t()]),
        torch.cat([cell.Uu.t(), cell.Ur.t(), cell.Uh.t()]),
        torch.cat([cell.bu, cell.br, cell.bh], dim=1).flatten(),
        None,
    )


def _plain_step(cell: Any, x: Tensor, h: Tensor, att: Tensor) -> Tensor:
    out: Tensor = cell.forward(x, h, att)
    return out


def _column_step(cell: Any, x: Tensor, h: Tensor, att: Tensor) -> Tensor:
    out: Tensor = cell.forward(x, h, att.unsqueeze(1))
    return out


ROWS = CellLayout(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), _from_rows, _plain_step)
LINEARS = CellLayout(("x2h", "h2h"), _from_linears, _plain_step)
COLUMNS = CellLayout(("Wu", "Uu", "bu", "Wr", "Ur", "br", "Wh", "Uh", "bh"), _from_columns, _column_step)
LAYOUTS = {"rows": ROWS, "linears": LINEARS, "columns": COLUMNS}


def layout_of(cell: nn.Module) -> str | None:
    """Return the name of the layout that a cell's parameters and layers have, or None for an unknown one."""
    held = {name for name, _ in cell.named_parameters(recurse=False)} | {name for name, _ in cell.named_children()}
    held |= {name for name in ("bias_ih", "bias_hh") if name in cell._parameters}
    for name, layout in LAYOUTS.items():
        if held != set(layout.attributes):
            continue
        if name == "linears" and any(type(child) is not nn.Linear for child in cell.children()):
            continue
        return name
    return None


def is_altered(*modules: nn.Module) -> bool:
    """Whether one of the modules has a hook, or a forward that is not its class's."""
    return is_watched(*modules) or any("forward" in module.__dict__ for module in modules)
