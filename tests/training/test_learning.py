"""DIEN and DSIN find planted, drifting interests: their AUC comes close to the best that any model can reach."""

import pytest

from dien_fast.data import fit_encoders, shuffle_histories, synthetic_clicks
from dien_fast.data.sources import Parts
from dien_fast.training import evaluate, fit, seed_everything
from dien_fast.training.metrics import auc
from dien_fast.training.pipeline import make_loaders
from dien_fast.training.runs import RunConfig, build_model, schema_for


def trained_auc(table, schema, epochs, model="dien"):
    """Train on three quarters of the rows; return the test AUC and the test rows."""
    schema = schema_for(model, schema)
    rows = table.num_rows
    parts = [table.slice(0, rows * 3 // 4), table.slice(rows * 3 // 4, rows // 12), table.slice(rows * 5 // 6)]
    encoders = fit_encoders(parts[0], schema)
    dropout = {"attention_dropout": 0.0, "mlp_dropout": 0.0}
    config = RunConfig(schema=schema.to_dict(), model=model, batch_size=256, **dropout)
    tables = Parts(*parts, schema, ("training", "validation", "test"))
    train, valid, test = make_loaders(tables, schema, encoders, config)
    seed_everything(0, 0)
    network = build_model(config, encoders)
    settings = {"lr": 0.01, "weight_decay": 0.0, "aux_weight": 0.3, "cpu": True, "progress": False}
    fit(network, train, valid, epochs=epochs, log=lambda line: None, **settings)
    return evaluate(network, test)["auc"], parts[2]


@pytest.mark.long
def test_dien_reaches_the_best_auc_within_0_01_and_not_with_shuffled_histories():
    clicks = synthetic_clicks(rows=48_000, items=30, topics=5, drift=0.15)
    reached, test = trained_auc(clicks.table, clicks.schema, epochs=5)
    best = auc(test["label"].to_numpy(), test["bestProbability"].to_numpy())
    # Seen: 0.0067 below the best with the native kernels, 0.0059 with the reference.
    assert best - 0.01 < reached < best + 0.005
    # The order of the clicks is what tells the current interest from an earlier one.
    # Seen: 0.11 below after two epochs, 0.08 below after six.
    shuffled, _ = trained_auc(shuffle_histories(clicks.table), clicks.schema, epochs=2)
    assert shuffled < reached - 0.05


@pytest.mark.long
def test_dsin_learns_the_drift_from_sessions_that_din_does_not_see():
    clicks = synthetic_clicks(rows=16_000, items=30, topics=5, drift=0.15)
    reached, test = trained_auc(clicks.table, clicks.schema, epochs=3, model="dsin")
    other, _ = trained_auc(clicks.table, clicks.schema, epochs=3, model="din")
    best = auc(test["label"].to_numpy(), test["bestProbabilityInTime"].to_numpy())
    # Seen: 0.865 and 0.765, and 0.904 for the best.
    assert other + 0.05 < reached < best + 0.005
