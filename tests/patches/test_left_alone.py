"""What is not recognised stays as it is, and the report says why."""

import copies
import pytest
import torch
from equality import classes
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import dien_fast


def left(model, sentence):
    """Accelerate; the loop must keep its class, and the report say ``sentence``."""
    before = classes(model)
    report = dien_fast.accelerate(model)
    assert not report.fast, str(report)
    assert any(sentence in entry.sentence for entry in report.left), str(report)
    assert classes(model) == before
    return report


@pytest.mark.parametrize("cell", [copies.Squared, copies.Detached, copies.Clamped, copies.Noisy])
def test_custom_rule(cell):
    left(copies.DynamicGRU(4, 5, cell=cell), "none agrees")


@pytest.mark.parametrize(("cell", "rule"), [(copies.Deaf, "gru"), (copies.ResetBefore, "augru, reset before")])
def test_rule_without_a_kernel(cell, rule):
    left(copies.DynamicGRU(4, 5, cell=cell), f"computes {rule}")


def test_names_do_not_decide():
    """The order of gates is found out, whatever the class is called."""

    class AttentionUpdateGateGRUCell(copies.AttentionUpdateGateGRUCell):
        order = "nru"

    report = dien_fast.accelerate(copies.DynamicGRU(4, 5, cell=AttentionUpdateGateGRUCell))
    assert "gates (n | r | u)" in str(report)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_cell_with_a_hook(register):
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    getattr(loop.rnn, register)(lambda *_: None)
    left(loop, "has hooks")


def test_cell_with_a_backward_hook():
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    loop.rnn.register_full_backward_hook(lambda *_: None)
    left(loop, "has hooks")


def test_cell_with_a_forward_of_its_own():
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    loop.rnn.forward = lambda x, hx, att_score: hx
    left(loop, "a forward of its own")


def test_loop_with_a_forward_of_its_own():
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    loop.forward = lambda *_: None
    left(loop, "replaced on the instance")


class Backwards(copies.DynamicGRU):
    pass


def test_subclass():
    left(Backwards(4, 5), "a subclass of copies.DynamicGRU")


def test_loop_that_does_something_else():
    class DynamicGRU(copies.DynamicGRU):
        def forward(self, x, att_scores, hx=None):
            out = super().forward(x, att_scores, hx)  # the name is a known one: what it computes decides
            return out._replace(data=out.data * 1.001)

    loop = DynamicGRU(4, 5)
    report = dien_fast.accelerate(loop)
    assert type(loop) is DynamicGRU
    assert "computes something else in training" in str(report)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_loop_that_gives_no_numbers(number):
    class DynamicGRU(copies.DynamicGRU):
        def forward(self, x, att_scores, hx=None):
            out = super().forward(x, att_scores, hx)
            return out._replace(data=out.data + number)

    left(DynamicGRU(4, 5), "a copy of it computes something else in training")


def test_loop_with_more_parts():
    loop = copies.DynamicGRU(4, 5)
    loop.norm = nn.LayerNorm(5)
    left(loop, "nothing but its cell rnn")


def test_loop_without_a_cell():
    loop = copies.DynamicGRU(4, 5)
    loop.rnn = nn.GRUCell(4, 5)
    left(loop, "raises TypeError")


def test_cell_of_other_parameters():
    loop = copies.DynamicGRU(4, 5)
    loop.rnn.scale = nn.Parameter(torch.ones(1))
    left(loop, "nothing else that computes; it has")


def test_two_layers_of_extractor():
    layer = copies.Interest(4)
    layer.interest_extractor = nn.GRU(4, 4, num_layers=2, batch_first=True)
    report = dien_fast.accelerate(layer)
    assert [entry.path for entry in report.fast] == ["interest_evolution"]
    assert "2 layers" in str(report)
    assert "because its interest_extractor was left" in str(report)
    assert type(layer.interest_extractor) is nn.GRU


def test_layer_with_an_unknown_rule_keeps_its_loop():
    layer = copies.Interest(4, cell=copies.Squared)
    report = dien_fast.accelerate(layer)
    assert [entry.path for entry in report.fast] == ["interest_extractor"]
    assert type(layer.interest_evolution) is copies.DynamicGRU
    assert "because its interest_evolution was left" in str(report)


def test_layer_that_computes_something_else():
    class Interest(copies.Interest):
        def forward(self, *arguments):
            interest, loss = super().forward(*arguments)
            return interest * 2, loss

    layer = Interest(4)
    report = dien_fast.accelerate(layer)
    assert type(layer) is Interest
    assert {entry.path for entry in report.fast} == {"interest_extractor", "interest_evolution"}
    assert "a copy of it computes something else" in str(report)


def test_nothing_to_do_is_said_in_one_sentence():
    report = dien_fast.accelerate(nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 3)))
    (note,) = report.notes
    assert "looked for deepctr-torch 0.3.0 (DynamicGRU" in note
    assert "found 1 torch.nn.modules.container.Sequential" in note
    assert not report


def run_loop(loop):
    x, att, lengths = torch.randn(3, 4, 4), torch.rand(3, 4), torch.tensor([4, 2, 1])
    packed = [pack_padded_sequence(v, lengths, batch_first=True, enforce_sorted=False) for v in (x, att)]
    return loop(*packed)


def test_a_hook_that_comes_later_runs():
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    assert dien_fast.accelerate(loop)
    calls = []
    handle = loop.rnn.register_forward_hook(lambda *_: calls.append(1))
    run_loop(loop)
    assert len(calls) == 4
    handle.remove()
    run_loop(loop)
    assert len(calls) == 4


def test_a_hook_inside_a_layer_that_comes_later_runs():
    layer = copies.Interest(4).eval()
    assert dien_fast.accelerate(layer)
    calls = []
    layer.attention.fc.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(3, 4), torch.randn(3, 4, 4), torch.tensor([4, 2, 1]), torch.randn(3, 4, 4))
    assert calls


def test_a_cell_that_is_replaced_later_is_used():
    torch.manual_seed(1)
    loop = copies.DynamicGRU(4, 5, gru_type="AUGRU")
    assert dien_fast.accelerate(loop)
    loop.rnn = copies.Squared(4, 5)
    plain = copies.DynamicGRU(4, 5, cell=copies.Squared)
    plain.load_state_dict(loop.state_dict())
    torch.manual_seed(2)
    got = run_loop(loop)
    torch.manual_seed(2)
    torch.testing.assert_close(got.data, run_loop(plain).data, rtol=0, atol=0)


def test_an_activation_that_is_replaced_later_is_used():
    layer = copies.Interest(4).eval()
    arguments = torch.randn(3, 4), torch.randn(3, 4, 4), torch.tensor([4, 2, 1]), torch.randn(3, 4, 4)
    assert dien_fast.accelerate(layer)
    for module in (layer.attention.mlp.mlp, layer.auxiliary_net.mlp):
        module[1] = nn.Softplus()
    got = layer(*arguments)
    dien_fast.restore(layer)
    for ours, theirs in zip(got, layer(*arguments), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("target", [3, None, copies.DynamicGRU])
def test_wrong_target(target):
    for function in (dien_fast.accelerate, dien_fast.restore):
        with pytest.raises(TypeError, match=r"target must be a torch\.nn\.Module or one of"):
            function(target)


def test_unknown_library():
    for function in (dien_fast.accelerate, dien_fast.restore):
        with pytest.raises(ValueError, match="got 'recbol'"):
            function("recbol")
