"""The rule that `make test-peers` judges by, on curves made here."""

import numpy as np
import pytest
from compare import THREADS, curve, judge

STEPS = np.arange(25)


def run(shift=0.0, auc=0.75, steps=25):
    return {"losses": (1 / (1 + STEPS[:steps]) + shift).tolist(), "auc": auc}


UNPATCHED = dict(zip(THREADS, [run(), run(shift=1e-3, auc=0.751)], strict=True))


def test_curve_is_the_mean_of_ten_steps_and_of_what_is_left():
    np.testing.assert_allclose(curve(STEPS), [4.5, 14.5, 22.0])


def test_within_twice_the_spread_passes():
    accelerated = dict(zip(THREADS, [run(shift=1.9e-3, auc=0.7519), run(shift=-0.9e-3, auc=0.7491)], strict=True))
    wrong, figures = judge(UNPATCHED, accelerated)
    assert wrong == []
    assert figures["loss spread"] == pytest.approx(1e-3)
    assert figures["loss difference, 1"] == pytest.approx(1.9e-3)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (run(shift=-2.1e-3), "losses differ"),
        (run(auc=0.7479), "AUC differs"),
        (run(steps=24), "number of steps"),
        (run(shift=np.nan), "losses differ"),
        (run(auc=np.nan), "AUC differs"),
    ],
)
def test_anything_else_fails(other, reason):
    wrong, _ = judge(UNPATCHED, {1: other, 2: UNPATCHED[2]})
    assert len(wrong) == 1
    assert reason in wrong[0]
