"""The interest layer over the native operators gives the reference's numbers, and the operators do run."""

import copy
import pickle

import pytest
import torch
from comparison import assert_same, assert_within_twice, outcome
from interest_layers import GRU_TYPES, forward, pair
from native_cases import ACTIVATIONS, LENGTHS, MODES, D, T, batch, compare, layers_of, needs_native
from selection import slow_but_pairs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dien_fast
from dien_fast import Attention, Interest, Ragged
from dien_fast.ops import attention_scores
from dien_fast.ops import rows as row_operators

pytestmark = needs_native


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize(
    ("gru_type", "activation", "norm", "training"),
    slow_but_pairs(GRU_TYPES, ACTIVATIONS, [True, False], [True, False]),
)
def test_equals_the_reference(gru_type, activation, norm, training):
    layers = layers_of(gru_type, att_activation=activation, att_batchnorm=norm)
    found = compare(*(layer.train(training) for layer in layers), layout="padded" if training else "ragged")
    assert found["auxiliary loss"] > 0
    for name in ("query", "keys", "negatives"):
        assert found[f"gradient of {name}"].any(), name


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_many_and_long_histories(gru_type):
    """More histories than a tile has rows, and histories of several tiles."""
    lengths = [*range(0, 100, 9), 100, 99, 1, 0, 48, 49] + [2, 0, 1] * 12
    compare(*layers_of(gru_type, att_activation="dice"), lengths, "ragged", 100)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_with_the_sizes_that_it_is_built_with(layout):
    """The default sizes: 80 and 40 of the attention's MLP, 100 and 50 of the auxiliary net's."""
    layers = layers_of("AUGRU", size=18, att_hidden_layers=[80, 40], att_activation="dice")
    compare(*layers, [20, 0, 3, 1, 20, 11], layout, 20, 18)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("activation", ["dice", "relu"])
def test_training_steps_in_a_row(gru_type, activation):
    """Parameters and running buffers stay equal over batches of changing lengths, one of them empty."""
    layers = layers_of(gru_type, att_activation=activation)
    optimizers = [torch.optim.SGD(layer.parameters(), 0.1) for layer in layers]
    for lengths in (LENGTHS, [5, 2, 4], [0, 0], [1, 6, 0, 2], LENGTHS[::-1]):
        leaves, lengths = batch(lengths)
        for layer, optimizer, layout in zip(layers, optimizers, ("reference", "ragged"), strict=True):
            optimizer.zero_grad()
            interest, auxiliary_loss = forward(layer, leaves, lengths, layout)
            (interest.square().sum() + auxiliary_loss).backward()
            optimizer.step()
    eager, fast = (layer.state_dict() for layer in layers)
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-9, msg=name)
    compare(*(layer.eval() for layer in layers))


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize(
    ("gru_type", "activation", "norm", "training"),
    [("AUGRU", "relu", False, True), ("GRU", "sigmoid", True, False), ("AIGRU", "dice", False, True)],
)
def test_float32_is_as_near_to_float64_as_the_reference(gru_type, activation, norm, training):
    lengths = torch.randint(0, 71, (60,)).tolist()
    options = {"att_activation": activation, "att_batchnorm": norm, "att_hidden_layers": [36, 20], "size": 18}
    eager, fast = layers_of(gru_type, torch.float32, **options)
    exact, _ = pair(gru_type, **{"use_negsampling": True} | options)
    exact.load_state_dict(eager.state_dict())
    leaves, lengths = batch(lengths, 70, 18, torch.float32)
    wide = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    found = []
    for layer, given, layout in (
        (fast, leaves, "ragged"),
        (eager, leaves, "reference"),
        (exact, wide, "reference"),
    ):
        layer.train(training)
        found.append(
            outcome(
                layer,
                lambda layer=layer, given=given, layout=layout: forward(layer, given, lengths, layout),
                given,
            )
        )
    assert_within_twice(*found)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("momentum", [None, 0.0, 0.3])
def test_momentum_over_batches(momentum):
    layers = layers_of(att_activation="dice")
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = momentum
    for step in (1, 2, 3):
        found = compare(*layers)
        assert found["attention.mlp.mlp.activation1.bn.num_batches_tracked"] == step


