"""The recurrence against independent oracles: torch.nn.GRU, a numpy loop, a hand-computed step, gradcheck."""

import io
import warnings

import numpy as np
import pytest
import torch
from selection import slow_but_pairs
from torch import nn

from dien_fast.functional import attention_gru
from dien_fast.ops.cells import ORDERS
from dien_fast.reference.gru import attention_gru as packed_loop

CELLS = {"augru": "urn", "augru_official": "urn", "augru_inverted": "urn", "agru": "rn", "gru": "run"}
LAYOUTS = ["padded", "ragged", "packed"]
LENGTHS = [3, 0, 5, 1, 5]
B, T, I, H = len(LENGTHS), 5, 3, 4  # noqa: E741 (I is the input size everywhere in this project)
pytestmark = pytest.mark.usefixtures("_float64")


def problem(cell="augru", lengths=LENGTHS, steps=T, inputs=I, hidden=H):
    """Random arguments; attention lies inside and outside of [0, 1]."""
    rows, batch = len(CELLS[cell]) * hidden, len(lengths)
    return {
        "x": torch.randn(batch, steps, inputs),
        "att": torch.randn(batch, steps),
        "weight_ih": torch.randn(rows, inputs),
        "weight_hh": torch.randn(rows, hidden),
        "bias_ih": torch.randn(rows),
        "bias_hh": torch.randn(rows),
        "h0": torch.randn(batch, hidden),
    }


def run(layout, arguments, lengths=LENGTHS, **options):
    """Call attention_gru in a layout; return padded states ``[B, T, H]`` and last states, as the caller sorted."""
    arguments = dict(arguments)
    x, att = arguments.pop("x"), arguments.pop("att")
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    batch, steps = x.shape[:2]
    if layout == "padded":
        return attention_gru(x, att, **arguments, lengths=lengths, **options)
    order = torch.arange(batch)
    if layout == "ragged":
        where = [(b, t) for b in range(batch) for t in range(lengths[b])]
        sizes = {"offsets": torch.nn.functional.pad(lengths.cumsum(0), (1, 0))}
    else:
        order = lengths.argsort(descending=True, stable=True)
        where = [(b, t) for t in range(steps) for b in order.tolist() if t < lengths[b]]
        longest = int(lengths.max()) if batch else 0
        sizes = {
            "batch_sizes": torch.tensor([int((lengths > t).sum()) for t in range(longest)], dtype=torch.int64)
        }
        if arguments.get("h0") is not None:
            arguments["h0"] = arguments["h0"][order]
    index = tuple(torch.tensor(where, dtype=torch.int64).reshape(-1, 2).T)
    states, last = attention_gru(x[index], None if att is None else att[index], **arguments, **sizes, **options)
    padded = None
    if states is not None:
        padded = states.new_zeros(batch, steps, states.size(1)).index_put(index, states)
    # Without h0, a packed batch cannot hold histories without a step.
    return padded, last.new_zeros(batch, last.size(1)).index_copy(0, order[: len(last)], last)


def numpy_loop(cell, reset, x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths):
    """The equations of the paper and its variants, one history, one step, one gate at a time."""
    x, att, h0 = x.numpy(), att.numpy(), h0.numpy()
    hidden = h0.shape[1]
    gate = {name: slice(k * hidden, (k + 1) * hidden) for k, name in enumerate(CELLS[cell])}
    w, u_, b_i, b_h = (value.numpy() for value in (weight_ih, weight_hh, bias_ih, bias_hh))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    states, last = np.zeros((*x.shape[:2], hidden)), h0.copy()
    for b, length in enumerate(lengths):
        h = h0[b]
        for t in range(length):
            w_x = {g: w[rows] @ x[b, t] + b_i[rows] for g, rows in gate.items()}
            r = sigmoid(w_x["r"] + u_[gate["r"]] @ h + b_h[gate["r"]])
            if reset == "after":
                n = np.tanh(w_x["n"] + r * (u_[gate["n"]] @ h + b_h[gate["n"]]))
            else:
                n = np.tanh(w_x["n"] + u_[gate["n"]] @ (r * h) + b_h[gate["n"]])
            u = sigmoid(w_x["u"] + u_[gate["u"]] @ h + b_h[gate["u"]]) if "u" in gate else None
            a = att[b, t]
            if cell == "augru":
                h = (1 - a * u) * h + a * u * n
            elif cell == "augru_official":
                h = (1 - a) * u * h + (1 - (1 - a) * u) * n
            elif cell == "augru_inverted":
                h = a * u * h + (1 - a * u) * n
            elif cell == "agru":
                h = (1 - a) * h + a * n
            else:
                assert cell == "gru", f"no equation for {cell}"
                h = u * h + (1 - u) * n
            states[b, t] = last[b] = h
    return torch.from_numpy(states), torch.from_numpy(last)


