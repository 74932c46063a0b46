"""The ragged interest layer against the padded reference, for every option and awkward shapes."""

import warnings

import pytest
import torch
from comparison import assert_same, assert_within_twice, outcome
from interest_layers import FAST, GRU_TYPES, LENGTHS, D, T, forward, inputs, pair
from selection import slow_but_pairs
from torch import nn

from dien_fast import Interest, Ragged, reference


def compare(layers, lengths, layout, steps=T, training=True, max_length=None, size=D):
    """Compare results, gradients and buffers of one forward and backward in float64; return the fast layer's."""
    leaves, lengths = inputs(lengths, steps, size)
    eager, fast = (layer.train(training) for layer in layers)
    want = outcome(eager, lambda: forward(eager, leaves, lengths, "reference", max_length), leaves)
    got = outcome(fast, lambda: forward(fast, leaves, lengths, layout, max_length), leaves)
    assert_same(got, want)
    return got


MODES = [(True, "padded"), (True, "ragged"), (False, "padded"), (False, "ragged")]
MODE_NAMES = [f"{'train' if training else 'eval'}-{layout}" for training, layout in MODES]


@pytest.mark.parametrize(("training", "layout"), MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("negatives", [True, False], ids=["negatives", "plain"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_equals_the_reference(gru_type, negatives, training, layout):
    got = compare(pair(gru_type, use_negsampling=negatives), LENGTHS, layout, training=training)
    assert ("auxiliary loss" in got) == negatives
    assert not got["output"][1].any()


@pytest.mark.parametrize(("training", "layout"), MODES[1:3], ids=MODE_NAMES[1:3])
@pytest.mark.parametrize("activation", ["dice", "prelu", "relu", "sigmoid", None])
@pytest.mark.parametrize("batchnorm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("gru_type", ["GRU", "AUGRU"])
def test_attention_options(gru_type, batchnorm, activation, training, layout):
    compare(pair(gru_type, att_batchnorm=batchnorm, att_activation=activation), LENGTHS, layout, training=training)


SHAPES = {
    "one history": ([4], 5),
    "one full history": ([5], 5),
    "one of one step": ([1], 3),
    "one empty": ([0], 3),
    "all empty": ([0, 0, 0], 4),
    "no history": ([], 4),
    "no steps": ([0, 0], 0),
    "nothing": ([], 0),
    "one step": ([1, 0, 1], 1),
    "all of one step": ([1, 1, 1], 4),
    "all full": ([5, 5, 5], 5),
    "long": ([63, 2, 0, 40], 63),
}


@pytest.mark.parametrize(("gru_type", "shape", "mode"), slow_but_pairs(GRU_TYPES, list(SHAPES), MODES))
def test_awkward_shapes(gru_type, shape, mode):
    (training, layout), (lengths, steps) = mode, SHAPES[shape]
    layers = pair(gru_type, att_activation="dice", use_negsampling=True)
    got = compare(layers, lengths, layout, steps, training)
    assert got["output"].shape == (len(lengths), D)
    if max(lengths, default=0) < 2:
        assert got["auxiliary loss"] == 0


@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("size", [1, 18])
def test_sizes(gru_type, size):
    compare(pair(gru_type, size=size, use_negsampling=True), LENGTHS, "ragged", size=size)


@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_width_beyond_the_longest_history(activation):
    """The attention's batch statistics count rows of padding up to max_length."""
    layers = pair("AUGRU", att_activation=activation, use_negsampling=True)
    wide = compare(layers, LENGTHS, "ragged", max_length=9)
    torch.manual_seed(0)
    narrow = compare(pair("AUGRU", att_activation=activation, use_negsampling=True), LENGTHS, "ragged")
    name = "attention.mlp.mlp.batchnorm0.running_mean"
    assert not torch.allclose(wide[name], narrow[name])


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0, 0]], ids=["some", "all empty"])
@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.5}, {"eps": 0.1}])
def test_batch_normalisation_options(options, lengths):
    def prepare(layer):
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                for name, value in options.items():
                    setattr(module, name, value)

    layers = pair("AUGRU", att_activation="dice", prepare=prepare)
    for steps in (1, 2):
        got = compare(layers, lengths, "padded")
        assert got["attention.mlp.mlp.activation1.bn.num_batches_tracked"] == steps


