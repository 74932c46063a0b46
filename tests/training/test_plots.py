"""Plots are written as PNG files and show what they are given."""

import numpy as np
import pandas as pd
import pytest

from dien_fast.training import plots

PNG = b"\x89PNG\r\n\x1a\n"
pytestmark = pytest.mark.usefixtures("_rendered")


def history(valid=True):
    epochs = np.arange(1, 8)
    frame = pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "train_auc": 1 - 0.4 / epochs})
    if valid:
        frame["valid_loss"] = 0.2 + 1 / epochs
        frame["valid_auc"] = [0.6, 0.7, 0.75, 0.78, 0.77, 0.76, 0.75]
    return frame


@pytest.mark.parametrize("valid", [True, False])
def test_history_is_drawn(tmp_path, valid):
    paths = plots.plot_history(history(valid), tmp_path)
    assert [path.name for path in paths] == ["loss.png", "auc.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auc.png", "loss.png"]
    for path in paths:
        assert path.read_bytes().startswith(PNG)


def test_a_comparison_is_drawn(tmp_path):
    table = pd.DataFrame({"variant": ["DIN", "DIEN"], "auc": [0.7, 0.72], "auc_std": [0.01, np.nan]})
    assert plots.plot_comparison(table, tmp_path / "table.png").read_bytes().startswith(PNG)


def test_both_pictures_mark_the_epoch_with_the_best_validation_auc():
    for name in ("loss", "auc"):
        _, axes = plots._figure(4, 3)
        plots._draw_curves(axes, history(), name)
        labels = axes.get_legend_handles_labels()[1]
        assert labels[:2] == ["training", "validation"]
        assert labels[2].startswith("best epoch 4: ")


@pytest.mark.parametrize(("candidates", "length"), [(1, 1), (3, 12), (9, 50)])
def test_attention_and_interest_are_drawn(tmp_path, candidates, length):
    rng = np.random.default_rng(0)
    names = [f"item {number} with quite a long name, longer than fits" for number in range(candidates)]
    scores = rng.dirichlet(np.ones(length), size=candidates)
    states = rng.normal(size=(candidates, length, 5)).cumsum(1)
    one = plots.plot_attention(scores, names, [str(step) for step in range(length)], tmp_path / "a.png", "title")
    two = plots.plot_interest(states, names, tmp_path / "b.png", "title")
    assert one.read_bytes().startswith(PNG)
    assert two.read_bytes().startswith(PNG)


def test_the_interest_is_projected_on_its_principal_plane():
    rng = np.random.default_rng(1)
    plane = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    flat = rng.normal(size=(3, 10, 2)) * [5, 1]
    points, share = plots._principal_plane(flat @ plane.T)
    assert share.sum() == pytest.approx(1.0)
    assert share[0] > share[1]
    assert points.shape == (3, 11, 2)
    # Distances survive a projection on the plane the states lie in.
    expected = np.linalg.norm(np.diff(flat, axis=1), axis=2)
    np.testing.assert_allclose(np.linalg.norm(np.diff(points[:, 1:], axis=1), axis=2), expected)


def test_states_that_never_move_or_have_one_dimension_are_drawn():
    points, share = plots._principal_plane(np.zeros((2, 3, 4)))
    assert not points.any()
    assert not share.any()
    points, share = plots._principal_plane(np.arange(6.0).reshape(2, 3, 1))
    assert not points[..., 1].any()
    assert share.tolist() == [1.0, 0.0]


def test_long_names_are_shortened():
    assert plots._shorten("short") == "short"
    assert plots._shorten("x" * 30, 10) == "x" * 9 + "…"


def test_shortening_keeps_the_marks():
    assert plots._shorten("x" * 30 + " (unknown)", 10) == "x" * 9 + "… (unknown)"
    assert plots._shorten("x" * 30 + " (unknown)  (p = 0.12)", 10) == "x" * 9 + "… (unknown)  (p = 0.12)"
    assert plots._shorten("Alien (1979)" + "x" * 30 + "  (p = 0.12)", 10) == "Alien (19…  (p = 0.12)"
