"""Cell weights from one library's layout to another's, and from the official TensorFlow code."""

import copies
import numpy as np
import pytest
import torch
from torch import nn

from dien_fast import AttentionGRUCell, AttentionUpdateGateGRUCell, DynamicGRU, accelerate
from dien_fast.functional import attention_gru
from dien_fast.patches.weights import read_cell, read_tensorflow, write_cell, write_tensorflow

I, H, B, T = 3, 4, 5, 6  # noqa: E741
pytestmark = pytest.mark.usefixtures("_float64")


class Linears(nn.Module):
    """Weights in two layers, gates (u | r | n)."""

    def __init__(self, bias=True):
        super().__init__()
        self.x2h = nn.Linear(I, 3 * H, bias=bias)
        self.h2h = nn.Linear(H, 3 * H, bias=bias)

    def forward(self, x, h, attn):
        i_u, i_r, i_n = self.x2h(x).chunk(3, 1)
        h_u, h_r, h_n = self.h2h(h).chunk(3, 1)
        n = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
        return h + attn.unsqueeze(-1) * torch.sigmoid(i_u + h_u) * (n - h)


class Columns(nn.Module):
    """Weights that multiply from the right, one set of biases outside the product with r."""

    def __init__(self):
        super().__init__()
        for gate in "urh":
            setattr(self, f"W{gate}", nn.Parameter(torch.randn(I, H)))
            setattr(self, f"U{gate}", nn.Parameter(torch.randn(H, H)))
            setattr(self, f"b{gate}", nn.Parameter(torch.randn(1, H)))

    def forward(self, x, h, a):
        u = torch.sigmoid(x @ self.Wu + h @ self.Uu + self.bu)
        r = torch.sigmoid(x @ self.Wr + h @ self.Ur + self.br)
        n = torch.tanh(x @ self.Wh + r * (h @ self.Uh) + self.bh)
        return (1 - a * u) * h + a * u * n


class Tied(copies.SecondListing):
    """One Parameter is both biases."""

    def __init__(self):
        super().__init__(I, H)
        self.bias_ih = self.bias_hh


CELLS = {
    "dien_fast": lambda: AttentionUpdateGateGRUCell(I, H),
    "rows, u r n": lambda: copies.AttentionUpdateGateGRUCell(I, H),
    "rows, r u n": lambda: copies.SecondListing(I, H),
    "without bias": lambda: copies.SecondListing(I, H, bias=False),
    "tied": Tied,
    "linears": Linears,
    "columns": Columns,
}
# Which cells can hold the weights of which: a bias inside the product with r needs a place of its own.
ALL = list(CELLS)
FITS = {name: [*ALL[:3], "linears"] for name in ("dien_fast", "rows, u r n", "rows, r u n", "linears")}
FITS |= {"without bias": ALL, "tied": [*ALL[:3], "tied", "linears"], "columns": [*ALL[:3], "linears", "columns"]}


def step(cell, x, h, a):
    return cell(x, h, a.unsqueeze(1) if isinstance(cell, Columns) else a)


@pytest.mark.parametrize("source", CELLS)
def test_from_any_to_any(source):
    theirs = CELLS[source]()
    weights = read_cell(theirs)
    for target, cell in CELLS.items():
        ours = cell()
        if target not in FITS[source]:
            with pytest.raises(ValueError, match="bias"):
                write_cell(weights, ours)
            continue
        write_cell(weights, ours)
        x, h, a = torch.randn(B, I), torch.randn(B, H), torch.randn(B)
        torch.testing.assert_close(step(ours, x, h, a), step(theirs, x, h, a), rtol=1e-12, atol=1e-12, msg=target)


def test_what_is_read_runs():
    loop = DynamicGRU(I, H, gru_type="AUGRU")
    weights = read_cell(loop)
    x, a = torch.randn(B, I), torch.randn(B)
    offsets = torch.arange(B + 1)
    _, last = attention_gru(x, a, *weights.tensors(), offsets=offsets, cell=weights.cell, reset=weights.reset)
    torch.testing.assert_close(last, loop.rnn(x, torch.zeros(B, H), a), rtol=1e-12, atol=1e-12)
    assert all(value.data_ptr() != loop.rnn.weight_ih.data_ptr() for value in weights.tensors())


@pytest.mark.parametrize("cell", [copies.AttentionGRUCell, copies.SpareGate])
def test_agru(cell):
    theirs, ours = cell(I, H), AttentionGRUCell(I, H)
    write_cell(read_cell(theirs), ours)
    x, h, a = torch.randn(B, I), torch.randn(B, H), torch.randn(B)
    torch.testing.assert_close(ours(x, h, a), theirs(x, h, a), rtol=1e-12, atol=1e-12)
    back = cell(I, H)
    spare = back.weight_ih[H : 2 * H].clone()
    write_cell(read_cell(ours), back)
    torch.testing.assert_close(back(x, h, a), theirs(x, h, a), rtol=1e-12, atol=1e-12)
    if cell is copies.SpareGate:
        assert torch.equal(back.weight_ih[H : 2 * H], spare)


