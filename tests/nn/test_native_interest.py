"""The interest layer over the native operators: the reference's numbers, and that the operators do run."""

import copy
import os
import pickle

import pytest
import torch
from comparison import assert_same, assert_within_twice, outcome
from test_interest import GRU_TYPES, forward, inputs, pair
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

import dien_fast
from dien_fast import Attention, AuxiliaryNet, Interest, Ragged
from dien_fast import _interest_ops as ops
from dien_fast.layers import Dice
from dien_fast.nn import attention as attention_module
from dien_fast.nn.attention import native_layers

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)
LENGTHS = [3, 0, 7, 1, 7, 2]
T, D = 7, 5
ACTIVATIONS = ["linear", "relu", "prelu", "sigmoid", "dice"]


@pytest.fixture
def _no_fallback(monkeypatch):
    """Every way around the operators raises."""

    def refuse(*_):
        raise AssertionError("the layer went around the native operators")

    monkeypatch.setattr(attention_module, "segment_softmax", refuse)
    monkeypatch.setattr(attention_module, "first_linear", refuse)
    monkeypatch.setattr(Ragged, "mask", refuse)


@pytest.fixture
def _only_fallback(monkeypatch):
    """The operators of attention and auxiliary loss raise."""

    def refuse(*_):
        raise AssertionError("the layer ran an operator that does not compute what its modules do")

    monkeypatch.setattr(ops, "attention_scores", refuse)
    monkeypatch.setattr(ops, "auxiliary_loss", refuse)


def layers_of(gru_type="AUGRU", dtype=torch.float64, size=D, scatter=True, **options):
    """The reference and the fast layer, with parameters and buffers that are not what they start as."""
    eager, fast = pair(gru_type, dtype, size, **{"att_hidden_layers": [7, 4], "use_negsampling": True} | options)
    if scatter:
        with torch.no_grad():
            for module in eager.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 2)
                    module.weight.add_(0.3 * torch.randn_like(module.weight))
                    module.bias.normal_(std=0.3)
                if isinstance(module, Dice):
                    module.alpha.normal_(std=0.3)
    fast.load_state_dict(eager.state_dict())
    return eager, fast


def batch(lengths=LENGTHS, steps=T, size=D, dtype=torch.float64):
    """Query, keys and negatives by name, NaN behind a history's end; and the lengths."""
    return inputs(lengths, steps, size, dtype)


def compare(eager, fast, lengths=LENGTHS, layout="ragged", steps=T, size=D):
    """Outputs, auxiliary loss, every gradient and every buffer."""
    leaves, lengths = batch(lengths, steps, size)
    want = outcome(eager, lambda: forward(eager, leaves, lengths, "reference"), leaves)
    got = outcome(fast, lambda: forward(fast, leaves, lengths, layout), leaves)
    assert_same(got, want, 1e-9, 1e-9)
    return got


MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.mark.usefixtures("_no_fallback")
@MODES
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gru_type", GRU_TYPES)
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
    """Of the attention's MLP 80 and 40, of the auxiliary net's 100 and 50."""
    layers = layers_of("AUGRU", size=18, att_hidden_layers=[80, 40], att_activation="dice")
    compare(*layers, [20, 0, 3, 1, 20, 11], layout, 20, 18)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("activation", ["dice", "relu"])
def test_training_steps_in_a_row(gru_type, activation):
    """Parameters and running buffers stay together while lengths change, an empty batch among them."""
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
            patch.setattr(attention_module, "segment_softmax", plain_softmax)
            patch.setattr(attention_module, "first_linear", plain_first_linear)
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
        """The second forward draws the masks of the first."""
        attention = Attention(D, [7, 4], dropout=0.5, batchnorm=False, return_scores=True).double()
        query, rows = torch.randn(2, D).double(), Ragged(torch.randn(9, D).double(), torch.tensor([0, 4, 9]), 5)
        query.requires_grad_()
        found = []
        for run in (attention.ragged_scores, checkpointed(attention.ragged_scores)):
            torch.manual_seed(2)
            found.append(torch.autograd.grad(run(query, rows).square().sum(), [query, *attention.parameters()]))
        for value, expected in zip(*found, strict=True):
            assert torch.equal(value, expected)


plain_softmax, plain_first_linear = attention_module.segment_softmax, attention_module.first_linear


def checkpointed(function):
    return lambda *arguments: torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)


# ---- What runs ----


class Seen(TorchDispatchMode):
    """The operators that ran, and the float tensors with a padded batch's rows that came out of others."""

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


# ---- What the operators do not compute ----


class Linear(nn.Linear):
    """A subclass may compute something else."""


