"""Numbers that the article's listing produced: outputs, auxiliary loss, gradients, buffers, initial parameters."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import dien_fast
from dien_fast import AttentionGroup, Dice, Ragged, reference
from dien_fast.reference.layers import init_weights

LISTING = np.load(Path(__file__).parent / "golden" / "listing.npz")
CASES = {key.split("/", 1)[0] for key in LISTING.files}
# Worst case measured: 1.1e-15 of max(1, size).
close = partial(torch.testing.assert_close, rtol=1e-13, atol=1e-13)
pytestmark = pytest.mark.usefixtures("_float64")


def golden(case, part):
    prefix = f"{case}/{part}/"
    return {
        key.removeprefix(prefix): torch.from_numpy(LISTING[key]) for key in LISTING.files if key.startswith(prefix)
    }


def value(case, name):
    return torch.from_numpy(LISTING[f"{case}/{name}"])


def dice(case, library):
    dim = int(case[-1])
    torch.manual_seed(10 + dim)
    return Dice(3, dim), {"alpha"}


def dynamic_gru(case, library):
    torch.manual_seed(20)
    return library.DynamicGRU(3, 4, True, case.rsplit("_", 1)[1]), set()


def attention(case, library):
    torch.manual_seed(30)
    layer = library.Attention(3, [4, 3], activation="dice", return_scores=case.endswith("scores"))
    return layer.apply(init_weights), set()


def interest(case, library):
    _, gru_type, negatives = case.split("_")
    torch.manual_seed(40)
    with_negatives = negatives == "neg"
    return library.Interest(
        3,
        gru_type=gru_type,
        att_hidden_layers=[4, 3],
        att_activation="dice" if with_negatives else "prelu",
        use_negsampling=with_negatives,
    ), set()


def dien(case, library):
    with_negatives = case == "dien_neg"

    def pair(name):
        return {"ad": name, "pos_hist": f"h_{name}"} | ({"neg_hist": f"n_{name}"} if with_negatives else {})

    torch.manual_seed(50)
    groups = [
        AttentionGroup("g1", [pair("item"), pair("cat")], [4, 3], activation="dice", gru_type="AUGRU"),
        AttentionGroup("g2", [pair("shop")], [3], activation="prelu", gru_type="AIGRU"),
    ]
    sizes = {"item": 7, "cat": 4, "shop": 5}
    histories = [f"{role}_{name}" for role in ("hn" if with_negatives else "h") for name in sizes]
    nums = {name: sizes[name[2:]] for name in histories} | sizes | {"user": 6, "tags": 5}
    return library.DIEN(
        ["age", "hour"],
        ["item", "cat", "shop", "user"],
        ["tags", *histories],
        nums,
        2,
        groups,
        [5, 4],
        mlp_activation="dice",
        use_negsampling=with_negatives,
        d_out=1,
    ), set()


BUILDERS = {"dice": dice, "dynamic": dynamic_gru, "attention": attention, "interest": interest, "dien": dien}


def build(case, library):
    """Return the module and the names of the parameters that were changed after its creation."""
    return BUILDERS[case.rstrip("23").split("_")[0]](case, library)


def ragged_ids(inputs):
    """Turn every padded sequence of ids into its ragged equal."""
    return {
        name: Ragged.from_padded(ids, (ids > 0).sum(1)) if ids.dim() == 2 else ids for name, ids in inputs.items()
    }


def forward(case, module, inputs):
    """Return the output and the auxiliary loss."""
    kind = case.rstrip("23").split("_")[0]
    if kind == "dice":
        return module(inputs["x"]), None
    if kind == "dien":
        return module(inputs)
    if kind == "dynamic":
        pack = partial(pack_padded_sequence, lengths=inputs["lengths"], batch_first=True, enforce_sorted=False)
        return module(pack(inputs["x"]), pack(inputs["att"]), inputs["hx"]).data, None
    if kind == "attention":
        return module(inputs["query"], inputs["keys"], inputs["lengths"]), None
    negatives = inputs["neg_keys"] if module.use_negsampling else None
    return module(inputs["query"], inputs["keys"], inputs["lengths"], negatives)


PAIRS = [(case, library) for case in sorted(CASES) for library in (reference, dien_fast)]
PAIRS = [
    (case, library) for case, library in PAIRS if library is dien_fast or "dice" not in case
]  # There is one Dice.
VARIANTS = [(case, library, False) for case, library in PAIRS]
VARIANTS += [(case, dien_fast, True) for case in sorted(CASES) if case.startswith("dien")]
NAMES = [f"{case}-{library.__name__}{'-ragged' * ragged}" for case, library, ragged in VARIANTS]


@pytest.mark.parametrize(("case", "library", "ragged"), VARIANTS, ids=NAMES)
def test_listing(case, library, ragged):
    module, _ = build(case, library)
    module.load_state_dict(golden(case, "before"), strict=True)
    inputs = golden(case, "in")
    leaves = {
        name: x.requires_grad_() for name, x in inputs.items() if x.is_floating_point() and "dien" not in case
    }
    if ragged:
        inputs = ragged_ids(inputs)

    output, auxiliary_loss = forward(case, module, inputs)
    close(output, value(case, "out"))
    loss = (output * value(case, "weight")).sum()
    assert (auxiliary_loss is not None) == (f"{case}/aux" in LISTING)
    if auxiliary_loss is not None:
        close(auxiliary_loss, value(case, "aux"))
        loss = loss + auxiliary_loss

    wanted = {**dict(module.named_parameters()), **leaves}
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    expected = golden(case, "grad")
    assert expected.keys() <= wanted.keys()
    for (name, leaf), gradient in zip(wanted.items(), gradients, strict=True):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        close(gradient, expected.get(name, torch.zeros_like(leaf)), msg=lambda m, name=name: f"{name}: {m}")

    buffers = {
        name: buffer for name, buffer in module.state_dict().items() if "running" in name or "num_b" in name
    }
    after = golden(case, "after")
    assert buffers.keys() == after.keys()
    for name, buffer in buffers.items():
        close(buffer, after[name], msg=lambda m, name=name: f"{name}: {m}")

    if f"{case}/eval" in LISTING:
        close(forward(case, module.eval(), inputs)[0], value(case, "eval"))


@pytest.mark.parametrize(("case", "library"), PAIRS, ids=NAMES[: len(PAIRS)])
def test_same_seed_gives_the_same_initial_state(case, library):
    module, altered = build(case, library)
    state, expected = module.state_dict(), golden(case, "before")
    assert list(state) == list(expected)
    for name in state.keys() - altered:
        assert torch.equal(state[name], expected[name]), name
