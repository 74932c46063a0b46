"""The CUDA kernels on a GPU, over the public functions; test_cuda_emulated.py runs them without one."""

import copy

import pytest
import torch
from comparison import assert_within_twice
from cuda_cases import DTYPES, LAYOUTS, SHAPES, make, reference
from cuda_cases import incoming as incoming_gradients

import dien_fast
from dien_fast import Interest, Ragged
from dien_fast.functional import GATES, attention_gru
from dien_fast.ops import backend, layouts

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA"),
]


def on_gpu(values):
    return {
        name: value.detach().cuda().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in values.items()
    }


def arguments_on_gpu(arguments):
    return {name: value if name == "batch_sizes" else value.cuda() for name, value in arguments.items()}


def eager(leaves, arguments, cell, gradients):
    """What the loop gives on the same device in the same type, on the CPU."""
    dtype = leaves["x"].dtype
    found = reference(on_gpu(leaves), arguments_on_gpu(arguments), cell, on_gpu(gradients), dtype)
    return {name: value.cpu() for name, value in found.items()}


def native(leaves, arguments, cell, gradients):
    """States, last states and every gradient of the kernels, on the CPU."""
    leaves, gradients = on_gpu(leaves), on_gpu(gradients)
    arguments = arguments_on_gpu(arguments)
    with dien_fast.use_backend("native"):
        states, last = attention_gru(**leaves, **arguments, cell=cell)
        outputs = [(states, gradients["dstates"]), (last, gradients["dlast"])]
        outputs = [
            (value, gradient) for value, gradient in outputs if gradient is not None and value.requires_grad
        ]
        given = {name: value for name, value in leaves.items() if value is not None}
        values, weights = zip(*outputs, strict=True)
        found = torch.autograd.grad(values, list(given.values()), weights)
    got = {"states": states.detach(), "last": last.detach()}
    got |= {f"d{name}": gradient for name, gradient in zip(given, found, strict=True)}
    return {name: value.cpu() for name, value in got.items()}


def test_library_was_built():
    """Otherwise every test here would compare the reference with itself."""
    assert backend.CUDA_LOADED, f"{backend.CUDA_LIBRARY.name} was not built or cannot be loaded"
    assert "CUDA" in str(dien_fast.backend())