@pytest.mark.usefixtures("_no_fallback")
class TestAttention:
    @MODES
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("return_scores", [True, False])
    def test_equals_the_path_in_torch(self, return_scores, activation, training):
        fast = Attention(D, [7, 4], activation=activation, return_scores=return_scores).double().train(training)
        slow = copy.deepcopy(fast)
        leaves, lengths = batch()
        query, keys = leaves["query"], leaves["keys"]
        rows = Ragged.from_padded(keys, lengths)._replace(max_length=9)
        leaves = {"query": query, "keys": keys}
        got = outcome(fast, lambda: (fast.forward_ragged(query, rows), None), leaves)
        with pytest.MonkeyPatch.context() as patch, dien_fast.use_backend("reference"):
            patch.setattr(attention_scores, "plain_attention_scores", plain_scores)
            patch.setattr(row_operators, "plain_weighted_sum", plain_sum)
            rows = Ragged(rows.values.detach().requires_grad_(), rows.offsets, 9)
            want = outcome(
                slow, lambda: (slow.forward_ragged(query, rows), None), {"query": query, "rows": rows.values}
            )
        mask = torch.arange(T) < lengths[:, None]
        assert torch.equal(got["gradient of keys"][~mask], torch.zeros(int((~mask).sum()), D).double())
        got["gradient of rows"] = got.pop("gradient of keys")[mask]
        assert_same({name: got[name] for name in want}, want, 1e-9, 1e-9)

    def test_a_single_row_has_no_batch_statistics(self):
        rows = Ragged(torch.randn(1, D), torch.tensor([0, 1]), 1)
        attention = Attention(D, [7, 4])
        with pytest.raises(ValueError, match="expected more than 1 value per channel when training, got 1 row"):
            attention.ragged_scores(torch.randn(1, D), rows)
        assert attention.mlp.mlp.batchnorm0.num_batches_tracked == 0
        assert torch.equal(attention.eval().ragged_scores(torch.randn(1, D), rows), torch.ones(1))
        without = Attention(D, [7, 4], batchnorm=False)
        assert torch.equal(without.ragged_scores(torch.randn(1, D), rows), torch.ones(1))

    def test_moved_statistics_have_no_gradient(self):
        """Backward raises, as torch's own normalisation does: with other statistics, gradients would be wrong."""
        rows = Ragged(torch.randn(9, D), torch.tensor([0, 4, 9]), 5)
        attention = Attention(D, [7, 4]).eval()
        scores = attention.ragged_scores(torch.randn(2, D, requires_grad=True), rows)
        attention.mlp.mlp.batchnorm0.running_mean.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            scores.square().sum().backward()

    def test_dropout_follows_the_seed(self):
        attention = Attention(D, [7, 4], dropout=0.5)
        query, rows = torch.randn(2, D), Ragged(torch.randn(9, D), torch.tensor([0, 4, 9]), 5)

        def scores(seed):
            torch.manual_seed(seed)
            return attention.ragged_scores(query, rows)

        assert torch.equal(scores(1), scores(1))
        assert not torch.equal(scores(1), scores(2))
        attention.eval()
        assert torch.equal(scores(1), scores(2))

    def test_checkpointed(self):
        """Checkpointing runs forward twice, with the same masks."""
        attention = Attention(D, [7, 4], dropout=0.5, batchnorm=False, return_scores=True).double()
        query, rows = torch.randn(2, D).double(), Ragged(torch.randn(9, D).double(), torch.tensor([0, 4, 9]), 5)
        query.requires_grad_()
        found = []
        for run in (attention.ragged_scores, checkpointed(attention.ragged_scores)):
            torch.manual_seed(2)
            found.append(torch.autograd.grad(run(query, rows).square().sum(), [query, *attention.parameters()]))
        for value, expected in zip(*found, strict=True):
            assert torch.equal(value, expected)


plain_scores, plain_sum = attention_scores.plain_attention_scores, row_operators.plain_weighted_sum


def checkpointed(function):
    return lambda *arguments: torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)


# ---- What runs ----


class Seen(TorchDispatchMode):
    """Records which operators ran, and their float arguments and results with the rows of a padded batch."""

    def __init__(self, batch, steps):
        super().__init__()
        self.rows, self.layout = {batch * steps, batch * (steps - 1)}, {(batch, steps), (batch, steps - 1)}
        self.operators, self.padded = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function)
        self.operators.append(name)
        for value in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and self.is_padded(value):
                self.padded.append((name, tuple(value.shape)))
        return out

    def is_padded(self, value):
        return value.dim() > 0 and (value.size(0) in self.rows or tuple(value.shape[:2]) in self.layout)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
