"""Which trainings a comparison needs, and the statistics of what came out."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dien_fast.errors import DienFastError
from dien_fast.training.comparison import Variant, interval, markdown, summary, variants


def test_settings_are_varied_where_they_concern_the_model():
    found = variants(
        ["din", "dien"], {"gru_type": ["GRU", "AUGRU"], "negatives": ["uniform", "none"], "lr": ["0.1"]}
    )
    assert [variant.name for variant in found] == [
        "DIN, lr 0.1",
        "DIEN, gru_type GRU, negatives uniform, lr 0.1",
        "DIEN, gru_type GRU, negatives none, lr 0.1",
        "DIEN, gru_type AUGRU, negatives uniform, lr 0.1",
        "DIEN, gru_type AUGRU, negatives none, lr 0.1",
    ]
    assert len({variant.slug for variant in found}) == 5


def test_options_of_a_variant():
    variant = Variant(
        "dien", (("mlp_hidden", "32+16"), ("exclude_clicked", "true"), ("separate_embeddings", "false"))
    )
    assert variant.options() == ["--model", "dien", "--mlp-hidden", "32,16", "--exclude-clicked"]


@pytest.mark.parametrize(
    ("models", "vary", "message"),
    [
        (["din", "gru4rec"], {}, "models must be among .*, got 'gru4rec'"),
        (["din"], {"gru_type": ["GRU"]}, "gru_type is no setting of din"),
        (["din"], {"negatives": ["none"]}, "negatives is no setting of din"),
    ],
)
def test_unknown_models_and_settings_are_named(models, vary, message):
    with pytest.raises(DienFastError, match=message):
        variants(models, vary)


def results(**auc):
    """Trainings with these AUCs, seed 0 first."""
    rows = [
        {
            "variant": name,
            "seed": seed,
            "test_auc": value,
            "test_gauc": value - 0.1,
            "test_logloss": 1 - value,
            "epochs": 3 + seed,
            "epoch_seconds": 1.0 + seed,
        }
        for name, values in auc.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_means_spreads_and_paired_differences():
    first, second = np.array([0.70, 0.75, 0.72]), np.array([0.73, 0.77, 0.76])
    table = summary(results(DIN=first, DIEN=second), "DIN").set_index("variant")
    row = table.loc["DIEN"]
    assert row["auc"] == pytest.approx(second.mean())
    assert row["auc_std"] == pytest.approx(second.std(ddof=1))
    assert row["difference"] == pytest.approx((second - first).mean())
    # SciPy's test of paired samples has the same interval.
    bounds = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx(bounds)
    assert row["improvement"] == pytest.approx(100 * ((second.mean() - 0.5) / (first.mean() - 0.5) - 1))
    assert (row["epochs"], row["epoch_seconds"], row["seeds"]) == (4, 2, 3)
    assert table.loc["DIN", "difference"] == 0
    assert np.isnan(table.loc["DIN", "low"])


def test_a_seed_that_the_baseline_lacks_is_not_compared():
    table = summary(results(DIN=[0.7, 0.8], DIEN=[0.71, 0.83, 0.9]), "DIN").set_index("variant")
    assert table.loc["DIEN", "auc"] == pytest.approx((0.71 + 0.83 + 0.9) / 3)
    assert table.loc["DIEN", "difference"] == pytest.approx(0.02)


def test_one_seed_has_no_interval():
    table = summary(results(DIN=[0.7], DIEN=[0.71]), "DIN")
    assert np.isnan(interval(np.array([0.01]))).all()
    lines = markdown(table).splitlines()
    assert lines[2].startswith("| DIN | 0.7000 | +0.0000 | +0.0 % | 0.6000 | 0.3000 | 3.0 | 1.0 |")
    assert lines[3].startswith("| DIEN | 0.7100 | +0.0100 | +5.0 % |")


def test_differences_are_shown_with_sign_and_interval():
    lines = markdown(summary(results(DIN=[0.7, 0.8], DIEN=[0.69, 0.77]), "DIN")).splitlines()
    assert "| -0.0200 (-0.1471 to +0.1071) | -8.0 % |" in lines[3]
