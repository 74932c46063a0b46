"""DIEN and DSIN find planted, drifting interests: their AUC comes close to the best that any model can reach."""

from statistics import mean

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import Events, Schema, fit_encoders, next_clicks, shuffle_histories, synthetic_clicks
from dien_fast.data.sources import Parts
from dien_fast.training import evaluate, fit, seed_everything
from dien_fast.training.metrics import auc
from dien_fast.training.pipeline import make_loaders
from dien_fast.training.runs import RunConfig, build_model, schema_for


def trained_auc(table, schema, epochs, model="dien", seed=0, aux_weight=0.3):
    """Train on three quarters of the rows; return the test AUC and the test rows."""
    schema = schema_for(model, schema)
    rows = table.num_rows
    parts = [table.slice(0, rows * 3 // 4), table.slice(rows * 3 // 4, rows // 12), table.slice(rows * 5 // 6)]
    encoders = fit_encoders(parts[0], schema)
    dropout = {"attention_dropout": 0.0, "mlp_dropout": 0.0}
    config = RunConfig(schema=schema.to_dict(), model=model, batch_size=256, seed=seed, **dropout)
    tables = Parts(*parts, schema, ("training", "validation", "test"))
    train, valid, test = make_loaders(tables, schema, encoders, config)
    seed_everything(seed, 0)
    network = build_model(config, encoders)
    settings = {"lr": 0.01, "weight_decay": 0.0, "aux_weight": aux_weight, "cpu": True, "progress": False}
    fit(network, train, valid, epochs=epochs, seed=seed, log=lambda line: None, **settings)
    return evaluate(network, test)["auc"], parts[2]


@pytest.mark.slow
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
def test_dien_beats_din_where_interests_drift():
    clicks = synthetic_clicks(rows=12_000, items=30, topics=5, drift=0.15)
    with_evolution, _ = trained_auc(clicks.table, clicks.schema, epochs=4)
    without, _ = trained_auc(clicks.table, clicks.schema, epochs=4, model="din")
    # Seen: 0.11 with seed 0, 0.12 with seed 1.
    assert with_evolution > without + 0.05


def drifting_events(users=2_500, events=30, items=60, topics=5, drift=0.05):
    """A log of users who click items of one topic at a time and change to another now and then."""
    rng = np.random.default_rng(5)
    topic = rng.integers(0, topics, users)
    clicked = np.empty((users, events), np.int64)
    for step in range(events):
        topic = np.where(rng.random(users) < drift, rng.integers(0, topics, users), topic)
        clicked[:, step] = topic + topics * rng.integers(0, items // topics, users)
    user, time = np.repeat(np.arange(users), events), np.tile(np.arange(events), users)
    return Events(pa.table({"user": user, "item": clicked.ravel(), "time": time}))


@pytest.mark.slow
def test_the_auxiliary_loss_helps_where_only_the_last_event_is_a_sample():
    clicks = next_clicks(drifting_events())
    without = Schema.from_dict(clicks.schema.to_dict() | {"negatives": "none"})
    gains = []
    for seed in range(3):
        helped, _ = trained_auc(clicks.table, clicks.schema, epochs=12, seed=seed, aux_weight=1.0)
        alone, _ = trained_auc(clicks.table, without, epochs=12, seed=seed)
        gains.append(helped - alone)
    # Seen: 0.030, 0.007 and 0.011.
    assert mean(gains) > 0.005


@pytest.mark.slow
def test_dsin_learns_the_drift_from_sessions_that_din_does_not_see():
    clicks = synthetic_clicks(rows=16_000, items=30, topics=5, drift=0.15)
    reached, test = trained_auc(clicks.table, clicks.schema, epochs=3, model="dsin")
    other, _ = trained_auc(clicks.table, clicks.schema, epochs=3, model="din")
    best = auc(test["label"].to_numpy(), test["bestProbabilityInTime"].to_numpy())
    # Seen: 0.865 and 0.765, and 0.904 for the best.
    assert other + 0.05 < reached < best + 0.005
