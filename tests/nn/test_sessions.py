"""The session layer against its definition, user by user, and without loops in Python."""

import pytest
import torch
import torch.nn.functional as F
from session_loop import expected
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from dien_fast import Ragged
from dien_fast.nn.sessions import SessionInterest

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def batch(depth=8, seed=0, users=(6, 0, 1, 9, 4), dtype=torch.float64):
    """Candidates, events and the numbers of their sessions, of one to five events each."""
    generator = torch.Generator().manual_seed(seed)
    offsets = F.pad(torch.tensor(users, dtype=torch.int64).cumsum(0), (1, 0))
    rows = int(offsets[-1])
    sessions = torch.randint(0, 2, (rows,), generator=generator).cumsum(0)
    values = torch.randn(rows, depth, generator=generator, dtype=dtype)
    query = torch.randn(len(users), depth, generator=generator, dtype=dtype)
    return query, Ragged(values, offsets, 10), sessions


def layer_of(**options):
    torch.manual_seed(1)
    layer = SessionInterest(8, **({"heads": 2, "dropout": 0.0} | options)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize(
    "options",
    [{}, {"blinding": False}, {"bias_encoding": False}, {"heads": 8}, {"max_sessions": 2, "max_events": 2}],
    ids=str,
)
def test_equals_its_definition(options):
    layer, arguments = layer_of(**options), batch()
    torch.testing.assert_close(layer(*arguments), expected(layer, *arguments), rtol=1e-12, atol=1e-12)


def test_gradients_equal_those_of_the_definition():
    layer, (query, keys, sessions) = layer_of(), batch()
    leaves = [query.requires_grad_(), keys.values.requires_grad_(), *layer.parameters()]
    weights = torch.randn(len(query), 16, dtype=torch.float64)
    outcomes = [function(query, keys, sessions) for function in (layer, lambda *a: expected(layer, *a))]
    got, wanted = (torch.autograd.grad((outcome * weights).sum(), leaves) for outcome in outcomes)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    layer, (query, keys, sessions) = layer_of(max_sessions=3, max_events=3), batch(users=(4, 0, 2))
    query, values = query.requires_grad_(), keys.values.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, v: layer(q, keys._replace(values=v), sessions), (query, values))


def test_users_without_events():
    layer, arguments = layer_of(), batch(users=(0, 0, 0))
    outcome = layer(*arguments)
    assert outcome.tolist() == torch.zeros(3, 16).tolist()
    outcome.sum().backward()


def test_a_batch_without_users():
    assert layer_of()(*batch(users=())).shape == (0, 16)


def test_users_do_not_see_one_another():
    layer, (query, keys, sessions) = layer_of(), batch()
    values = keys.values.clone()
    values[: keys.offsets[1]] = float("nan")
    poisoned = layer(query, keys._replace(values=values), sessions)
    torch.testing.assert_close(poisoned[1:], layer(query, keys, sessions)[1:])
    assert poisoned[0].isnan().all()


class Calls(TorchFunctionMode):
    """Counts the calls of torch that Python makes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.count += 1
        return function(*arguments, **(options or {}))


def test_python_loops_over_neither_sessions_nor_events():
    layer = layer_of(max_sessions=50, max_events=50)
    counts = []
    for users in ((3, 4), (40, 45, 30)):
        arguments = batch(users=users)
        with Calls() as calls:
            layer(*arguments)
        counts.append(calls.count)
    assert counts[0] == counts[1] > 0


def trained_on(device, users):
    """Return output and gradients ``{name: tensor}`` of a step on a device, and how many operators it took."""
    layer, (query, keys, sessions) = layer_of(max_sessions=50, max_events=50).to(device), batch(users=users)
    query, values = (given.to(device).requires_grad_() for given in (query, keys.values))
    leaves = {"query": query, "events": values} | dict(layer.named_parameters())
    with profile(activities=[ProfilerActivity.CPU]) as found:
        output = layer(query, Ragged(values, keys.offsets.to(device), 50), sessions.to(device))
        gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()))
    outcome = {"output": output} | dict(zip(leaves, gradients, strict=True))
    count = sum(event.count for event in found.key_averages() if event.key.startswith("aten::"))
    return {name: value.detach().cpu() for name, value in outcome.items()}, count


@pytest.mark.parametrize("device", DEVICES)
def test_no_device_loops_over_sessions_or_events(device):
    few, count = trained_on(device, (3, 4, 2))
    for name, value in trained_on("cpu", (3, 4, 2))[0].items():
        torch.testing.assert_close(few[name], value, rtol=1e-9, atol=1e-9, msg=name)
    assert trained_on(device, (40, 45, 30))[1] == count > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, s: (q[1:], k, s), r"query must have shape \(5, 8\), got \(4, 8\)"),
        (lambda q, k, s: (q, k, s[1:]), r"sessions must have shape \(20,\), got \(19,\)"),
    ],
)
def test_wrong_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        layer_of()(*change(*batch()))


def test_heads_divide_the_size():
    with pytest.raises(ValueError, match="input_size must be a multiple of heads, 3, got 8"):
        SessionInterest(8, heads=3)
