"""Users without a history: alone, as a whole batch, and with or without candidates."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from candidates import bounds, candidate_features, compare, layout_of, trained
from clicks import timed_schema, timed_table
from comparison import assert_same, outcome
from native_cases import needs_native
from random_batches import SHARED, make_model, of_every_model, pad, random_batch
from selection import slow_but_pairs

from dien_fast import DIEN, reference, use_backend
from dien_fast.data import fit_encoders
from dien_fast.data.sources import Source
from dien_fast.models import MODELS
from dien_fast.training.pipeline import train_run
from dien_fast.training.runs import Run, RunConfig, build_model, load, schema_for

# Every model, and DIEN in all its variants.
VARIANTS = [(kind, "AUGRU") for kind in MODELS.values()]
VARIANTS += [(DIEN, gru_type) for gru_type in ("GRU", "AIGRU", "AGRU")]
NAMES = [f"{kind.__name__} {gru_type}" for kind, gru_type in VARIANTS]

of_every_variant = pytest.mark.parametrize(("kind", "gru_type"), VARIANTS, ids=NAMES)
on_both_backends = pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference"])
in_both_layouts = pytest.mark.parametrize("layout", ["padded", "ragged"])


def cold_batch(rows, layout="ragged"):
    """A batch of users whose histories are all empty."""
    lengths = torch.zeros(rows, dtype=torch.int64)
    return layout_of(layout, random_batch(rows, item=lengths, category=lengths, shop=lengths))


@on_both_backends
@pytest.mark.parametrize(
    ("variant", "layout", "shared"), slow_but_pairs(VARIANTS, ["padded", "ragged"], [SHARED, None])
)
def test_a_training_step_on_cold_users_alone(variant, shared, backend, layout):
    kind, gru_type = variant
    model = make_model(kind, gru_type, shared_embeddings=shared)
    batch = cold_batch(4, layout)
    with use_backend(backend):
        found = outcome(model, lambda: model(batch), {})
    assert found["output"].shape == (4,)
    assert all(value.isfinite().all() for value in found.values())
    assert found["gradient of embedding:item.weight"].any()
    if kind is DIEN:
        assert found["auxiliary loss"] == 0
        eager = make_model(reference.DIEN, gru_type, shared_embeddings=shared)
        padded = pad(batch)
        assert_same(found, outcome(eager, lambda: eager(padded), {}))


@in_both_layouts
@on_both_backends
@of_every_variant
def test_a_cold_user_alone_has_the_logit_of_a_batch(kind, gru_type, backend, layout):
    model = trained(kind, gru_type, shared_embeddings=SHARED)
    batch = random_batch(3, item=[0, 4, 1], category=[0, 4, 1], shop=[0, 2, 3])
    alone = {
        name: value[:1] if isinstance(value, torch.Tensor) else value.take(torch.tensor([0]))
        for name, value in batch.items()
    }
    with use_backend(backend), torch.no_grad():
        want = model(layout_of(layout, batch))[0][:1]
        got, _ = model(layout_of(layout, alone))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@in_both_layouts
@on_both_backends
@of_every_variant
def test_cold_users_candidates(kind, gru_type, backend, layout):
    model = trained(kind, gru_type, shared_embeddings=SHARED)
    for counts in ([5], [0], [2, 0, 3], [0, 0], []):
        with use_backend(backend):
            got = compare(model, cold_batch(len(counts)), candidate_features(sum(counts)), counts, layout)
        assert got.shape == (sum(counts),)


@in_both_layouts
@on_both_backends
@of_every_variant
def test_one_of_several_users_is_cold_or_has_a_single_event(kind, gru_type, backend, layout):
    model = trained(kind, gru_type, shared_embeddings=SHARED)
    users = random_batch(4, item=[3, 0, 1, 0], category=[3, 0, 1, 0], shop=[0, 2, 1, 0])
    with use_backend(backend):
        compare(model, users, candidate_features(6), [2, 3, 1, 0], layout)


@in_both_layouts
@of_every_variant
@pytest.mark.parametrize("d_out", [1, 3])
def test_no_candidates_give_an_empty_tensor(d_out, kind, gru_type, layout):
    model = trained(kind, gru_type, shared_embeddings=SHARED, d_out=d_out)
    user = random_batch(1)
    got = model.score_candidates(layout_of(layout, user), candidate_features(0))
    assert got.shape == ((0,) if d_out == 1 else (0, 3))
    assert got.dtype == torch.float64


@of_every_model
def test_no_users_have_no_candidates(kind):
    model = trained(kind, shared_embeddings=SHARED)
    assert model(cold_batch(0))[0].shape == (0,)
    assert model.score_candidates(cold_batch(0), candidate_features(0), bounds([])).shape == (0,)


def test_trace_of_cold_users():
    scores, states = trained(DIEN, shared_embeddings=SHARED).trace(cold_batch(2), "items")
    assert (scores.shape, states.shape) == ((2, 6), (2, 6, 6))
    assert not scores.any()
    assert not states.any()


def cold_table(rows):
    """Clicks of users without a history."""
    table = timed_table(rows)
    for name in ("hist_item", "hist_category", "hist_time"):
        kind = table.schema.field(name).type
        table = table.set_column(table.column_names.index(name), name, pa.array([[]] * rows, kind))
    return table


@pytest.fixture(params=MODELS)
def run(request):
    table, schema = timed_table(), schema_for(request.param, timed_schema())
    encoders = fit_encoders(table, schema)
    config = RunConfig(schema=schema.to_dict(), model=request.param, embedding_size=8)
    return Run("run", config, schema, encoders, build_model(config, encoders).eval())


def test_predict_scores_one_cold_user(run):
    row = timed_table().slice(0, 1)
    assert row["hist_item"].to_pylist() == [[]]
    np.testing.assert_allclose(run.predict(row), run.predict(timed_table())[:1], rtol=1e-6)


def test_predict_scores_a_last_batch_of_one_cold_user(run):
    table = pa.concat_tables([timed_table(1024), cold_table(4).slice(0, 1)])
    probabilities = run.predict(table)
    assert probabilities.shape == (1025,)
    np.testing.assert_allclose(probabilities[-1:], run.predict(table.slice(1024)), rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_table_of_new_users_is_trained_on(tmp_path, model):
    pa.parquet.write_table(cold_table(100), tmp_path / "new.parquet")
    (tmp_path / "new.toml").write_text(
        'label = "label"\ncategorical = ["item"]\nsequences = ["hist_item"]\n'
        '[[groups]]\nname = "items"\npairs = [{ ad = "item", pos_hist = "hist_item" }]\ntime = "hist_time"\n'
    )
    source = Source(str(tmp_path / "new.parquet"), schema=str(tmp_path / "new.toml"))
    config = RunConfig(model=model, epochs=1, embedding_size=8)
    metrics = train_run(source, config, tmp_path / "run", cpu=True, progress=False, log=lambda line: None)
    assert np.isfinite(metrics["test_logloss"])
    assert load(tmp_path / "run").predict(cold_table(4)).shape == (4,)
