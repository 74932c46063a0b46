"""What must hold for the DIEN of every library; a file for each subclasses this and adds what is its own."""

import copy
import importlib.metadata
import pickle

import peer_models
import pytest
import torch
import torch._dynamo
from equality import assert_equal_runs, classes, pair, randomised, run
from torch.overrides import TorchFunctionMode

import dien_fast
from dien_fast.patches import weights
from dien_fast.patches.swap import Accelerated

LENGTHS = torch.tensor([7, 1, 3, 7, 2, 5])
SIZES = peer_models.Sizes(batch=6, steps=7, size=4, items=11, lengths=LENGTHS)


class Float64(TorchFunctionMode):
    """What a library makes in float32 by name, as targets of a loss, is float64: unpatched it would raise."""

    active = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if self.active and func in (torch.ones, torch.zeros) and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def require(distribution, version):
    """Skip a file unless the library is installed in the version that its patches were compared with."""
    try:
        found = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed; make test-peers installs it", allow_module_level=True)
    if found != version:
        pytest.skip(f"{distribution} must be {version} for these tests, found {found}", allow_module_level=True)


def peer_of(name, sizes=SIZES, **arguments):
    torch.manual_seed(0)
    peer = peer_models.BUILDERS[name](sizes, **arguments)
    return peer._replace(model=randomised(peer.model.to(torch.get_default_dtype())))


class PeerSuite:
    """Subclasses say which library, which variants its builder takes, and what is made fast."""

    name: str
    variants: list[dict]
    fast: set[str]  # paths in the model of the first variant

    @pytest.fixture(autouse=True)
    def _in_float64(self):
        torch.set_default_dtype(torch.float64)
        with Float64() as self.mode:
            yield
        torch.set_default_dtype(torch.float32)

    @pytest.fixture
    def peer(self):
        return peer_of(self.name, **self.variants[0])

    def test_equal(self, subtests):
        for variant in self.variants:
            with subtests.test(**variant):
                plain, fast, report = pair((peer := peer_of(self.name, **variant)).model)
                assert not report.left, str(report)
                for training in (True, False):
                    plain.train(training)
                    fast.train(training)
                    assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    @pytest.mark.parametrize("seed", range(3))
    def test_equal_for_random_lengths(self, seed):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 10, (33,), generator=generator)
        peer = peer_of(self.name, SIZES._replace(batch=33, steps=9, size=5, lengths=lengths), **self.variants[0])
        plain, fast, _ = pair(peer.model)
        assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    def test_what_is_made_fast(self, peer):
        report = dien_fast.accelerate(peer.model)
        assert {entry.path for entry in report.fast} == self.fast
        assert not report.left
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            peer.loss(peer.call(peer.model)).backward()
        assert any(event.key.startswith("dien_fast::attention_gru") for event in profile.key_averages())

    def test_training_steps(self, peer):
        models = [peer.model, copy.deepcopy(peer.model)]
        optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in models]
        dien_fast.accelerate(models[1])
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            losses.append([])
            for _ in range(10):
                loss = peer.loss(peer.call(model))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-8)
        assert losses[0][0] != losses[0][-1]

    def test_float32_is_as_exact_as_the_library(self, peer):
        exact = [value.detach() for value in peer.call(peer.model)]
        self.mode.active = False
        torch.set_default_dtype(torch.float32)
        single = peer_of(self.name, **self.variants[0])
        single.model.load_state_dict(peer.model.state_dict())
        plain, fast, _ = pair(single.model)
        errors = [
            max((a.double() - b).abs().max().item() for a, b in zip(single.call(model), exact, strict=True))
            for model in (plain, fast)
        ]
        assert errors[1] <= 2 * errors[0] + 1e-6

    def test_restore(self, peer):
        before = classes(peer.model)
        with dien_fast.accelerate(peer.model):
            assert classes(peer.model) != before
        assert classes(peer.model) == before
        dien_fast.accelerate(peer.model)
        dien_fast.restore(peer.model)
        assert classes(peer.model) == before

    def test_deepcopy_pickle_and_state_dict(self, peer):
        dien_fast.accelerate(peer.model)
        for entry in sorted(self.fast - {""}):
            part = peer.model.get_submodule(entry)
            for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
                assert classes(twin) == classes(part)
                twin.load_state_dict(part.state_dict(), strict=True)

    def test_a_copy_of_the_whole_model(self, peer):
        dien_fast.accelerate(peer.model)
        twin = copy.deepcopy(peer.model)
        assert classes(twin) == classes(peer.model)
        assert_equal_runs(run(twin, peer.call), run(peer.model, peer.call))

    def test_compile(self, peer):
        plain, fast, _ = pair(peer.model)
        torch._dynamo.reset()
        compiled = torch.compile(fast, backend="eager")
        got = run(compiled, peer.call)
        torch._dynamo.reset()
        gradients = {name.removeprefix("_orig_mod."): value for name, value in got[1].items()}
        outputs, wanted, _ = run(plain, peer.call)
        assert_equal_runs((got[0], gradients, {}), (outputs, wanted, {}))

    def test_models_that_the_library_makes(self):
        before = peer_of(self.name, **self.variants[0]).model
        constructors = {
            cls: cls.__dict__["__init__"] for cls in dien_fast.patches.registry.LIBRARIES[self.name].classes()
        }
        with dien_fast.accelerate(self.name) as report:
            assert {f"{cls.__module__}.{cls.__qualname__}" for cls in constructors} == {
                e.kind for e in report.fast
            }
            assert not dien_fast.accelerate(self.name).fast
            peer = peer_of(self.name, **self.variants[0])
            paths = {path for path, module in peer.model.named_modules() if isinstance(module, Accelerated)}
            assert paths == self.fast
            assert len(report.models) > 0
        assert {cls: cls.__dict__["__init__"] for cls in constructors} == constructors
        after = peer_of(self.name, **self.variants[0]).model
        assert classes(after) == classes(before)
        before.load_state_dict(peer.model.state_dict(), strict=True)
        assert_equal_runs(run(peer.model, peer.call), run(before, peer.call))
        dien_fast.accelerate(self.name)
        dien_fast.restore(self.name)
        dien_fast.restore(self.name)
        assert {cls: cls.__dict__["__init__"] for cls in constructors} == constructors

    def test_other_versions_are_left(self, peer, monkeypatch):
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
        before = classes(peer.model)
        report = dien_fast.accelerate(peer.model)
        assert not report.fast
        assert "found 9.9.9" in str(report)
        assert classes(peer.model) == before
        assert "found 9.9.9" in str(dien_fast.accelerate(self.name))

    def test_weights_go_there_and_back(self, peer):
        cells = [module for module in peer.model.modules() if weights.layout_of(module) is not None]
        assert len(cells) == 1
        read = weights.read_cell(cells[0])
        other = peer_of(self.name, **self.variants[0]).model
        (cell,) = [module for module in other.modules() if weights.layout_of(module) is not None]
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.uniform_(-0.5, 0.5)
        weights.write_cell(read, cell)
        for name, value in cells[0].state_dict().items():
            torch.testing.assert_close(cell.state_dict()[name], value, rtol=1e-12, atol=1e-12)
