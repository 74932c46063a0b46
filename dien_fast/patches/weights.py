"""Carries a trained cell from one library to another, and from the official TensorFlow code.

:func:`read_cell` and :func:`read_tensorflow` return :class:`CellWeights`, whose tensors are the arguments of
:func:`dien_fast.functional.attention_gru`; :func:`write_cell` and :func:`write_tensorflow` take them. A cell
only takes weights of its own rule, because no change of the weights turns one rule of AUGRU into another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dien_fast.patches.cells import LAYOUTS, CellRule, layout_of
from dien_fast.patches.probe import RefusedError, rule_of

_CELL_NAMES = ("rnn", "gru_cell", "augru_cell")


class CellWeights(NamedTuple):
    """The weights of a cell with the gates in the order of :mod:`dien_fast.functional`, and its rule.

    Attributes:
        cell: ``"augru"``, ``"augru_official"``, ``"augru_inverted"`` or ``"agru"``.
        reset: ``"after"`` or ``"before"``.
        weight_ih: ``[G * H, I]``.
        weight_hh: ``[G * H, H]``.
        bias_ih: ``[G * H]``.
        bias_hh: ``[G * H]``.

    Example:
        >>> from dien_fast import DynamicGRU
        >>> from dien_fast.functional import attention_gru
        >>> weights = read_cell(DynamicGRU(3, 4, gru_type="AUGRU"))
        >>> x, att, lengths = torch.randn(2, 5, 3), torch.rand(2, 5), torch.tensor([5, 2])
        >>> _, last = attention_gru(x, att, *weights.tensors(), lengths=lengths, cell=weights.cell)
    """

    cell: str
    reset: str
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four weights."""
        return self[2:]


def read_cell(module: nn.Module) -> CellWeights:
    """Read the weights of a cell, or of the loop that holds one, of any supported library or of this package.

    Args:
        module: the cell or its loop. Running a copy of the cell shows which rule it computes.

    Returns:
        Copies of its weights; a bias that the cell does not have is zero.

    Raises:
        ValueError: if ``module`` neither is a cell with attention nor holds one.
    """
    cell, rule = _found(module)
    with torch.no_grad():
        weights = rule.rows(LAYOUTS[str(layout_of(cell))].stacked(cell))
        weight_ih, weight_hh, *biases = (None if value is None else value.clone() for value in weights)
        assert weight_ih is not None
        assert weight_hh is not None
        bias_ih, bias_hh = (weight_hh.new_zeros(weight_hh.size(0)) if bias is None else bias for bias in biases)
    return CellWeights(rule.cell, rule.reset, weight_ih, weight_hh, bias_ih, bias_hh)


def write_cell(weights: CellWeights, module: nn.Module) -> None:
    """Write weights into a cell, or the loop that holds one, in its own order of gates.

    Rows of the cell's weights that no gate uses stay as they are.

    Args:
        weights: what :func:`read_cell` or :func:`read_tensorflow` returned.
        module: the cell or its loop, with the rule and sizes of the weights.

    Raises:
        ValueError: if the cell has another rule or size, or has no place for biases such as these.
    """
    cell, rule = _found(module)
    if (rule.cell, rule.reset) != (weights.cell, weights.reset):
        raise ValueError(
            f"module must compute {weights.cell} with the reset gate {weights.reset} the product, as the weights "
            f"do, it computes {rule.cell} with it {rule.reset}"
        )
    name = str(layout_of(cell))
    with torch.no_grad():
        held = LAYOUTS[name].stacked(cell)
        for what, theirs, ours in zip(("weight_ih", "weight_hh"), held, weights.tensors(), strict=False):
            assert theirs is not None
            wanted = theirs.size(0) // rule.blocks * len(rule.take), theirs.size(1)
            if tuple(ours.shape) != wanted:
                raise ValueError(f"{what} must have shape {wanted} for this module, got {tuple(ours.shape)}")
        bias_ih, bias_hh = _held_biases(cell, name, weights)
        if name == "columns":
            _write_columns(cell, weights, bias_ih)
        else:
            for theirs, ours in zip(held, (weights.weight_ih, weights.weight_hh, bias_ih, bias_hh), strict=True):
                if theirs is not None:
                    _write_rows(theirs, ours, rule)


def _found(module: nn.Module) -> tuple[nn.Module, CellRule]:
    cell: Any = module
    for name in _CELL_NAMES:
        if layout_of(cell) is None and isinstance(getattr(module, name, None), nn.Module):
            cell = getattr(module, name)
    try:
        return cell, rule_of(cell)
    except RefusedError as why:
        raise ValueError(f"module must be a GRU cell with attention or hold one in {_CELL_NAMES}: {why}") from why