def hook(path, kind):
    def add(layer):
        calls = []

        def note(*_):
            calls.append(path)

        module = layer.get_submodule(path)
        if kind == "forward_pre":
            module.register_forward_pre_hook(note)
        elif kind == "forward":
            module.register_forward_hook(note)
        elif kind == "full_backward":
            module.register_full_backward_hook(note)
        else:
            module.register_full_backward_pre_hook(note)
        layer.calls = calls

    return add


def replaced(path, make):
    def replace(layer):
        parent, _, name = path.rpartition(".")
        made = make(layer.get_submodule(path))
        setattr(layer.get_submodule(parent), name, made.to(next(layer.parameters()).dtype))

    return replace


def mode(path, training):
    return lambda layer: layer.get_submodule(path).train(training)


def parametrized(path):
    return lambda layer: nn.utils.parametrizations.weight_norm(layer.get_submodule(path))


def linear_like(kind, **options):
    def make(old):
        new = kind(old.in_features, old.out_features, **options)
        with torch.no_grad():
            new.weight.copy_(torch.linspace(-1, 1, new.weight.numel()).view_as(new.weight))
            if new.bias is not None:
                new.bias.fill_(0.1)
        return new

    return make


MLP = "attention.mlp.mlp"
UNLIKE = {
    "forward hook": hook(f"{MLP}.activation0", "forward"),
    "hook before": hook(f"{MLP}.dense1", "forward_pre"),
    "backward hook": hook(f"{MLP}.batchnorm0", "full_backward"),
    "hook before backward": hook("attention.fc", "full_backward_pre"),
    "hook on the last product": hook("attention.fc", "forward"),
    "hook inside Dice": hook(f"{MLP}.activation1.bn", "forward"),
    "hook on the sigmoid inside Dice": hook(f"{MLP}.activation0.sigmoid", "forward"),
    "normalisation in evaluation": mode(f"{MLP}.batchnorm1", False),
    "Dice in evaluation": mode(f"{MLP}.activation0.bn", False),
    "PReLU with several slopes": replaced(f"{MLP}.activation0", lambda _: nn.PReLU(7, 0.3)),
    "linear subclass": replaced(f"{MLP}.dense1", linear_like(Linear)),
    "linear without bias": replaced(f"{MLP}.dense0", linear_like(nn.Linear, bias=False)),
    "last product without bias": replaced("attention.fc", linear_like(nn.Linear, bias=False)),
    "parametrized weight": parametrized(f"{MLP}.dense0"),
    "normalisation without buffers": replaced(
        f"{MLP}.batchnorm0", lambda _: nn.BatchNorm1d(7, track_running_stats=False)
    ),
    "normalisation without scale": replaced(f"{MLP}.batchnorm0", lambda _: nn.BatchNorm1d(7, affine=False)),
    "normalisation behind the activation": lambda layer: layer.attention.mlp.mlp.append(
        nn.BatchNorm1d(4).double()
    ),
}


