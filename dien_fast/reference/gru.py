"""The recurrences in plain PyTorch: the two cells, their loop over a packed batch, and the general loop."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class AttentionGRUCell(nn.Module):
    """One AGRU step: attention takes the place of the update gate (equation 7).

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether the two bias vectors exist.

    Parameters ``weight_ih`` ``[2H, I]`` and ``weight_hh`` ``[2H, H]`` hold the gates in the order (r | n).
    """

    gates: ClassVar[int] = 2

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = self.gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        if bias:
            self.bias_ih = nn.Parameter(torch.empty(rows))
            self.bias_hh = nn.Parameter(torch.empty(rows))
        else:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter uniformly from ``[-1 / sqrt(H), 1 / sqrt(H)]``."""
        stdv = 1.0 / self.hidden_size**0.5
        for weight in self.parameters():
            nn.init.uniform_(weight, -stdv, stdv)

    def forward(self, x: Tensor, hx: Tensor, att_score: Tensor) -> Tensor:
        """Step from ``hx`` ``[B, H]`` on ``x`` ``[B, I]`` and ``att_score`` ``[B]``; ``[B, H]`` out."""
        i_r, i_n = F.linear(x, self.weight_ih, self.bias_ih).chunk(2, 1)
        h_r, h_n = F.linear(hx, self.weight_hh, self.bias_hh).chunk(2, 1)
        r = torch.sigmoid(i_r + h_r)
        n = torch.tanh(i_n + r * h_n)
        a = att_score.view(-1, 1)
        return (1 - a) * hx + a * n


class AttentionUpdateGateGRUCell(AttentionGRUCell):
    """One AUGRU step: attention scales the update gate (equations 8 and 9).

    Arguments as :class:`AttentionGRUCell`; the gates are in the order (u | r | n), so ``weight_ih`` is
    ``[3H, I]`` and ``weight_hh`` ``[3H, H]``.
    """

    gates: ClassVar[int] = 3

    def forward(self, x: Tensor, hx: Tensor, att_score: Tensor) -> Tensor:
        """Step from ``hx`` ``[B, H]`` on ``x`` ``[B, I]`` and ``att_score`` ``[B]``; ``[B, H]`` out."""
        i_u, i_r, i_n = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, 1)
        h_u, h_r, h_n = F.linear(hx, self.weight_hh, self.bias_hh).chunk(3, 1)
        u = torch.sigmoid(i_u + h_u)
        r = torch.sigmoid(i_r + h_r)
        n = torch.tanh(i_n + r * h_n)
        z = att_score.view(-1, 1) * u
        return (1 - z) * hx + z * n