@pytest.mark.parametrize("shape", [*SHAPES, (300, 9, 64, 64), (2, 3, 8, 1024)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", GATES)
def test_against_reference(cell, layout, dtype, shape):
    leaves, arguments = make(shape, cell, layout, dtype)
    gradients = incoming_gradients(leaves, arguments)
    got = native(leaves, arguments, cell, gradients)
    exact = reference(leaves, arguments, cell, gradients, torch.float64)
    if dtype == torch.float64:
        for name, value in exact.items():
            scale = max(1.0, value.abs().max().item())
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-11 * scale, msg=name)
    else:
        # Sums of 3,072 terms are added up one after the other here, which cuBLAS does not do.
        most = 1.5 if shape[3] == 1024 else 1
        assert_within_twice(got, eager(leaves, arguments, cell, gradients), exact, most)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_each_time(layout):
    leaves, arguments = make((300, 40, 32, 64), "augru", layout, torch.float32)
    gradients = incoming_gradients(leaves, arguments)
    first = native(leaves, arguments, "augru", gradients)
    for _ in range(5):
        for name, value in native(leaves, arguments, "augru", gradients).items():
            assert torch.equal(value, first[name]), name


@pytest.fixture
def _no_synchronization():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits_for_the_device(layout, dtype, request):
    leaves, arguments = make((30, 12, 16, 32), "augru", layout, dtype)
    leaves, arguments = on_gpu(leaves), arguments_on_gpu(arguments)
    request.getfixturevalue("_no_synchronization")
    states, last = attention_gru(**leaves, **arguments)
    (states.sum() + last.sum()).backward()


def test_graph_capture():
    """Forward and backward, replayed with other numbers and other lengths."""
    leaves, arguments = make((40, 15, 16, 32), "augru", "padded", torch.float32)
    leaves, lengths = on_gpu(leaves), arguments["lengths"].cuda()
    for name in ("x", "att"):
        leaves[name] = leaves[name].detach().nan_to_num().requires_grad_()

    def step():
        states, last = attention_gru(**leaves, lengths=lengths)
        given = [value for value in leaves.values() if value is not None]
        return states, last, *torch.autograd.grad(states.square().sum() + last.sum(), given)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for value in leaves.values():
            value.copy_(value.roll(1, 0))
        lengths.copy_(lengths.roll(7))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [value.clone() for value in captured]
    for got, want in zip(replayed, step(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_stream(layout):
    leaves, arguments = make((50, 30, 16, 32), "augru", layout, torch.float32)
    gradients = incoming_gradients(leaves, arguments)
    want = native(leaves, arguments, "augru", gradients)
    with torch.cuda.stream(torch.cuda.Stream()):
        got = native(leaves, arguments, "augru", gradients)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_other_device():
    leaves, arguments = make((9, 6, 4, 8), "augru", "ragged", torch.float32)
    leaves = {name: value.detach().to("cuda:1") for name, value in leaves.items()}
    states, _ = attention_gru(**leaves, offsets=arguments["offsets"])  # on the host, and cuda:0 is current
    assert states.device == torch.device("cuda:1")
    assert states.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lengths_of_any_kind(dtype, device):
    leaves, arguments = make((9, 6, 4, 8), "augru", "padded", torch.float32)
    leaves, lengths = on_gpu(leaves), arguments["lengths"]
    want = attention_gru(**leaves, lengths=lengths.cuda())
    got = attention_gru(**leaves, lengths=lengths.to(device, dtype))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_lengths_beyond_the_rows(monkeypatch):
    """Cut, or refused where a check is asked for."""
    leaves, arguments = make((9, 6, 4, 8), "augru", "padded", torch.float32)
    leaves, lengths = on_gpu(leaves), arguments["lengths"].cuda()
    leaves["x"] = leaves["x"].detach().nan_to_num()
    leaves["att"] = leaves["att"].detach().nan_to_num()
    got = attention_gru(**leaves, lengths=lengths + 3)
    want = attention_gru(**leaves, lengths=(lengths + 3).clamp(max=6))
    assert torch.equal(got[0], want[0])
    monkeypatch.setattr(layouts, "CHECK", True)
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 6\]"):
        attention_gru(**leaves, lengths=lengths + 3)


def test_wrong_arguments():
    leaves, arguments = make((9, 6, 4, 8), "augru", "padded", torch.float32)
    leaves = on_gpu(leaves)
    with pytest.raises(ValueError, match=r"att must have shape \(9, 6\), got \(9, 5\)"):
        attention_gru(**leaves | {"att": leaves["att"][:, :5]}, **arguments)
    with pytest.raises(ValueError, match="h0 must be on cuda:0 as x is, got cpu"):
        attention_gru(**leaves | {"h0": leaves["h0"].cpu()}, **arguments)


def test_more_rows_than_a_chunk():
    """A few chunks of 256 MiB."""
    leaves, arguments = make((2000, 100, 8, 256), "agru", "ragged", torch.float32)
    gradients = incoming_gradients(leaves, arguments)
    got = native(leaves, arguments, "agru", gradients)
    with dien_fast.use_backend("reference"):
        want = reference(on_gpu(leaves), on_gpu(arguments), "agru", on_gpu(gradients), torch.float64)
    for name, value in want.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(got[name].double(), value.cpu(), rtol=0, atol=2e-5 * scale, msg=name)


def test_autocast():
    leaves, arguments = make((9, 6, 4, 8), "augru", "ragged", torch.float32)
    leaves, offsets = on_gpu(leaves), arguments["offsets"].cuda()
    with torch.autocast("cuda", torch.bfloat16):
        states, _ = attention_gru(**leaves | {"x": leaves["x"].bfloat16()}, offsets=offsets)
    assert states.dtype == torch.float32
    states.sum().backward()


def test_compile():
    leaves, arguments = make((9, 6, 4, 8), "augru", "padded", torch.float32)
    leaves, lengths = on_gpu(leaves), arguments["lengths"].cuda()

    def call(x):
        return attention_gru(**leaves | {"x": x}, lengths=lengths)[0] * 2

    torch.testing.assert_close(torch.compile(call, fullgraph=True)(leaves["x"]), call(leaves["x"]))


@pytest.mark.parametrize("gru_type", ["GRU", "AIGRU", "AGRU", "AUGRU"])
@pytest.mark.parametrize("ragged", [False, True])
def test_interest(gru_type, ragged):
    """The whole layer beside itself on the CPU."""
    on_cpu = Interest(8, gru_type=gru_type, use_negsampling=True)
    on_cuda = copy.deepcopy(on_cpu).cuda()
    query, keys, negatives = torch.randn(6, 8), torch.randn(6, 7, 8), torch.randn(6, 7, 8)
    lengths = torch.tensor([7, 0, 1, 3, 7, 2])
    outcomes = []
    for layer, device in ((on_cpu, "cpu"), (on_cuda, "cuda")):
        inputs = [value.to(device) for value in (query, keys, lengths, negatives)]
        if ragged:
            valid = torch.arange(7) < lengths.unsqueeze(1)
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(device)
            rows = [Ragged(value[valid].to(device), offsets, 7) for value in (keys, negatives)]
            inputs = [query.to(device), rows[0], None, rows[1]]
        output, loss = layer(*inputs)
        (output.square().sum() + loss).backward()
        outcomes.append([output, loss, *(value.grad for value in layer.parameters())])
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-4)