def close(got, want, **tolerance):
    torch.testing.assert_close(got, want, **({"rtol": 1e-12, "atol": 1e-12} | tolerance))


def test_no_cell_is_forgotten():
    assert CELLS == ORDERS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_a_loop_over_the_equations(cell, reset, layout):
    arguments = problem(cell)
    states, last = run(layout, arguments, cell=cell, reset=reset)
    want_states, want_last = numpy_loop(cell, reset, **arguments, lengths=LENGTHS)
    close(states, want_states)
    close(last, want_last)


def gru_oracle(arguments, lengths):
    """torch.nn.GRU, one history at a time; weights in its own order."""
    gru = nn.GRU(I, H, batch_first=True)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{name}_l0").copy_(arguments[name])
    states, last = torch.zeros(B, T, H), arguments["h0"].clone()
    for b, length in enumerate(lengths):
        if length:
            out, h = gru(arguments["x"][b : b + 1, :length], arguments["h0"][None, b : b + 1].contiguous())
            states[b, :length], last[b] = out[0].detach(), h[0, 0].detach()
    return states, last


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_att", [True, False])
def test_gru_equals_torch(layout, with_att):
    arguments = problem("gru")
    want = gru_oracle(arguments, LENGTHS)
    if not with_att:
        arguments["att"] = None
    for got, expected in zip(run(layout, arguments, cell="gru"), want, strict=True):
        close(got, expected)


def test_augru_with_full_attention_equals_torch_gru():
    """Rows are in the order (r | u | n), u negated: torch's z is the share kept, ours the share replaced."""
    arguments = problem("augru")
    arguments["att"] = torch.ones(B, T)
    permuted = dict(arguments)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        u, r, n = arguments[name].chunk(3)
        permuted[name] = torch.cat([r, -u, n])
    for got, expected in zip(run("ragged", arguments), gru_oracle(permuted, LENGTHS), strict=True):
        close(got, expected)


@pytest.mark.parametrize("cell", ["augru", "agru"])
def test_no_attention_keeps_the_state(cell):
    arguments = problem(cell)
    arguments["att"] = torch.zeros(B, T)
    states, last = run("padded", arguments, cell=cell)
    assert torch.equal(last, arguments["h0"])
    assert torch.equal(states[2], arguments["h0"][2].expand(T, H))


def test_agru_with_full_attention_is_the_candidate_state():
    arguments = problem("agru", lengths=[1], steps=1)
    arguments["att"] = torch.ones(1, 1)
    h, x = arguments["h0"][0], arguments["x"][0, 0]
    gi = arguments["weight_ih"] @ x + arguments["bias_ih"]
    gh = arguments["weight_hh"] @ h + arguments["bias_hh"]
    close(
        run("padded", arguments, [1], cell="agru")[1][0], torch.tanh(gi[H:] + torch.sigmoid(gi + gh)[:H] * gh[H:])
    )