@pytest.mark.usefixtures("_only_fallback")
class TestFallback:
    """The path in torch, with the reference's numbers."""

    @staticmethod
    def same(layers, training=True):
        """Both backends and both paths; the auxiliary net stays out, it has tests of its own."""
        compare(*(layer.train(training) for layer in layers))

    @pytest.mark.parametrize("activation", ["tanh", "gelu", "elu", "silu", "softplus", "leakyrelu"])
    @MODES
    def test_other_activations(self, activation, training):
        layers = layers_of(att_activation=activation, use_negsampling=False)
        assert native_layers(layers[1].attention) is None
        self.same(layers, training)

    @pytest.mark.parametrize("change", UNLIKE)
    def test_unlike_modules(self, change):
        layers = layers_of(att_activation="dice", use_negsampling=False)
        assert native_layers(layers[1].attention) is not None
        for layer in layers:
            UNLIKE[change](layer)
        layers[1].load_state_dict(layers[0].state_dict())
        assert native_layers(layers[1].attention) is None
        compare(*layers)
        if hasattr(layers[1], "calls"):
            # In training, batch statistics of weighted rows are computed beside the normalising modules.
            layers[1].calls.clear()
            compare(*(layer.eval() for layer in layers))
            assert layers[1].calls, "the hook ran"

    @pytest.mark.parametrize("path", [f"{MLP}.batchnorm0", f"{MLP}.activation1.bn"])
    def test_training_parts_of_a_layer_in_evaluation(self, path):
        layers = [layer.eval() for layer in layers_of(att_activation="dice", use_negsampling=False)]
        for layer in layers:
            mode(path, True)(layer)
        found = compare(*layers)
        assert found[f"{path}.num_batches_tracked"] == 1

    def test_dropout_in_another_mode(self):
        """Then it drops nothing in training, where the numbers can be compared."""
        layers = layers_of(att_dropout=0.5, use_negsampling=False)
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        assert native_layers(layers[1].attention) is None
        compare(*layers)

    def test_dropout_of_several_rates(self):
        layer = Interest(D, att_dropout=0.5)
        layer.attention.mlp.mlp.dropout0.p = 0.1
        assert native_layers(layer.attention) is None
        assert native_layers(layer.eval().attention) is not None

    def test_nine_layers(self):
        layers = layers_of(att_hidden_layers=[3] * 9, use_negsampling=False)
        assert native_layers(layers[1].attention) is None
        compare(*layers)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_layers_without_channels(self):
        layers = layers_of(att_hidden_layers=[4, 0, 3], att_batchnorm=False, use_negsampling=False)
        assert native_layers(layers[1].attention) is None
        compare(*layers)
        self.same_loss(lambda input_size, _: AuxiliaryNet(input_size, [4, 0]))

    def test_weights_of_two_dtypes(self):
        attention = Attention(D, [7, 4])
        attention.mlp.mlp.double()
        assert native_layers(attention) is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_other_dtypes(self, dtype):
        attention = Attention(D, [7, 4], batchnorm=False, return_scores=True).to(dtype)
        rows = Ragged(torch.randn(9, D).to(dtype), torch.tensor([0, 4, 9]), 5)
        found = attention.ragged_scores(torch.randn(2, D).to(dtype), rows)
        assert found.dtype == dtype
        torch.testing.assert_close(found[:4].float().sum(), torch.tensor(1.0), rtol=0.02, atol=0)

    def test_under_the_reference_backend(self):
        layers = layers_of(att_activation="dice")
        with dien_fast.use_backend("reference"):
            compare(*layers)

    @pytest.mark.parametrize("activation", ["relu", "tanh", "dice", None])
    def test_other_auxiliary_nets(self, activation):
        class Net(AuxiliaryNet):
            def __init__(self, input_size, hidden_layers):
                super().__init__(input_size, hidden_layers, activation)

        self.same_loss(Net)

    @pytest.mark.parametrize("hidden_layers", [[], [3] * 9])
    def test_auxiliary_nets_of_other_depths(self, hidden_layers):
        self.same_loss(lambda input_size, _: AuxiliaryNet(input_size, hidden_layers))

    @pytest.mark.parametrize(
        "change",
        [
            hook("auxiliary_net.mlp.activation0", "forward"),
            hook("auxiliary_net.mlp.final_layer", "forward_pre"),
            replaced("auxiliary_net.mlp.dense1", linear_like(Linear)),
            replaced("auxiliary_net.mlp.dense1", linear_like(nn.Linear, bias=False)),
            replaced("auxiliary_net.mlp.final_layer", linear_like(nn.Linear, bias=False)),
            parametrized("auxiliary_net.mlp.dense0"),
        ],
        ids=["hook", "hook before", "linear subclass", "no bias", "no last bias", "parametrized weight"],
    )
    def test_unlike_auxiliary_nets(self, change):
        self.same_loss(AuxiliaryNet, change)

    @staticmethod
    def same_loss(make, change=lambda layer: None):
        fast = layers_of(att_activation="tanh")[1]
        fast.auxiliary_net = make(2 * D, [7, 4]).double()
        change(fast)
        states, events, negatives = (torch.randn(20, D).double().requires_grad_() for _ in range(3))
        rows = Ragged(states, torch.tensor([0, 7, 7, 8, 20]), 12)
        leaves = {"states": states, "events": events, "negatives": negatives}
        slow = copy.deepcopy(fast.auxiliary_net)
        got = outcome(
            fast.auxiliary_net, lambda: (fast.auxiliary_net.ragged_loss(rows, events, negatives), None), leaves
        )
        step = torch.tensor([i for i in range(19) if i not in (6, 7)])

        def loss():
            found = [slow(torch.cat([states[step], after[step + 1]], 1)) for after in (events, negatives)]
            return -(found[0].log().mean() + (1 - found[1]).log().mean()) / 2, None

        assert_same(got, outcome(slow, loss, leaves), 1e-9, 1e-9)


def test_modules_that_the_operators_compute():
    """The other side of the tests above: what has no reason to go around them does not."""
    for activation in (*ACTIVATIONS, None):
        for norm in (True, False):
            for dropout in (0.0, 0.3):
                layer = Attention(D, [7, 4], activation=activation, batchnorm=norm, dropout=dropout)
                assert native_layers(layer) is not None
                assert native_layers(layer.eval()) is not None


# ---- Copies, modes, compilers ----


def numbers(layer, layout="ragged"):
    torch.manual_seed(1)
    leaves, lengths = batch(dtype=torch.float32)
    return outcome(layer, lambda: forward(layer, leaves, lengths, layout), leaves)


