"""The rule that `make test-peers` judges by, on curves made here."""

import numpy as np
import pytest
from compare import RUNS, curve, judge

STEPS = np.arange(25)


def run(shift=0.0, auc=0.75, steps=25, first=1.0, fast=("Interest",), left=()):
    losses = 1 / (1 + STEPS[:steps]) + shift
    losses[0] = first
    return {"losses": losses.tolist(), "auc": auc, "fast": fast, "left": left}


def results(accelerated):
    """Unpatched trainings that differ by 1e-3 in loss and AUC, and an accelerated one in place of both."""
    unpatched = iter([run(), run(shift=1e-3, auc=0.751), run(shift=0.5e-3, auc=0.7505)])
    return {name: [accelerated if kind.accelerated else next(unpatched)] for name, kind in RUNS.items()}


def test_curve_is_the_mean_of_ten_steps_and_of_what_is_left():
    np.testing.assert_allclose(curve(STEPS), [4.5, 14.5, 22.0])


def test_within_twice_the_spread_passes():
    wrong, figures = judge(results(run(shift=-0.9e-3, auc=0.7491)))
    assert wrong == []
    assert figures["unpatched"] == pytest.approx({"loss": 1e-3, "AUC": 1e-3})
    assert figures["limits"] == pytest.approx({"loss": 2e-3, "AUC": 2e-3})
    assert figures["accelerated, 1 thread"] == pytest.approx(
        {"loss": 0.9e-3, "AUC": 0.9e-3, "first loss, relative": 0}
    )
    assert figures["accelerated, 2 threads"]["loss"] == pytest.approx(1.9e-3)


@pytest.mark.parametrize(
    ("accelerated", "reason"),
    [
        (run(shift=-1.1e-3), "accelerated, 2 threads: losses differ"),
        (run(shift=2.1e-3), "accelerated, 1 thread: losses differ"),
        (run(auc=0.7489), "accelerated, 2 threads: AUC differs"),
        (run(first=1.0001), "the first losses differ"),
        (run(fast=()), "accelerated, 1 thread: not made fast: anything"),
        (run(left=("Attention: dropout",)), "accelerated, 1 thread: not made fast: Attention"),
        (run(steps=24), "number of steps"),
        (run(shift=np.nan), "losses differ"),
        (run(auc=np.nan), "AUC differs"),
    ],
)
def test_anything_else_fails(accelerated, reason):
    wrong, _ = judge(results(accelerated))
    assert any(reason in sentence for sentence in wrong)


def several_seeds(accelerated):
    """Unpatched trainings of two seeds: of one thread and of two they differ by 1e-3 on average."""
    return {
        "unpatched, 1 thread": [run(), run()],
        "accelerated, 1 thread": accelerated,
        "unpatched, 2 threads": [run(shift=2e-3, auc=0.752), run()],
        "accelerated, 2 threads": [run(), run()],
    }


def test_differences_are_means_over_seeds():
    wrong, figures = judge(several_seeds([run(shift=3.9e-3, auc=0.7539), run()]))
    assert wrong == []
    assert figures["limits"] == pytest.approx({"loss": 2e-3, "AUC": 2e-3})
    assert figures["accelerated, 1 thread"]["AUC"] == pytest.approx(1.95e-3)


@pytest.mark.parametrize(
    ("accelerated", "reason"),
    [
        ([run(), run(shift=4.1e-3)], "accelerated, 1 thread: losses differ"),
        ([run(), run(auc=0.7541)], "accelerated, 1 thread: AUC differs"),
        ([run(), run(first=1.0001)], "the first losses differ"),
        ([run(), run(fast=())], "accelerated, 1 thread: not made fast: anything"),
        ([run(left=("Attention: dropout",)), run()], "accelerated, 1 thread: not made fast: Attention"),
        ([run(), run(steps=24)], "number of steps"),
    ],
)
def test_any_seed_can_fail(accelerated, reason):
    wrong, _ = judge(several_seeds(accelerated))
    assert any(reason in sentence for sentence in wrong)


def test_no_floor_for_the_auc_of_several_seeds():
    found = {name: [run(), run()] for name, kind in RUNS.items() if not kind.environment}
    found["accelerated, 1 thread"] = [run(), run(auc=0.7501)]
    assert judge(found)[0] == ["accelerated, 1 thread: AUC differs by 5.00e-05, the limit is 0.00e+00"]