@pytest.mark.parametrize("negatives", [True, False], ids=["negatives", "plain"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_float32_is_as_near_to_float64_as_the_reference(gru_type, activation, negatives):
    lengths = torch.randint(0, 31, (64,)).tolist()
    options = {"att_activation": activation, "use_negsampling": negatives, "size": 16}
    eager, fast = pair(gru_type, torch.float32, **options)
    exact, _ = pair(gru_type, **options)
    exact.load_state_dict(eager.state_dict())
    leaves, lengths = inputs(lengths, 30, 16, torch.float32)
    wide = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    assert_within_twice(
        outcome(fast, lambda: forward(fast, leaves, lengths, "ragged"), leaves),
        outcome(eager, lambda: forward(eager, leaves, lengths, "reference"), leaves),
        outcome(exact, lambda: forward(exact, wide, lengths, "reference"), wide),
    )


@pytest.mark.parametrize("library", [reference, FAST], ids=["reference", "fast"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
class TestEmptyHistories:
    def test_zero_gradient(self, gru_type, library):
        """In training, batch statistics give every query a gradient; without them, empty histories have none."""
        leaves, lengths = inputs(LENGTHS)
        layer = library.Interest(D, gru_type=gru_type, att_batchnorm=False).double()
        found, _ = layer(leaves["query"], leaves["keys"].nan_to_num(), lengths)
        gradients = torch.autograd.grad(found.sum(), [leaves["query"], leaves["keys"]])
        assert not found[1].any()
        for gradient in gradients:
            assert not gradient[1].any()
            assert gradient[0].any()

    def test_a_batch_of_them_can_be_trained_on(self, gru_type, library):
        leaves, lengths = inputs([0, 0, 0])
        layer = library.Interest(D, gru_type=gru_type, use_negsampling=True).double()
        values = [value.detach().nan_to_num().requires_grad_() for value in leaves.values()]
        found, auxiliary_loss = layer(values[0], values[1], lengths, values[2])
        assert auxiliary_loss.requires_grad, "the auxiliary loss is attached to the graph"
        found.sum().backward()
        assert not any(value.grad is not None and value.grad.any() for value in values)


@pytest.mark.parametrize("library", [reference, FAST], ids=["reference", "fast"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_any_integer_lengths_and_the_listing_s_column_of_lengths(library, gru_type, dtype):
    leaves, lengths = inputs(LENGTHS)
    layer = library.Interest(D, gru_type=gru_type, use_negsampling=True).double().eval()
    call = [leaves["query"], leaves["keys"].nan_to_num()]
    want = layer(*call, lengths, leaves["negatives"].nan_to_num())
    got = layer(*call, lengths[:, None].to(dtype), leaves["negatives"].nan_to_num())
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("library", [reference, FAST], ids=["reference", "fast"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_a_nan_stays_in_its_history_in_evaluation(library, gru_type):
    leaves, lengths = inputs(LENGTHS)
    layer = library.Interest(D, gru_type=gru_type).double().eval()
    query, keys = leaves["query"].detach(), leaves["keys"].detach().nan_to_num()
    clean, _ = layer(query, keys, lengths)
    keys[2, 1] = torch.nan
    found, _ = layer(query, keys, lengths)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], clean[others])
    assert found[2].isnan().all()


@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("batchnorm", [True, False], ids=["norm", "no norm"])
def test_attention_dropout_agrees_in_the_mean(gru_type, batchnorm):
    """Many copies of three histories, whose masks are independent, take the place of many seeds.

    With batch normalisation so many copies also fix the statistics, which padded rows, dropped or not, enter.
    """
    copies, lengths, size = 20_000, [1, 2, 6], 2
    layers = pair(
        gru_type, torch.float32, size, att_dropout=0.4, att_batchnorm=batchnorm, att_activation="sigmoid"
    )
    leaves, lengths = inputs(lengths, 6, size, torch.float32)
    leaves = {name: value.detach().repeat(copies, *[1] * (value.dim() - 1)) for name, value in leaves.items()}
    found = []
    for layer, layout in zip(layers, ("reference", "ragged"), strict=True):
        with torch.no_grad():
            output = forward(layer, leaves, lengths.repeat(copies), layout)[0].view(copies, 3, size).double()
        found.append((output.mean(0), output.std(0) / copies**0.5, dict(layer.named_buffers())))
    (want, want_error, want_buffers), (got, got_error, got_buffers) = found
    assert ((got - want).abs() <= 5 * torch.hypot(want_error, got_error) + 1e-6).all()
    assert want_error[2].max() > 1e-6, "dropout changes the longest history"
    for name, value in want_buffers.items():
        # Worst case measured over 5 seeds: 3e-3. Without dropout on padding, a variance would be wrong by 1e-2.
        torch.testing.assert_close(got_buffers[name], value, rtol=6e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_trace(gru_type, layout):
    layer = Interest(D, gru_type=gru_type).double().eval()
    leaves, lengths = inputs(LENGTHS)
    query, keys = leaves["query"], leaves["keys"]
    given = (keys, lengths) if layout == "padded" else (Ragged.from_padded(keys, lengths)._replace(max_length=7),)
    scores, states = layer.trace(query, *given)
    width = 5 if layout == "padded" else 7
    assert (scores.shape, states.shape) == ((6, width), (6, width, D))
    assert not scores.requires_grad
    torch.testing.assert_close(scores.sum(1), (lengths > 0).double(), rtol=1e-12, atol=1e-12)
    padding = torch.arange(width) >= lengths[:, None]
    assert not scores[padding].any()
    assert not states[padding].any()
    interest, _ = layer(query, *given)
    if gru_type == "GRU":
        shown = (scores[:, :, None] * states).sum(1)
    else:
        shown = states[torch.arange(6), (lengths - 1).clamp(min=0)]
    torch.testing.assert_close(shown, interest, rtol=1e-12, atol=1e-12)
    eager = reference.Interest(D, gru_type=gru_type).double().eval()
    eager.load_state_dict(layer.state_dict())
    if gru_type != "GRU":
        states = eager._run_gru(eager.interest_extractor, keys.nan_to_num(), lengths)
        torch.testing.assert_close(scores[:, :T], eager.attention(query, states, lengths), rtol=1e-12, atol=1e-12)


def test_trace_refuses_training_mode():
    leaves, lengths = inputs(LENGTHS)
    with pytest.raises(ValueError, match="trace needs evaluation mode, got a layer in training mode"):
        Interest(D).double().trace(leaves["query"], leaves["keys"], lengths)


def test_gru_dropout_warns():
    for library in (reference, FAST):
        with pytest.warns(UserWarning, match=r"gru_dropout has no effect, got 0\.2"):
            library.Interest(D, gru_dropout=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Interest(D)


@pytest.mark.parametrize("library", [reference, FAST], ids=["reference", "fast"])
def test_unknown_gru_type(library):
    with pytest.raises(NotImplementedError, match=r"gru_type must be one of \['GRU', .*\], got 'LSTM'"):
        library.Interest(D, gru_type="LSTM")


@pytest.mark.parametrize("library", [reference, FAST], ids=["reference", "fast"])
def test_negatives_are_needed_in_training_alone(library):
    leaves, lengths = inputs(LENGTHS)
    layer = library.Interest(D, use_negsampling=True).double()
    call = (leaves["query"], leaves["keys"].nan_to_num(), lengths)
    with pytest.raises(ValueError, match="neg_keys must be given in training with use_negsampling=True, got None"):
        layer(*call)
    assert layer.eval()(*call)[1] is None


def ragged(rows=11, offsets=(0, 5, 5, 11), max_length=6, size=D):
    return Ragged(torch.randn(rows, size), torch.tensor(offsets), max_length)


KEYS = torch.randn(3, 4, D)
SIZES = torch.tensor([4, 0, 2])
WRONG = {
    "sizes for ragged": ({"keys": ragged(), "keys_length": SIZES}, "keys_length must be None for ragged keys"),
    "no sizes": ({"keys_length": None}, "keys_length must be given for padded keys, got None"),
    "other number of sizes": ({"keys_length": SIZES[:2]}, r"keys_length must have shape \(3,\), got \(2,\)"),
    "size above T": ({"keys_length": SIZES + 1}, r"keys_length must lie in \[0, 4\], got \[1, 5\]"),
    "negative size": ({"keys_length": SIZES - 1}, r"keys_length must lie in \[0, 4\], got \[-1, 3\]"),
    "other number of queries": ({"query": torch.randn(2, D)}, r"query must have shape \(3, 3\), got \(2, 3\)"),
    "wider query": ({"query": torch.randn(3, D + 1)}, r"query must have shape \(3, 3\), got \(3, 4\)"),
    "keys without steps": ({"keys": KEYS[:, 0]}, "keys must have "),
    "keys of another size": (
        {"query": torch.randn(3, 2), "keys": KEYS[..., :2], "neg_keys": KEYS[..., :2]},
        "keys must",
    ),
    "other negatives": (
        {"neg_keys": KEYS[:, :3]},
        r"neg_keys must have shape \(3, 4, 3\) as keys has, got \(3, 3, 3\)",
    ),
    "padded negatives": (
        {"keys": ragged(), "keys_length": None},
        "neg_keys must be ragged where keys is, and padded where it is",
    ),
    "fewer negatives": (
        {"keys": ragged(), "keys_length": None, "neg_keys": ragged(7, (0, 1, 1, 7))},
        "neg_keys must have the offsets and channels of keys",
    ),
    "negatives of other lengths": (
        {"keys": ragged(), "keys_length": None, "neg_keys": ragged(11, (0, 6, 6, 11))},
        "neg_keys must have ",
    ),
    "width below the longest": (
        {"keys": ragged(max_length=3), "keys_length": None, "neg_keys": ragged(max_length=3)},
        "keys.max_length must be at least the longest length 6, got 3",
    ),
    "offsets below the rows": (
        {"keys": ragged(offsets=(0, 5, 5, 10)), "keys_length": None, "neg_keys": ragged(offsets=(0, 5, 5, 10))},
        "offsets must rise from 0 to 11",
    ),
    "falling offsets": (
        {"keys": ragged(offsets=(0, 6, 5, 11)), "keys_length": None, "neg_keys": ragged(offsets=(0, 6, 5, 11))},
        "offsets must rise from 0 to 11",
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case, training):
    change, message = WRONG[case]
    given = {"query": torch.randn(3, D), "keys": KEYS, "keys_length": SIZES, "neg_keys": KEYS} | change
    with pytest.raises(ValueError, match=message):
        Interest(D, use_negsampling=True).train(training)(**given)


def test_lengths_must_be_integers():
    with pytest.raises(TypeError, match=r"keys_length must have an integer dtype, got torch\.float32"):
        Interest(D)(torch.randn(3, D), KEYS, SIZES.float())