@pytest.mark.usefixtures("_no_fallback")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(copied, gru_type):
    """Also of a layer that has run, and independent of it."""
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
    """Gradients go through parameters that want none."""
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


@pytest.fixture
def _compiler():
    torch._dynamo.reset()
    # Dynamo refuses every module that has an nn.GRU, whether it is called or not.
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


BATCHES = [[4, 0, 2], [1, 3, 0, 5, 2, 2], [6, 6], [2, 1, 7, 3, 0]]


class Whole(nn.Module):
    """An interest layer on tensors alone, in either layout; max_length is a number of the graph."""

    def __init__(self, layout, **options):
        super().__init__()
        self.layout = layout
        self.layer = Interest(11, use_negsampling=True, att_hidden_layers=[17, 14], **options)

    def forward(self, query, keys, sizes, negatives):
        if self.layout == "padded":
            return self.layer(query, keys, sizes, negatives)
        return self.layer(query, Ragged(keys, sizes, 9), None, Ragged(negatives, sizes, 9))

    def arguments(self, lengths):
        lengths = torch.tensor(lengths)
        query, (keys, negatives) = (
            torch.randn(len(lengths), 11),
            torch.randn(2, len(lengths), int(lengths.max()), 11),
        )
        if self.layout == "padded":
            return query, keys, lengths, negatives
        rows, others = Ragged.from_padded(keys, lengths), Ragged.from_padded(negatives, lengths)
        return query, rows.values, rows.offsets, others.values


def same_numbers(got, want):
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_compiler")
class TestCompile:
    @pytest.mark.parametrize(
        ("gru_type", "activation", "norm", "training", "layout"),
        [
            ("AUGRU", "dice", True, True, "ragged"),
            ("GRU", "relu", False, True, "padded"),
            ("AGRU", "sigmoid", False, False, "ragged"),
        ],
    )
    def test_training_and_evaluation(self, gru_type, activation, norm, training, layout):
        """One graph for every batch and pattern of lengths, forward and backward, and the same buffers."""
        module = Whole(layout, gru_type=gru_type, att_activation=activation, att_batchnorm=norm).train(training)
        plain = copy.deepcopy(module)
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
        frames = None
        for lengths in BATCHES:
            arguments = module.arguments(lengths)
            results = []
            for call, owner in ((compiled, module), (plain, plain)):
                outputs = call(*arguments)
                gradients = torch.autograd.grad(sum(value.sum() for value in outputs), list(owner.parameters()))
                results.append((*outputs, *gradients, *owner.buffers()))
            same_numbers(*results)
            frames = frames or counter.frame_count
        assert counter.frame_count == frames
        names = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
        assert "dien_fast.attention_scores.default" in names
        assert "dien_fast.auxiliary_loss.default" in names

    def test_dropout(self):
        """A compiled call draws its seed from torch's generator, as an eager one does."""
        attention = Attention(11, [17, 14], dropout=0.5, return_scores=True)

        def scores(query, values, offsets):
            return attention.ragged_scores(query, Ragged(values, offsets, 9))

        compiled = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=True)
        query, values, offsets = torch.randn(3, 11), torch.randn(12, 11), torch.tensor([0, 5, 5, 12])
        found = []
        for call, seed in ((compiled, 1), (compiled, 1), (compiled, 2), (scores, 1)):
            torch.manual_seed(seed)
            found.append(call(query, values, offsets).detach())
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
        assert torch.equal(found[0], found[3])

    @pytest.mark.parametrize("layout", ["padded", "ragged"])
    def test_export(self, layout):
        """In evaluation: one program for every batch, which refuses wrong lengths."""
        module = Whole(layout, gru_type="AUGRU", att_activation="dice").eval()
        batch, steps, rows = Dim("B", min=2), Dim("T", min=2), Dim("N", min=2)
        shapes = (
            ({0: batch}, {0: batch, 1: steps}, {0: batch}, {0: batch, 1: steps})
            if layout == "padded"
            else ({0: batch}, {0: rows}, {0: batch + 1}, {0: rows})
        )
        program = torch.export.export(module, module.arguments(BATCHES[0]), dynamic_shapes=shapes, strict=True)
        names = {str(node.target) for node in program.graph.nodes}
        assert {"dien_fast.attention_scores.default", "dien_fast.auxiliary_loss.default"} <= names
        exported = program.module()
        for lengths in BATCHES[1:]:
            arguments = module.arguments(lengths)
            same_numbers(exported(*arguments), module(*arguments))
        query, keys, sizes, negatives = module.arguments([4, 4])
        with pytest.raises(RuntimeError, match="must"):
            exported(query, keys, sizes + 1, negatives)
