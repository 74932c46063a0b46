"""Interest layers with modules that the native operators do not compute give the same numbers in plain PyTorch."""

import copy

import pytest
import torch
from comparison import assert_same, outcome
from native_cases import ACTIVATIONS, MODES, D, compare, layers_of, needs_native
from torch import nn

import dien_fast
from dien_fast import Attention, AuxiliaryNet, Interest, Ragged
from dien_fast.nn.native_layers import native_layers

pytestmark = needs_native


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
    """Plain PyTorch runs, and gives the reference's numbers."""

    @staticmethod
    def same(layers, training=True):
        """Compares both backends and both ways, without the auxiliary net, which has tests of its own."""
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
            # In training, the statistics of weighted rows are not computed by the normalising modules.
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
        """A dropout in evaluation mode drops nothing inside a training layer, so numbers can be compared."""
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
    """The opposite of the tests above: layers that the operators compute run through them."""
    for activation in (*ACTIVATIONS, None):
        for norm in (True, False):
            for dropout in (0.0, 0.3):
                layer = Attention(D, [7, 4], activation=activation, batchnorm=norm, dropout=dropout)
                assert native_layers(layer) is not None
                assert native_layers(layer.eval()) is not None