class DynamicGRU(nn.Module):
    """AGRU or AUGRU over a packed batch, as a Python loop over time steps.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether the cell has bias vectors.
        gru_type: ``"AGRU"`` or ``"AUGRU"``.

    Raises:
        NotImplementedError: for any other ``gru_type``.
    """

    cells: ClassVar[dict[str, type[AttentionGRUCell]]] = {
        "AGRU": AttentionGRUCell,
        "AUGRU": AttentionUpdateGateGRUCell,
    }

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, gru_type: str = "AGRU") -> None:
        super().__init__()
        if gru_type not in self.cells:
            raise NotImplementedError(f"gru_type must be one of {sorted(self.cells)}, got {gru_type!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.gru_type = gru_type
        self.rnn = self.cells[gru_type](input_size, hidden_size, bias)

    def forward(self, x: PackedSequence, att_scores: PackedSequence, hx: Tensor | None = None) -> PackedSequence:
        """Return the states of every step.

        Args:
            x: packed ``[N, I]``.
            att_scores: packed ``[N]``, with the lengths of ``x``.
            hx: initial state ``[B, H]`` in the packed (sorted) order, zeros if None.

        Returns:
            The states, packed ``[N, H]``.
        """
        rows, batch_sizes, sorted_indices, unsorted_indices = check_packed(x, att_scores)
        h = rows.new_zeros(int(batch_sizes[0]), self.hidden_size) if hx is None else hx
        states = []
        begin = 0
        sizes: list[int] = batch_sizes.tolist()
        for size in sizes:
            step = slice(begin, begin + size)
            h = self.rnn(rows[step], h[:size], att_scores.data[step])
            states.append(h)
            begin += size
        return PackedSequence(torch.cat(states), batch_sizes, sorted_indices, unsorted_indices)


def check_packed(x: PackedSequence, att_scores: PackedSequence) -> PackedSequence:
    """Return ``x`` if both arguments are packed alike, else raise NotImplementedError or ValueError."""
    for name, value in (("x", x), ("att_scores", att_scores)):
        if not isinstance(value, PackedSequence):
            raise NotImplementedError(f"{name} must be a PackedSequence, got {type(value).__name__}")
    if att_scores.data.shape[:1] != x.data.shape[:1]:
        raise ValueError(
            f"att_scores must have {x.data.size(0)} packed rows as x has, got {att_scores.data.size(0)}"
        )
    if torch.compiler.is_compiling():
        same = (att_scores.batch_sizes == x.batch_sizes).all()
        torch._assert_async(same, "att_scores must be packed with the lengths of x")
    elif not torch.equal(att_scores.batch_sizes, x.batch_sizes):
        wanted: list[int] = x.batch_sizes.tolist()
        got: list[int] = att_scores.batch_sizes.tolist()
        raise ValueError(
            f"att_scores must be packed with the lengths of x, {wanted[:8]} ... histories a step, "
            f"got {got[:8]} ..."
        )
    return x


# The functions below are TorchScript: their annotations are evaluated, and they use its subset of Python.


def replaced_share(cell: str, u: Tensor, a: Tensor) -> Tensor:
    """Return z = alpha + beta * u, the share of the state that a step replaces, ``[B, H]``."""
    if cell == "augru":
        return a * u
    if cell == "augru_official":
        return 1 - (1 - a) * u
    if cell == "augru_inverted":
        return 1 - a * u
    if cell == "agru":
        return a.expand_as(u)
    if cell == "gru":
        return 1 - u
    raise ValueError("cell must have a rule for the replaced share, got " + cell)


def attention_gru(
    x: Tensor,
    att: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    batch_sizes: list[int],
    cell: str,
    reset_before: bool,
) -> tuple[Tensor, Tensor]:
    """Run any of the five cells over packed rows; arguments are not checked.

    Args:
        x: inputs ``[N, I]`` in packed order.
        att: attention ``[N]`` in packed order; unused by ``"gru"``.
        weight_ih: ``[G * H, I]``; the order of the gates is in :mod:`dien_fast.functional`.
        weight_hh: ``[G * H, H]``.
        bias_ih: ``[G * H]`` or None.
        bias_hh: ``[G * H]`` or None.
        h0: initial states ``[B, H]``, longest history first; histories without a step come last.
        batch_sizes: number of histories that have a step t, for each t.
        cell: name of the rule for z.
        reset_before: whether the reset gate acts before the recurrent product instead of after it.

    Returns:
        States ``[N, H]`` in packed order and last states ``[B, H]`` in the order of ``h0``.
    """
    hidden = h0.size(1)
    gates_x = F.linear(x, weight_ih, bias_ih)
    h = h0
    states: list[Tensor] = []
    finished: list[Tensor] = []
    begin = 0
    for size in batch_sizes:
        finished.append(h[size:])
        h = h[:size]
        gi = gates_x[begin : begin + size]
        a = att[begin : begin + size].unsqueeze(1)
        begin += size
        if reset_before:
            gh = F.linear(h, weight_hh[:-hidden], None if bias_hh is None else bias_hh[:-hidden])
        else:
            gh = F.linear(h, weight_hh, bias_hh)
        r = torch.sigmoid(gi[:, :hidden] + gh[:, :hidden])
        u = r  # of two gates none is u, and the rule does not read it
        if weight_hh.size(0) > 2 * hidden:
            second = torch.sigmoid(gi[:, hidden : 2 * hidden] + gh[:, hidden : 2 * hidden])
            u, r = (second, r) if cell == "gru" else (r, second)
        z = replaced_share(cell, u, a)
        if reset_before:
            n_h = F.linear(r * h, weight_hh[-hidden:], None if bias_hh is None else bias_hh[-hidden:])
        else:
            n_h = r * gh[:, -hidden:]
        n = torch.tanh(gi[:, -hidden:] + n_h)
        h = h + z * (n - h)
        states.append(h)
    finished.append(h)
    finished.reverse()
    return (torch.cat(states) if len(states) > 0 else x.new_zeros((0, hidden))), torch.cat(finished)