def test_an_accelerated_loop():
    loop = copies.DynamicGRU(I, H, cell=copies.SecondListing)
    want = read_cell(loop)
    accelerate(loop)
    for ours, theirs in zip(read_cell(loop).tensors(), want.tensors(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: copies.Inverted(I, H), "it computes augru_inverted with it after"),
        (lambda: copies.AttentionGRUCell(I, H), "it computes agru"),
        (lambda: copies.AttentionUpdateGateGRUCell(I + 1, H), r"weight_ih must have shape \(12, 4\)"),
        (lambda: copies.Squared(I, H), "none agrees"),
        (lambda: nn.Linear(I, H), "must be a GRU cell with attention or hold one in"),
    ],
)
def test_refuses(target, message):
    with pytest.raises(ValueError, match=message):
        write_cell(read_cell(AttentionUpdateGateGRUCell(I, H)), target())


def official(rng, scope=""):
    """Return variables as the official code saves them."""
    return {
        f"{scope}gates/kernel": rng.normal(size=(I + H, 2 * H)),
        f"{scope}gates/bias": rng.normal(size=2 * H),
        f"{scope}candidate/kernel": rng.normal(size=(I + H, H)),
        f"{scope}candidate/bias": rng.normal(size=H),
        "other/kernel": rng.normal(size=(2, 2)),
    }


def official_step(arrays, x, h, a, update_gate):
    """One step in the official code's words."""
    gates = 1 / (1 + np.exp(-(np.concatenate([x, h], 1) @ arrays["gates/kernel"] + arrays["gates/bias"])))
    r, u = np.split(gates, 2, axis=1)
    c = np.tanh(np.concatenate([x, r * h], 1) @ arrays["candidate/kernel"] + arrays["candidate/bias"])
    if update_gate:
        u = (1 - a) * u
        return u * h + (1 - u) * c
    return (1 - a) * h + a * c


@pytest.mark.parametrize("cell", ["augru_official", "agru"])
def test_tensorflow(cell, tmp_path):
    rng = np.random.default_rng(0)
    arrays = official(rng)
    x, a = rng.normal(size=(T, B, I)), rng.random(size=(T, B, 1))
    h = np.zeros((B, H))
    for t in range(T):
        h = official_step(arrays, x[t], h, a[t], cell == "augru_official")
    np.savez(tmp_path / "cell.npz", **arrays)
    for given in (arrays, tmp_path / "cell.npz", str(tmp_path / "cell.npz")):
        weights = read_tensorflow(given, cell)
        assert (weights.cell, weights.reset) == (cell, "before")
        _, last = attention_gru(
            torch.tensor(x).transpose(0, 1),
            torch.tensor(a).squeeze(2).t(),
            *weights.tensors(),
            lengths=torch.full((B,), T),
            cell=weights.cell,
            reset=weights.reset,
        )
        np.testing.assert_allclose(last, h, rtol=1e-12, atol=1e-12)
    back = write_tensorflow(weights)
    read = read_tensorflow(back, cell)
    for ours, theirs in zip(read.tensors(), weights.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    if cell == "augru_official":
        assert all(np.array_equal(back[name], arrays[name]) for name in back)
    else:
        assert (back["gates/bias"][H:] == 1).all()


def test_tensorflow_scopes():
    rng = np.random.default_rng(0)
    arrays = {f"{name}:0": value for name, value in official(rng, "rnn_2/gru2/vec_att_gru_cell/").items()}
    assert read_tensorflow(arrays).weight_ih.shape == (3 * H, I)


def test_tensorflow_refuses():
    rng = np.random.default_rng(0)
    arrays = official(rng)
    with pytest.raises(ValueError, match="cell must be 'augru_official' or 'agru', got 'augru'"):
        read_tensorflow(arrays, "augru")
    with pytest.raises(ValueError, match="must hold one gates/bias, found"):
        read_tensorflow({name: value for name, value in arrays.items() if name != "gates/bias"})
    with pytest.raises(ValueError, match="must hold one gates/kernel, found"):
        read_tensorflow(arrays | official(rng, "second/"))
    with pytest.raises(ValueError, match=r"gates/bias must have shape \(8,\), got \(4,\)"):
        read_tensorflow(arrays | {"gates/bias": np.zeros(4)})
    with pytest.raises(ValueError, match="reset='before', got augru"):
        write_tensorflow(read_cell(AttentionUpdateGateGRUCell(I, H)))
