"""Steps of training on MovieLens-100K: the kernels' losses beside those of the loop, step by step."""

import pytest
import torch
import torch.nn.functional as F
from selection import slow_but

from dien_fast import backend, reference
from dien_fast.data import fit_encoders, pad_batch
from dien_fast.data.sources import Source
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged
from dien_fast.training.pipeline import make_loaders
from dien_fast.training.runs import RunConfig, build_model

STEPS = 200
# The newest events of each history: the loop's time grows with them.
MAX_LENGTH = 20
PERTURBED_RUNS = 5


@pytest.fixture(scope="module")
def movielens():
    """Return configuration, encoders and the first batches of the article's model on the real data."""
    try:
        tables = Source("ml-100k", overrides={"max_length": MAX_LENGTH}).load()
    except DataError as error:
        if "cannot fetch MovieLens-100K" not in str(error):
            raise
        pytest.skip(str(error))
    encoders = fit_encoders(tables.train, tables.schema)
    config = RunConfig(schema=tables.schema.to_dict(), attention_dropout=0.0, mlp_dropout=0.0)
    train, _, _ = make_loaders(tables, tables.schema, encoders, config)
    batches = [batch for _, batch in zip(range(STEPS), train, strict=False)]
    assert len(batches) == STEPS
    assert all(batch["movieId"].numel() == 128 for batch in batches)
    return config, encoders, batches


def models(config, encoders, dtype):
    """Return the reference and the fast model with the same weights."""
    torch.manual_seed(config.seed)
    fast = build_model(config, encoders).to(dtype)
    eager = reference.DIEN(
        num_features=fast.num_features,
        cat_features=fast.cat_features,
        seq_features=fast.seq_features,
        cat_nums=fast.cat_nums,
        embedding_size=fast.embedding_size,
        attention_groups=fast.attention_groups,
        mlp_hidden_layers=fast.mlp_hidden_layers,
        mlp_activation=fast.mlp_activation,
        mlp_dropout=fast.mlp_dropout,
        use_negsampling=fast.use_negsampling,
        shared_embeddings=fast.shared_embeddings,
    ).to(dtype)
    eager.load_state_dict(fast.state_dict(), strict=True)
    assert fast.use_negsampling
    assert [group.gru_type for group in fast.attention_groups] == ["AUGRU"]
    return eager, fast


def losses(model, batches, dtype, config):
    """Train as ``fit`` does; return the loss of each step, and its auxiliary part."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    padded = type(model) is reference.DIEN
    found = []
    for ragged in batches:
        batch = pad_batch(ragged) if padded else ragged
        batch = {
            name: value.to(dtype) if not isinstance(value, Ragged) and value.is_floating_point() else value
            for name, value in batch.items()
        }
        logits, auxiliary_loss = model(batch)
        loss = F.binary_cross_entropy_with_logits(logits, batch["label"].to(dtype))
        loss = loss + config.aux_weight * auxiliary_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(torch.stack([loss.detach(), auxiliary_loss.detach()]).double())
    return torch.stack(found, dim=1)


def perturb(model, seed):
    """Move every weight that is not 0 to a neighbouring number, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            up = torch.rand(parameter.shape, generator=generator) < 0.5
            ends = torch.where(up, torch.inf, -torch.inf).to(parameter.dtype)
            parameter.copy_(torch.where(parameter == 0, parameter, torch.nextafter(parameter, ends)))


def check_that_it_learns(want):
    """A curve that stands still would agree with anything."""
    loss, auxiliary_loss = want
    assert loss[-20:].mean() < loss[:20].mean() - 0.1
    assert auxiliary_loss[-20:].mean() < auxiliary_loss[:20].mean() - 0.02


@pytest.mark.long
@pytest.mark.parametrize("steps", slow_but([50], [50, STEPS]))
def test_float64_losses_agree_at_every_step(movielens, steps):
    config, encoders, batches = movielens
    eager, fast = models(config, encoders, torch.float64)
    want, got = (losses(model, batches[:steps], torch.float64, config) for model in (eager, fast))
    if steps == STEPS:
        check_that_it_learns(want)
    off = ((got - want) / want).abs().max(0).values
    worst = int(off.argmax())
    print(f"\n{backend()}: float64 {off[::49].tolist()}, worst {off.max():.2e} at step {worst}")
    assert off.max() <= 1e-7, f"step {worst}: {got[:, worst].tolist()}, reference {want[:, worst].tolist()}"


@pytest.mark.slow
def test_float32_losses_agree_within_twice_the_spread_of_the_reference(movielens):
    config, encoders, batches = movielens
    eager, fast = models(config, encoders, torch.float32)
    got, want = (losses(model, batches, torch.float32, config)[0] for model in (fast, eager))
    spread = torch.zeros(STEPS, dtype=torch.float64)
    for seed in range(PERTURBED_RUNS):
        other, _ = models(config, encoders, torch.float32)
        perturb(other, seed)
        spread = torch.maximum(spread, (losses(other, batches, torch.float32, config)[0] - want).abs())
    allowed = torch.maximum(2 * spread, 1e-6 * want)
    off = (got - want).abs()
    share = off / allowed
    worst, bare = int(share.argmax()), int((off > 2 * spread).sum())
    shown = [0, 9, 49, 99, 199]
    print(f"\n{backend()}: float32 off {(off / want)[shown].tolist()}, spread {(spread / want)[shown].tolist()}")
    print(f"largest off {(off / want).max():.2e}, largest spread {(spread / want).max():.2e}")
    print(f"share of what is allowed: worst {share.max():.3f} at step {worst}; {bare} steps above without floor")
    assert spread.any(), "the perturbation is felt"
    assert share.max() <= 1, f"step {worst}: off by {off[worst]:.3e}, allowed {allowed[worst]:.3e}"
