"""What a model is to everybody else survives being accelerated and restored."""

import copy
import gc
import io
import pickle
import subprocess
import sys

import copies
import pytest
import torch
import torch._dynamo
from equality import assert_equal_runs, classes, run
from selection import slow_but
from torch import nn

import dien_fast
from dien_fast.patches.swap import Accelerated

ITEM = torch.tensor([3, 7, 1, 9])
HISTORY = torch.tensor([[4, 5, 6, 2, 1], [3, 0, 0, 0, 0], [8, 9, 0, 0, 0], [1, 2, 3, 4, 5]])
NEGATIVES = torch.tensor([[7, 7, 1, 2, 9], [5, 0, 0, 0, 0], [2, 4, 0, 0, 0], [9, 8, 7, 6, 5]])


@pytest.fixture(params=["AUGRU", "GRU"])
def model(request):
    torch.set_default_dtype(torch.float64)
    yield copies.Model(gru_type=request.param)
    torch.set_default_dtype(torch.float32)


# For tests that take seconds: both kinds of model go the same way through what they test.
ONE_KIND = pytest.mark.parametrize("model", slow_but(["AUGRU"], ["AUGRU", "GRU"]), indirect=True)


def call(model):
    return model(ITEM, HISTORY, NEGATIVES)


def operators(model):
    """Return how often an operator of this package runs in a forward and backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        output, loss = call(model)
        (output.sum() + loss).backward()
    return sum(event.count for event in profile.key_averages() if event.key.startswith("dien_fast::"))


def test_it_is_fast(model):
    assert operators(model) == 0
    assert dien_fast.accelerate(model)
    assert operators(model) > 4


def test_everything_but_the_class(model):
    before = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    dicts = [dict(module.__dict__) for module in model.modules()]
    texts = repr(model), str(type(model.layer))
    report = dien_fast.accelerate(model)
    paths = {entry.path for entry in report.fast}
    assert paths == {"layer", "layer.interest_extractor", "layer.interest_evolution"}
    assert [name for name, _ in model.named_parameters()] == names
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert [dict(module.__dict__) for module in model.modules()] == dicts
    assert (repr(model), str(type(model.layer))) == texts
    assert isinstance(model.layer, copies.Interest)
    assert isinstance(model.layer.interest_extractor, nn.GRU)
    before.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(before.state_dict(), strict=True)
    assert_equal_runs(run(model, call), run(before, call))


def test_restore_by_identity(model):
    before = classes(model)
    report = dien_fast.accelerate(model)
    assert all(issubclass(type(model.get_submodule(entry.path)), Accelerated) for entry in report.fast)
    assert dien_fast.restore(model) is None
    assert classes(model) == before
    assert operators(model) == 0
    dien_fast.restore(model)
    assert classes(model) == before


def test_twice_is_once(model):
    dien_fast.accelerate(model)
    once = classes(model)
    report = dien_fast.accelerate(model)
    assert not report
    assert "3 modules were fast already" in str(report)
    assert classes(model) == once
    with report:
        pass
    assert classes(model) == once


def test_context_manager(model):
    before = classes(model)
    with dien_fast.accelerate(model) as report:
        assert report.fast
        assert operators(model) > 4
    assert classes(model) == before
    with pytest.raises(KeyError), dien_fast.accelerate(model):
        raise KeyError
    assert classes(model) == before


def test_same_classes_for_every_model(model):
    other = copy.deepcopy(model)
    dien_fast.accelerate(model)
    dien_fast.accelerate(other)
    assert classes(model) == classes(other)


def test_modes_dtypes_and_training(model):
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.05) for m in (plain, model)]
    dien_fast.accelerate(model)
    for _ in range(5):
        losses = []
        for trained, optimizer in zip((plain, model), optimizers, strict=True):
            output, loss = call(trained)
            optimizer.zero_grad()
            total = output.square().sum() + loss
            total.backward()
            optimizer.step()
            losses.append(total.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    model.eval()
    plain.eval()
    assert not any(module.training for module in model.modules())
    assert_equal_runs(run(model, call), run(plain, call))
    assert call(model.float())[0].dtype == torch.float32


def test_hooks_of_the_layer_stay(model):
    calls = []
    model.layer.register_forward_hook(lambda *_: calls.append("layer"))
    model.layer.interest_extractor.register_forward_hook(lambda *_: calls.append("extractor"))
    report = dien_fast.accelerate(model)
    assert not calls
    call(model)
    assert calls == ["extractor", "layer"]
    # The layer as a whole would not call its extractor.
    assert {entry.path for entry in report.fast} == {"layer.interest_extractor", "layer.interest_evolution"}
    assert "because interest_extractor has hooks" in str(report)


def test_deepcopy(model):
    dien_fast.accelerate(model)
    twin = copy.deepcopy(model)
    assert classes(twin) == classes(model)
    assert_equal_runs(run(twin, call), run(model, call))
    assert operators(twin) > 4
    dien_fast.restore(twin)
    assert type(twin.layer) is copies.Interest
    assert isinstance(model.layer, Accelerated)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickle(model, protocol):
    dien_fast.accelerate(model)
    twin = pickle.loads(pickle.dumps(model, protocol))
    assert classes(twin) == classes(model)
    assert_equal_runs(run(twin, call), run(model, call))


@pytest.mark.slow  # test_old_pickles.py loads one of these in another process
@ONE_KIND
def test_torch_save_in_another_process(model, tmp_path):
    report = dien_fast.accelerate(model)
    assert "loads where dien_fast is installed; its state_dict needs nothing" in str(report)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); model = torch.load(sys.argv[2], weights_only=False);"
        "print(type(model.layer).__mro__[1].__module__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(copies.__file__).rsplit("/", 1)[0], str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "dien_fast.patches.libraries.article_listing"
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


def test_random_numbers_and_settings_are_not_touched(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    settings = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), nn.GRU.forward)
    dien_fast.accelerate(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        nn.GRU.forward,
    ) == settings
    assert nn.GRU.__init__.__module__ == "torch.nn.modules.rnn"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), lambda: torch.device("meta")],
    ids=["no_grad", "inference_mode", "autocast", "meta"],
)
def test_in_any_context(model, context):
    with context():
        report = dien_fast.accelerate(model)
    assert len(report.fast) == 3, str(report)


def test_on_the_meta_device(model):
    report = dien_fast.accelerate(model.to("meta"))
    assert len(report.fast) == 3, str(report)
    model.to_empty(device="cpu")


def test_what_is_put_on_top_is_not_lost(model):
    dien_fast.accelerate(model)
    gru = model.layer.interest_extractor
    nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    with pytest.warns(RuntimeWarning, match="cannot restore a ParametrizedGRU whose class was changed"):
        dien_fast.restore(model)
    assert nn.utils.parametrize.is_parametrized(gru)
    call(model)


def test_reference_backend_runs_the_original(model):
    plain = copy.deepcopy(model)
    with dien_fast.use_backend("reference"):
        report = dien_fast.accelerate(model)
    assert len(report.fast) == 3
    assert "until another is chosen the original code runs" in str(report)
    with dien_fast.use_backend("reference"):
        assert_equal_runs(run(model, call), run(plain, call), outputs=0, gradients=0)
        assert operators(model) == 0


def test_autocast(model):
    model.float()
    plain = copy.deepcopy(model)
    dien_fast.accelerate(model)
    with torch.autocast("cpu"):
        got, want = call(model), call(plain)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_functional_call(model):
    dien_fast.accelerate(model)
    values = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    plain = copy.deepcopy(model)
    plain.load_state_dict(values, strict=False)
    want = call(plain)
    got = torch.func.functional_call(model, values, (ITEM, HISTORY, NEGATIVES))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_compile(model):
    plain = copy.deepcopy(model)
    dien_fast.accelerate(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    got, want = run(compiled, call), run(plain, call)
    torch._dynamo.reset()
    assert_equal_runs(
        (got[0], {name.removeprefix("_orig_mod."): g for name, g in got[1].items()}, {}), (*want[:2], {})
    )


def compare_distributed(model):
    plain = copy.deepcopy(model)
    dien_fast.accelerate(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    output, loss = call(parallel)
    (output.sum() + loss).backward()
    plain_output, plain_loss = call(plain)
    (plain_output.sum() + plain_loss).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    dien_fast.restore(parallel)
    assert type(model.layer) is copies.Interest


def test_distributed(model, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        compare_distributed(model)
    finally:
        # A parallel model that outlives the group would end it later, and may then wait for a thread of gloo's
        # that waits for Python.
        gc.collect()
        torch.distributed.destroy_process_group()


def test_report_reads_well(model):
    text = str(dien_fast.accelerate(model))
    assert text.startswith("copies.Model: 3 made fast, 0 left\n  fast  layer: copies.Interest: interest layer")
