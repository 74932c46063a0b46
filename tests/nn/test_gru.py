"""DynamicGRU and its cells: the fast module against the reference loop and against one another."""

import pytest
import torch
from comparison import assert_same, outcome
from torch.nn.utils.rnn import pack_padded_sequence

from dien_fast import AttentionGRUCell, AttentionUpdateGateGRUCell, DynamicGRU, Ragged, reference
from dien_fast.functional import attention_gru

LENGTHS = torch.tensor([3, 1, 5, 2, 5])
B, T, I, H = 5, 5, 3, 4  # noqa: E741
pytestmark = pytest.mark.usefixtures("_float64")


def pack(value, lengths=LENGTHS):
    return pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=False)


@pytest.mark.parametrize("gru_type", ["AGRU", "AUGRU"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_equals_the_reference(gru_type, bias, with_state):
    eager = reference.DynamicGRU(I, H, bias, gru_type)
    fast = DynamicGRU(I, H, bias, gru_type)
    fast.load_state_dict(eager.state_dict(), strict=True)
    leaves = {
        "x": torch.randn(B, T, I, requires_grad=True),
        "att": torch.randn(B, T, requires_grad=True),
        "hx": torch.randn(B, H, requires_grad=True),
    }
    hx = leaves["hx"] if with_state else None
    packed = [module(pack(leaves["x"]), pack(leaves["att"]), hx) for module in (fast, eager)]
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(packed[0], field), getattr(packed[1], field))
    got, want = (
        outcome(m, lambda m=m: (m(pack(leaves["x"]), pack(leaves["att"]), hx).data, None), leaves)
        for m in (fast, eager)
    )
    assert_same(got, want)


@pytest.mark.parametrize("module", [DynamicGRU, reference.DynamicGRU], ids=["fast", "reference"])
def test_one_history(module):
    gru = module(I, H, gru_type="AUGRU")
    lengths = torch.tensor([4])
    states = gru(pack(torch.randn(1, 4, I), lengths), pack(torch.rand(1, 4), lengths))
    assert states.data.shape == (4, H)


@pytest.mark.parametrize("gru_type", ["AGRU", "AUGRU"])
@pytest.mark.parametrize("return_states", [True, False])
def test_ragged_equals_packed(gru_type, return_states):
    gru = DynamicGRU(I, H, gru_type=gru_type)
    x, att = torch.randn(B, T, I), torch.rand(B, T)
    rows, scores = Ragged.from_padded(x, LENGTHS), Ragged.from_padded(att, LENGTHS)
    states, last = gru.forward_ragged(rows, scores.values, return_states)
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(gru(pack(x), pack(att)), batch_first=True)
    torch.testing.assert_close(last, want[torch.arange(B), LENGTHS - 1], rtol=1e-12, atol=1e-12)
    if return_states:
        torch.testing.assert_close(rows._replace(values=states).pad(), want, rtol=1e-12, atol=1e-12)
    else:
        assert states is None


@pytest.mark.parametrize(
    ("cell_type", "cell"), [(AttentionGRUCell, "agru"), (AttentionUpdateGateGRUCell, "augru")]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_is_one_step(cell_type, cell, bias):
    module = cell_type(I, H, bias)
    x, h, att = torch.randn(B, I), torch.randn(B, H), torch.randn(B)
    got = module(x, h, att)
    weights = [module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh]
    assert (weights[2] is None) == (not bias)
    steps = torch.arange(B + 1)
    want = attention_gru(x, att, *weights, h, offsets=steps, cell=cell)[1]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    plain = getattr(reference, cell_type.__name__)(I, H, bias)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(got, plain(x, h, att), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x, h, att[:, None]), got, rtol=0, atol=0)


@pytest.mark.parametrize("cell_type", [AttentionGRUCell, AttentionUpdateGateGRUCell])
def test_initial_parameters_are_uniform(cell_type):
    cell = cell_type(50, 64)
    for parameter in cell.parameters():
        assert 0.95 / 8 < parameter.abs().max() <= 1 / 8
        assert parameter.min() < 0 < parameter.max()


@pytest.mark.parametrize("library", [reference, None], ids=["reference", "fast"])
class TestWrongArguments:
    @pytest.fixture
    def module(self, library):
        return library.DynamicGRU if library else DynamicGRU

    def test_unknown_type(self, module):
        with pytest.raises(NotImplementedError, match=r"gru_type must be one of \['AGRU', 'AUGRU'\], got 'GRU'"):
            module(I, H, gru_type="GRU")

    @pytest.mark.parametrize("name", ["x", "att_scores"])
    def test_not_packed(self, module, name):
        given = {"x": pack(torch.randn(B, T, I)), "att_scores": pack(torch.rand(B, T))}
        given[name] = torch.rand(B, T)
        with pytest.raises(NotImplementedError, match=f"{name} must be a PackedSequence, got Tensor"):
            module(I, H)(**given)

    @pytest.mark.parametrize("lengths", [[3, 1, 5, 2, 4], [4, 1, 4, 2, 5]], ids=["fewer rows", "as many rows"])
    def test_packed_differently(self, module, lengths):
        """Scores packed in another order would silently meet the inputs of other steps."""
        with pytest.raises(ValueError, match=r"att_scores must (have|be packed with)"):
            module(I, H)(pack(torch.randn(B, T, I)), pack(torch.rand(B, T), torch.tensor(lengths)))