def test_one_step_by_hand():
    """All pre-activations of u and r are 0, so u = r = 1/2; n = tanh(1 + (2 * 2) / 2) = tanh(3)."""
    _, last = attention_gru(
        torch.tensor([[[1.0]]]),
        torch.tensor([[0.5]]),
        torch.tensor([[0.0], [0.0], [1.0]]),
        torch.tensor([[0.0], [0.0], [2.0]]),
        h0=torch.tensor([[2.0]]),
        lengths=torch.tensor([1]),
    )
    close(last, torch.tensor([[2.0 + 0.25 * (0.9950547536867305 - 2.0)]]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("lengths", "steps"), [([], 4), ([0, 0], 4), ([0, 0], 0), ([4], 4), ([0], 3), ([], 0)])
def test_degenerate_batches(layout, lengths, steps):
    arguments = problem(lengths=lengths, steps=steps)
    states, last = run(layout, arguments, lengths)
    want_states, want_last = numpy_loop("augru", "after", **arguments, lengths=lengths)
    close(states, want_states)
    close(last, want_last)
    without = run(layout, {**arguments, "h0": None}, lengths)[1]
    if sum(lengths) == 0:
        assert torch.equal(without, torch.zeros(len(lengths), H))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_state_and_biases_are_zero(layout):
    arguments = problem()
    nothing = {name: torch.zeros_like(arguments[name]) for name in ("bias_ih", "bias_hh", "h0")}
    got = run(layout, arguments | dict.fromkeys(nothing))
    for value, expected in zip(got, run(layout, arguments | nothing), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_are_returned_on_request(layout):
    arguments = problem()
    states, last = run(layout, arguments, return_states=False)
    assert states is None
    assert torch.equal(last, run(layout, arguments)[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("name", ["lengths", "offsets", "batch_sizes"])
def test_any_integer_dtype(name, dtype):
    arguments = problem(lengths=[2, 2])
    x, att = arguments.pop("x")[:, :2], arguments.pop("att")[:, :2]
    sizes = {"lengths": [2, 2], "offsets": [0, 2, 4], "batch_sizes": [2, 2]}[name]
    if name != "lengths":
        x, att = x.reshape(4, I), att.reshape(4)
    got, want = (
        attention_gru(x, att, **arguments, **{name: torch.tensor(sizes, dtype=kind)})
        for kind in (dtype, torch.int64)
    )
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_strided_views():
    arguments = problem()
    strided = {name: torch.stack([value, value], dim=-1)[..., 0] for name, value in arguments.items()}
    strided["x"] = arguments["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(value.is_contiguous() for value in strided.values())
    for layout in LAYOUTS:
        for got, want in zip(run(layout, strided), run(layout, arguments), strict=True):
            close(got, want)


def test_padding_is_never_read_and_gets_no_gradient():
    arguments = problem()
    padding = torch.arange(T) >= torch.tensor(LENGTHS)[:, None]
    poisoned = {**arguments, "x": arguments["x"].clone(), "att": arguments["att"].clone()}
    poisoned["x"][padding] = torch.nan
    poisoned["att"][padding] = torch.nan
    poisoned["x"].requires_grad_()
    states, last = run("padded", poisoned)
    want_states, want_last = run("padded", arguments)
    assert torch.equal(states, want_states)
    assert torch.equal(last, want_last)
    assert not states[padding].any()
    gradient = torch.autograd.grad(states.sum() + last.sum(), poisoned["x"])[0]
    assert not gradient[padding].any()
    assert gradient[~padding].all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_history(cell, layout):
    arguments = problem(cell)
    clean_states, clean_last = run(layout, arguments, cell=cell)
    arguments["x"][2, 1] = torch.nan
    states, last = run(layout, arguments, cell=cell)
    others = [0, 1, 3, 4]
    assert torch.equal(states[others], clean_states[others])
    assert torch.equal(last[others], clean_last[others])
    assert torch.equal(states[2, 0], clean_states[2, 0])
    assert states[2, 1:].isnan().all()
    assert last[2].isnan().all()


@pytest.mark.parametrize(
    ("cell", "reset", "layout"), slow_but_pairs(list(CELLS), ["after", "before"], list(LAYOUTS))
)
def test_gradients(cell, reset, layout):
    lengths = [2, 0, 3]
    arguments = problem(cell, lengths, 3, 2, 2)
    names = list(arguments)

    def call(*values):
        return run(layout, dict(zip(names, values, strict=True)), lengths, cell=cell, reset=reset)

    assert torch.autograd.gradcheck(call, [value.requires_grad_() for value in arguments.values()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_input_is_computed_in_float32(layout, dtype):
    halved = {name: value.to(dtype) for name, value in problem().items()}
    got = run(layout, halved)
    widened = run(layout, {name: value.float() for name, value in halved.items()})
    for value, wide in zip(got, widened, strict=True):
        assert value.dtype == dtype
        assert torch.equal(value, wide.to(dtype))
    mixed = run(layout, halved | {"att": halved["att"].float(), "h0": halved["h0"].float()})
    assert torch.equal(mixed[1], got[1])


def test_the_loop_can_be_scripted_and_saved():
    arguments = problem("augru_official", lengths=[4, 4, 2])
    index = (torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3]))
    x, att = arguments.pop("x")[index], arguments.pop("att")[index]
    positional = (x, att, *arguments.values(), [3, 3, 2, 2], "augru_official", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(packed_loop), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    want = attention_gru(x, att, **arguments, batch_sizes=torch.tensor([3, 3, 2, 2]), cell="augru_official")
    for scripted, eager, public in zip(loaded(*positional), packed_loop(*positional), want, strict=True):
        close(scripted, eager)
        close(public, eager)
