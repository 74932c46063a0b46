"""The cells by name, and the tensors of a call of the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dien_fast.ops.layouts import check_shape

# The order in which each cell has the blocks of rows of its gates: u update, r reset, n candidate. A cell's place
# is the number by which the operator knows it, so a new one goes to the end; csrc/cells.h has the same table.
ORDERS = {"augru": "urn", "augru_official": "urn", "augru_inverted": "urn", "agru": "rn", "gru": "run"}

CELLS = {cell: number for number, cell in enumerate(ORDERS)}
GATES = {cell: len(order) for cell, order in ORDERS.items()}


class Weights(NamedTuple):
    """The weights of a cell of G gates, I inputs and H states; the order of the gates is in functional.py."""

    weight_ih: Tensor  # [G * H, I]
    weight_hh: Tensor  # [G * H, H]
    bias_ih: Tensor | None  # [G * H]
    bias_hh: Tensor | None  # [G * H]

    @staticmethod
    def of_cell(cell: Any) -> Weights:
        """Return the weights of a module that has four parameters of these names."""
        return Weights(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)

    @staticmethod
    def of_gru(gru: Any) -> Weights:
        """Return the weights of the first layer of a torch.nn.GRU."""
        if gru.bias:
            return Weights(gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
        return Weights(gru.weight_ih_l0, gru.weight_hh_l0, None, None)


class Inputs(NamedTuple):
    """The tensors of a call that have gradients, in the operator's order; shapes are in functional.py."""

    x: Tensor
    att: Tensor | None
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    h0: Tensor | None

    def weights(self) -> Weights:
        """Return the four weights."""
        return Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def converted(self, convert: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs after ``convert`` of each that is given."""
        return Inputs._make(None if value is None else convert(value) for value in self)

    def require_gradient(self) -> bool:
        """Whether one of them requires a gradient."""
        for value in self:  # noqa: SIM110 - any() of a generator takes twice the time
            if value is not None and value.requires_grad:
                return True
        return False


def check_cell(cell: str, reset: str, weights: Weights) -> None:
    """Raise ValueError unless the names are known and the shapes of the weights fit the cell."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    if cell not in GATES:
        raise ValueError(f"cell must be one of {sorted(GATES)}, got {cell!r}")
    if reset not in ("after", "before"):
        raise ValueError(f"reset must be 'after' or 'before', got {reset!r}")
    check_shape("weight_hh", weight_hh, (None, None))
    rows, hidden = GATES[cell] * weight_hh.size(1), weight_hh.size(1)
    check_shape("weight_hh", weight_hh, (rows, hidden))
    if hidden == 0:
        raise ValueError(f"weight_hh must have at least one column, got shape {tuple(weight_hh.shape)}")
    check_shape("weight_ih", weight_ih, (rows, None))
    for name, value in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if value is not None:
            check_shape(name, value, (rows,))
