"""Pooling, Dice, MLP, activations and initialisation against values computed by hand."""

import math

import pytest
import torch
from torch import nn

from dien_fast import MLP, Dice, MaxPooling, SumPooling
from dien_fast.reference.layers import get_activation_layer, init_weights


@pytest.mark.parametrize(("pooling", "want"), [(MaxPooling, [[3.0, 5.0]]), (SumPooling, [[3.0, 3.0]])])
def test_pooling(pooling, want):
    x = torch.tensor([[[1.0, 5.0], [3.0, 2.0], [-1.0, -4.0]]])
    assert pooling(1)(x).tolist() == want
    assert pooling(0)(x[0]).tolist() == want[0]


@pytest.mark.parametrize("pooling", [MaxPooling, SumPooling])
@pytest.mark.parametrize(("shape", "want"), [((2, 0, 3), (2, 3)), ((0, 4, 3), (0, 3))])
def test_pooling_of_nothing_is_zero(pooling, shape, want):
    pooled = pooling(1)(torch.ones(shape))
    assert pooled.shape == want
    assert not pooled.any()


def dice_by_hand(x, alpha, eps=1e-8):
    """Equation 3 of DIN for a 2-D list of channels' values, batch statistics, no scale or shift."""
    mean, var = x.mean(0), x.var(0, unbiased=False)
    p = 1 / (1 + torch.exp(-(x - mean) / torch.sqrt(var + eps)))
    return p * x + (1 - p) * alpha * x


def test_dice_by_hand():
    """Values -1 and 3: mean 1, deviation 2, so p = sigmoid(-1) and sigmoid(1)."""
    dice = Dice(1)
    with torch.no_grad():
        dice.alpha.fill_(0.25)
    low, high = 1 / (1 + math.exp(1)), 1 / (1 + math.exp(-1))
    want = [[low * -1 + (1 - low) * 0.25 * -1], [high * 3 + (1 - high) * 0.25 * 3]]
    torch.testing.assert_close(dice(torch.tensor([[-1.0], [3.0]])), torch.tensor(want))


@pytest.mark.parametrize("dim", [2, 3])
def test_dice_normalises_each_channel_over_all_rows(dim):
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    rows = x.reshape(-1, 3)
    dice = Dice(3, dim).double()
    assert dice.alpha.shape == ((3,) if dim == 2 else (3, 1))
    alpha = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        dice.alpha.copy_(alpha.view_as(dice.alpha))
    got = dice(rows if dim == 2 else x)
    torch.testing.assert_close(got.reshape(-1, 3), dice_by_hand(rows, alpha), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dice.bn.running_mean, 0.1 * rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dice.bn.running_var, 0.9 + 0.1 * rows.var(0), rtol=1e-12, atol=1e-12)


def test_dice_in_evaluation_uses_the_running_statistics():
    dice = Dice(2, epsilon=0.0).eval()
    dice.bn.running_mean.fill_(1.0)
    dice.bn.running_var.fill_(4.0)
    x = torch.tensor([[3.0, 1.0]])
    torch.testing.assert_close(dice(x), torch.tensor([[3 / (1 + math.exp(-1)), 0.5]]))


@pytest.mark.parametrize(("dim", "shape"), [(2, (4, 5, 3)), (3, (4, 3))])
def test_dice_refuses_another_number_of_dimensions(dim, shape):
    with pytest.raises(
        ValueError, match=rf"x must have {dim} dimensions, got shape \({', '.join(map(str, shape))}\)"
    ):
        Dice(3, dim)(torch.ones(shape))


def test_dice_refuses_an_unknown_dim():
    with pytest.raises(ValueError, match="dim must be 2 or 3, got 4"):
        Dice(3, 4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear", nn.Identity), ("ReLU", nn.ReLU), ("prelu", nn.PReLU), ("LeakyReLU", nn.LeakyReLU), ("DICE", Dice)],
)
def test_activation_by_name(name, kind):
    assert type(get_activation_layer(name, 3)) is kind


def test_dice_as_activation_takes_its_dim():
    assert get_activation_layer("dice", 3, 3).dim == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "activation must be .*, got 'nothing'"),
        ("conv1d", "activation must be .*, got 'conv1d'"),
        ("multiheadattention", "activation must be .*, got 'multiheadattention'"),
        ("dice", "hidden_size must be given for activation 'dice', got None"),
    ],
)
def test_wrong_activation(name, message):
    with pytest.raises(ValueError, match=message):
        get_activation_layer(name)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, [nn.Linear, nn.BatchNorm1d, nn.ReLU]),
        ({"batchnorm": False}, [nn.Linear, nn.ReLU]),
        ({"activation": None}, [nn.Linear, nn.BatchNorm1d]),
        ({"activation": "dice", "dropout": 0.5}, [nn.Linear, nn.BatchNorm1d, Dice, nn.Dropout]),
    ],
)
def test_mlp_layers(options, kinds):
    mlp = MLP(4, [5, 2], **options)
    assert [type(layer) for layer in mlp.mlp] == kinds * 2
    assert [(layer.in_features, layer.out_features) for layer in mlp.mlp if isinstance(layer, nn.Linear)] == [
        (4, 5),
        (5, 2),
    ]
    assert mlp(torch.randn(3, 4)).shape == (3, 2)


def test_mlp_by_hand():
    """Rows 1 and 3 through weight 2, bias -3: -1 and 3; normalised -1 and 1; rectified 0 and 1."""
    mlp = MLP(1, [1])
    with torch.no_grad():
        mlp.mlp.dense0.weight.fill_(2.0)
        mlp.mlp.dense0.bias.fill_(-3.0)
    got = mlp(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0], [1.0]]), rtol=1e-5, atol=1e-5)  # eps of 1e-5 in 4
    assert list(mlp.state_dict())[:3] == ["mlp.dense0.weight", "mlp.dense0.bias", "mlp.batchnorm0.weight"]


def test_mlp_drops_in_training_alone():
    mlp = MLP(3, [200], dropout=0.5, batchnorm=False, activation=None)
    x = torch.ones(1, 3)
    kept = mlp(x)
    assert 60 < int((kept == 0).sum()) < 140
    assert mlp.eval()(x).all()
    torch.testing.assert_close(kept[kept != 0], 2 * mlp(x)[kept != 0])


def test_init_weights():
    layers = nn.ModuleList([nn.Linear(400, 300), nn.BatchNorm1d(4000), nn.BatchNorm2d(4000), nn.BatchNorm3d(4000)])
    for norm in layers[1:]:
        nn.init.constant_(norm.bias, 7.0)
    layers.apply(init_weights)
    bound = math.sqrt(6 / 400)  # He-uniform over the 400 inputs
    weight = layers[0].weight
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(weight.std() - bound / math.sqrt(3)) < 0.01 * bound
    assert abs(layers[0].bias.mean()) < 0.25
    assert abs(layers[0].bias.std() - 1) < 0.2
    for norm in layers[1:]:
        assert not norm.bias.any()
        assert abs(norm.weight.mean() - 1) < 0.002
        assert abs(norm.weight.std() - 0.02) < 0.002


def test_init_weights_leaves_the_rest_alone():
    plain = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.BatchNorm1d(3, affine=False), nn.PReLU(), nn.GRU(2, 2)])
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.apply(init_weights)
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight"}