class TestWhatRuns:
    BATCH, STEPS = 11, 13
    LENGTHS = [13, 0, 1, 5, 2, 0, 3, 4, 1, 6, 2]

    def layer_and_leaves(self, gru_type, training, layout):
        layer = Interest(
            D, gru_type=gru_type, att_hidden_layers=[7, 4], att_activation="dice", use_negsampling=True
        )
        leaves, lengths = batch(self.LENGTHS, self.STEPS, dtype=torch.float32)
        query = leaves["query"].detach().requires_grad_()
        if layout == "padded":
            keys, negatives = (leaves[name].detach().requires_grad_() for name in ("keys", "negatives"))
            return layer.train(training), (query, keys, lengths, negatives), [query, keys, negatives]
        keys, negatives = (Ragged.from_padded(leaves[name].detach(), lengths) for name in ("keys", "negatives"))
        values = [rows.values.requires_grad_() for rows in (keys, negatives)]
        return layer.train(training), (query, keys, None, negatives), [query, *values]

    def run(self, layer, arguments, leaves):
        interest, auxiliary_loss = layer(*arguments)
        torch.autograd.grad(interest.sum() + auxiliary_loss, [*leaves, *layer.parameters()])

    def test_each_operator_runs_once(self, gru_type, layout, training):
        layer, arguments, leaves = self.layer_and_leaves(gru_type, training, layout)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.run(layer, arguments, leaves)
        counts = {event.key: event.count for event in profile.key_averages()}
        assert counts["dien_fast::attention_scores"] == 1
        assert counts["dien_fast::attention_scores_backward"] == 1
        assert counts["dien_fast::auxiliary_loss"] == 1
        assert counts.get("dien_fast::weighted_sum", 0) == (gru_type == "GRU")
        assert counts["dien_fast::attention_gru"] == 2
        copies = 2 * (layout == "padded")  # of keys and negatives, and of their gradients
        assert counts.get("dien_fast::rows_from_padded", 0) == copies
        assert counts.get("dien_fast::padded_from_rows", 0) == copies
        for name in ("aten::addmm", "aten::mm", "aten::bmm", "aten::_softmax", "aten::native_batch_norm"):
            assert name not in counts, name

    def test_nothing_is_computed_for_padding(self, gru_type, layout, training):
        layer, arguments, leaves = self.layer_and_leaves(gru_type, training, layout)
        with Seen(self.BATCH, self.STEPS) as seen:
            self.run(layer, arguments, leaves)
        assert sum("dien_fast.attention_scores" in name for name in seen.operators) == 2
        between = ("dien_fast.rows_from_padded", "dien_fast.padded_from_rows", "aten.detach")
        others = [(name, shape) for name, shape in seen.padded if not name.startswith(between)]
        assert others == []
        if layout == "ragged":
            assert seen.padded == []
        else:
            assert seen.padded, "the check sees padded tensors where there are some"


# ---- Copies and modes ----


def numbers(layer, layout="ragged"):
    torch.manual_seed(1)
    leaves, lengths = batch(dtype=torch.float32)
    return outcome(layer, lambda: forward(layer, leaves, lengths, layout), leaves)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(copied, gru_type):
    """A copy of a layer, even of one that has run, is independent of it."""
    layer = layers_of(gru_type, torch.float32, att_activation="dice", att_dropout=0.2)[1]
    numbers(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    other = copied(layer)
    found = numbers(other)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert_same(numbers(layer), found, 0, 0)


@pytest.mark.usefixtures("_no_fallback")
@MODES
@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_without_gradients(gru_type, layout, training):
    """Inference mode and no_grad give the numbers of a call with gradients."""
    leaves, lengths = batch()
    found = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        layer = layers_of(gru_type, att_activation="dice")[1].train(training)
        with mode():
            interest, auxiliary_loss = forward(layer, leaves, lengths, layout)
        assert interest.requires_grad == (mode is torch.enable_grad)
        assert interest.is_inference() == (mode is torch.inference_mode)
        found.append({"interest": interest, "loss": auxiliary_loss, **dict(layer.named_buffers())})
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.usefixtures("_no_fallback")
def test_frozen_attention():
    """Gradients pass through layers whose parameters are frozen."""
    layers = layers_of(att_activation="dice")
    found = []
    leaves, lengths = batch()
    for layer, layout in zip(layers, ("reference", "ragged"), strict=True):
        layer.attention.requires_grad_(False)
        layer.auxiliary_net.requires_grad_(False)
        interest, auxiliary_loss = forward(layer, leaves, lengths, layout)
        wanted = [*leaves.values(), *(value for value in layer.parameters() if value.requires_grad)]
        found.append(torch.autograd.grad(interest.sum() + auxiliary_loss, wanted))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
