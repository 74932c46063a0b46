"""The interest layer's operators on a GPU, beside themselves on the CPU."""

from dataclasses import replace

import pytest
import torch
from comparison import assert_same
from interest_cases import (
    KIND_NAMES,
    KINDS,
    LOSS_SHAPES,
    ROW_LENGTHS,
    SHAPES,
    SOME,
    Pairs,
    draw,
    native,
    native_loss,
    offsets_of,
    outcome,
    pairs,
    plain_padded,
    plain_sum,
    scoring,
    scoring_of,
    seeded,
    shared_keys,
)

from dien_fast import Interest, Ragged
from dien_fast.ops import attention_scores, auxiliary_loss, rows

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA"),
]


def moved(value):
    return value.detach().cuda().requires_grad_(value.requires_grad)


def scores_on_gpu(s):
    parameters, running = ([moved(value) for value in values] for values in (s.mlp.parameters, s.mlp.running))
    mlp = s.mlp._replace(parameters=parameters, running=running)
    return replace(s, query=moved(s.query), keys=moved(s.keys), offsets=s.offsets.cuda(), mlp=mlp)


def pairs_on_gpu(p):
    return Pairs([moved(value) for value in p.rows], p.offsets.cuda(), [moved(value) for value in p.parameters])


def on_cpu(found):
    return {name: value.cpu() for name, value in found.items()}


def scores_outcome(s, seed=None):
    """As ``outcome`` of interest_cases, whose random numbers are the CPU's."""
    compute = native if seed is None else lambda s: seeded(s, seed)
    scores, statistics = compute(s)
    weight = draw(*scores.shape, generator=torch.Generator().manual_seed(5)).to(scores)
    gradients = torch.autograd.grad((scores * weight).sum(), list(s.leaves().values()))
    named = {f"gradient of {name}": value for name, value in zip(s.leaves(), gradients, strict=True)}
    return on_cpu({"scores": scores.detach(), "statistics": statistics} | named)


def test_kernels_are_there():
    """Otherwise the layer would run plain PyTorch."""
    for kernels in (attention_scores.KERNELS, auxiliary_loss.KERNELS, rows.SUM_KERNELS, rows.PAD_KERNELS):
        assert kernels.take(torch.zeros(2, device="cuda"))


@pytest.mark.parametrize(("activation", "norm", "training"), KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores(shape, activation, norm, training):
    s = scoring_of(shape, activation, norm, training)
    assert_same(scores_outcome(scores_on_gpu(s)), outcome(native, s), 1e-9, 1e-9)


def test_scores_with_dropout():
    s = scoring([60, 3, 0, 41, 130], 130, 18, (36, 20), dropout=0.3)
    seed = torch.tensor([11])
    want = outcome(lambda s: seeded(s, seed), s)
    assert_same(scores_outcome(scores_on_gpu(s), seed.cuda()), want, 1e-9, 1e-9)


def test_scores_of_shared_keys():
    s, repeated = shared_keys()
    on_gpu = scores_on_gpu(s)
    starts = torch.tensor([10, 999, 0, 10, 67, 5]).cuda()
    with torch.no_grad():
        arguments = (on_gpu.query, on_gpu.keys, on_gpu.offsets, s.max_length, on_gpu.mlp, starts)
        scores, _ = attention_scores.attention_scores(*arguments)
    torch.testing.assert_close(scores.cpu(), native(repeated)[0].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", LOSS_SHAPES)
def test_loss(shape):
    p = pairs(*LOSS_SHAPES[shape])
    loss = native_loss(pairs_on_gpu(p))
    torch.testing.assert_close(loss.cpu(), native_loss(p), rtol=1e-9, atol=1e-9)
    on_gpu = pairs_on_gpu(p)
    gradients = torch.autograd.grad(3 * native_loss(on_gpu), list(on_gpu.leaves().values()))
    want = torch.autograd.grad(3 * native_loss(p), list(p.leaves().values()))
    for name, one, other in zip(p.leaves(), gradients, want, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-9, msg=name)


def test_more_rows_than_a_chunk():
    """Two chunks of 256 MiB, in float32."""
    p = pairs([500] * 500, 8, (100, 50), torch.float32)
    on_gpu = pairs_on_gpu(p)
    gradients = torch.autograd.grad(native_loss(on_gpu), list(on_gpu.leaves().values()))
    want = torch.autograd.grad(native_loss(p), list(p.leaves().values()))
    for name, one, other in zip(p.leaves(), gradients, want, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("shape", ROW_LENGTHS)
def test_rows(shape):
    lengths, steps = ROW_LENGTHS[shape]
    offsets, values, weights = offsets_of(lengths), draw(sum(lengths), 18), draw(sum(lengths))
    padded = rows.padded_from_rows(values.cuda(), offsets.cuda(), steps)
    assert torch.equal(padded.cpu(), plain_padded(values, offsets, steps))
    total = rows.weighted_sum(values.cuda(), weights.cuda(), offsets.cuda())
    torch.testing.assert_close(total.cpu(), plain_sum(values, weights, offsets), rtol=1e-9, atol=1e-9)


def layer_and_inputs():
    torch.manual_seed(0)
    layer = Interest(32, use_negsampling=True, att_activation="dice", att_dropout=0.2).cuda()
    offsets = offsets_of([9, 0, 40, 1, 77]).cuda()
    keys, negatives = (Ragged(torch.randn(127, 32, device="cuda"), offsets, 77) for _ in range(2))
    return layer, (torch.randn(5, 32, device="cuda"), keys, None, negatives)


def gradients_of(layer, inputs):
    interest, loss = layer(*inputs)
    return torch.autograd.grad(interest.square().sum() + loss, list(layer.parameters()))


def test_nothing_waits_for_the_device():
    layer, inputs = layer_and_inputs()
    gradients_of(layer, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients_of(layer, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_same_bits_each_time():
    layer, inputs = layer_and_inputs()
    runs = []
    for _ in range(5):
        torch.manual_seed(1)
        runs.append(gradients_of(layer, inputs))
    for run in runs[1:]:
        for one, other in zip(run, runs[0], strict=True):
            assert torch.equal(one, other)


def test_graph_capture():
    """Forward and backward of the operators, replayed with other numbers and other lengths."""
    s = scores_on_gpu(scoring(SOME, 8, dtype=torch.float32))
    p = pairs_on_gpu(pairs(SOME, dtype=torch.float32))
    leaves = [*s.leaves().values(), *p.leaves().values()]

    def step():
        scores, _ = native(s)
        return torch.autograd.grad(scores.square().sum() + native_loss(p), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(leaf.roll(1, 0))
        for offsets in (s.offsets, p.offsets):
            offsets.copy_(offsets_of(SOME[::-1]))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [value.clone() for value in captured]
    for got, want in zip(replayed, step(), strict=True):
        assert torch.equal(got, want)