def _held_biases(cell: Any, layout: str, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """Return the two biases in the form that a cell has: none, one, one tensor that is both, or two."""
    bias_ih, bias_hh = weights.bias_ih.clone(), weights.bias_hh.clone()
    hidden = weights.weight_hh.size(1)
    stacked = LAYOUTS[layout].stacked(cell)
    if stacked[2] is None and stacked[3] is None:
        if bool(bias_ih.any()) or bool(bias_hh.any()):
            raise ValueError("module has no biases, and those of the weights are not zero")
    elif stacked[3] is None:
        # Only for the gate n does it matter which of the two a number is in: bias_hh is multiplied by r there.
        if bool(bias_hh[-hidden:].any()):
            raise ValueError("module has one set of biases, and bias_hh of the gate n is not zero")
        bias_ih += bias_hh
        bias_hh.zero_()
    elif stacked[2] is stacked[3]:
        if not torch.equal(bias_ih[-hidden:], bias_hh[-hidden:]):
            raise ValueError("module has one set of biases for both, and those of the gate n differ")
        mean = (bias_ih + bias_hh) / 2
        mean[-hidden:] = bias_ih[-hidden:]
        bias_ih, bias_hh = mean, mean
    return bias_ih, bias_hh


def _write_rows(theirs: Tensor, ours: Tensor, rule: CellRule) -> None:
    blocks = theirs.chunk(rule.blocks)
    for block, gate in zip(rule.take, ours.chunk(len(rule.take)), strict=True):
        blocks[block].copy_(gate)


def _write_columns(cell: Any, weights: CellWeights, bias: Tensor) -> None:
    parts = zip("urh", weights.weight_ih.chunk(3), weights.weight_hh.chunk(3), bias.chunk(3), strict=True)
    for gate, weight_ih, weight_hh, shift in parts:
        getattr(cell, f"W{gate}").copy_(weight_ih.t())
        getattr(cell, f"U{gate}").copy_(weight_hh.t())
        getattr(cell, f"b{gate}").copy_(shift.unsqueeze(0))


# The variables of a cell of the official TensorFlow code.
_ARRAYS = ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias")


def read_tensorflow(
    arrays: Mapping[str, np.ndarray[Any, Any]] | str | Path, cell: str = "augru_official"
) -> CellWeights:
    """Read the weights of a cell of mouna99/dien (script/utils.py: VecAttGRUCell, QAAttGRUCell).

    Args:
        arrays: by variable name, or an .npz file of them: ``gates/kernel`` ``[I + H, 2H]`` with columns (r | u),
            ``gates/bias`` ``[2H]``, ``candidate/kernel`` ``[I + H, H]``, ``candidate/bias`` ``[H]``. Scopes before
            the names and ``:0`` after them are ignored.
        cell: ``"augru_official"`` for VecAttGRUCell, ``"agru"`` for QAAttGRUCell.

    Returns:
        The weights, with ``reset="before"``.

    Raises:
        ValueError: if ``cell`` is another, a name is missing or there twice, or a shape is wrong.
    """
    if cell not in ("augru_official", "agru"):
        raise ValueError(f"cell must be 'augru_official' or 'agru', got {cell!r}")
    if isinstance(arrays, (str, Path)):
        with np.load(arrays) as stored:
            arrays = dict(stored)
    gates, gates_bias, candidate, candidate_bias = (_array(arrays, name) for name in _ARRAYS)
    hidden = candidate_bias.numel()
    inputs = candidate.size(0) - hidden
    shapes = ((inputs + hidden, 2 * hidden), (2 * hidden,), (inputs + hidden, hidden), (hidden,))
    for name, value, shape in zip(_ARRAYS, (gates, gates_bias, candidate, candidate_bias), shapes, strict=True):
        if tuple(value.shape) != shape or inputs < 0:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    r, u = gates.chunk(2, dim=1)
    r_bias, u_bias = gates_bias.chunk(2)
    order = ([] if cell == "agru" else [(u, u_bias)]) + [(r, r_bias), (candidate, candidate_bias)]
    kernel = torch.cat([value for value, _ in order], dim=1).t()
    bias = torch.cat([shift for _, shift in order])
    weight_ih, weight_hh = kernel[:, :inputs].contiguous(), kernel[:, inputs:].contiguous()
    return CellWeights(cell, "before", weight_ih, weight_hh, bias, torch.zeros_like(bias))


def write_tensorflow(weights: CellWeights) -> dict[str, np.ndarray[Any, Any]]:
    """Return weights in the form that :func:`read_tensorflow` takes; ``numpy.savez`` stores them.

    QAAttGRUCell has a gate u that it does not use; that gate gets its initial values, a zero kernel and bias 1.

    Raises:
        ValueError: unless the weights are of ``"augru_official"`` or ``"agru"`` with ``reset="before"``.
    """
    if weights.cell not in ("augru_official", "agru") or weights.reset != "before":
        raise ValueError(
            f"weights must be of augru_official or agru with reset='before', "
            f"got {weights.cell} with reset={weights.reset!r}"
        )
    kernel = torch.cat([weights.weight_ih, weights.weight_hh], dim=1).detach().cpu().t()
    bias = (weights.bias_ih + weights.bias_hh).detach().cpu()
    *first, candidate = kernel.split(weights.weight_hh.size(1), dim=1)
    *first_bias, candidate_bias = bias.split(weights.weight_hh.size(1))
    r, r_bias = first[-1], first_bias[-1]
    u, u_bias = (torch.zeros_like(r), torch.ones_like(r_bias)) if len(first) == 1 else (first[0], first_bias[0])
    values = (torch.cat([r, u], dim=1), torch.cat([r_bias, u_bias]), candidate, candidate_bias)
    return {name: value.contiguous().numpy() for name, value in zip(_ARRAYS, values, strict=True)}


def _array(arrays: Mapping[str, np.ndarray[Any, Any]], name: str) -> Tensor:
    found = [key for key in arrays if f"/{key.removesuffix(':0')}".endswith(f"/{name}")]
    if len(found) != 1:
        raise ValueError(f"arrays must hold one {name}, found {found or sorted(arrays)}")
    return torch.as_tensor(np.asarray(arrays[found[0]]))
