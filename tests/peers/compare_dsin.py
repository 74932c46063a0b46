"""Compares the session layer of DSIN with DeepCTR's, with the same weights, for full sessions.

    .venv-peers/deepctr/bin/python tests/peers/compare_dsin.py

Outputs and the gradients of candidates and events, of random weights and inputs in float32, may differ by
1e-5. The layer in float64 stands beside, so that one sees whose rounding it is. Ends with "N passed, N failed".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from deepctr_dsin import DeepCtrSessions, Sizes, ours, tf  # noqa: E402

from dien_fast import Ragged  # noqa: E402

LIMIT = 1e-5
# BiasEncoding of deepctr 0.9.4 takes no single session, and blinding none of a single event.
CASES = [Sizes(7, 5, 10, 32), Sizes(3, 2, 10, 8), Sizes(5, 4, 2, 16), Sizes(2, 20, 50, 64)]


def randomize(theirs: DeepCtrSessions, seed: int) -> None:
    """Replace the initial weights, many of which are all but 0, by random ones that set sessions apart."""
    rng = np.random.default_rng(seed)
    for variable in theirs.variables():
        fan_in = variable.shape[0] if len(variable.shape) == 2 else 4
        variable.assign(1.4 * rng.standard_normal(variable.shape) / np.sqrt(fan_in))


def outcome_of_theirs(theirs: DeepCtrSessions, query: np.ndarray, events: np.ndarray, weights: np.ndarray):
    inputs = [tf.Variable(query), tf.Variable(events)]
    with tf.GradientTape() as tape:
        output = theirs(*inputs, training=False)
        loss = tf.reduce_sum(output * weights)
    return [output.numpy(), *(gradient.numpy() for gradient in tape.gradient(loss, inputs))]


def outcome_of_ours(theirs: DeepCtrSessions, query, events, weights, dtype: torch.dtype) -> list[np.ndarray]:
    sizes, layer = theirs.sizes, ours(theirs).to(dtype).eval()
    candidates = torch.from_numpy(query).to(dtype).requires_grad_()
    rows = torch.from_numpy(events).to(dtype).flatten(0, 2).requires_grad_()
    steps = sizes.sessions * sizes.events
    offsets = torch.arange(sizes.users + 1) * steps
    sessions = torch.arange(sizes.users * steps) // sizes.events
    output = layer(candidates, Ragged(rows, offsets, steps), sessions)
    loss = (output * torch.from_numpy(weights).to(dtype)).sum()
    found: list[Tensor] = [output, *torch.autograd.grad(loss, [candidates, rows])]
    return [
        value.detach().numpy().reshape(shape)
        for value, shape in zip(found, (weights.shape, query.shape, events.shape), strict=True)
    ]


def compare(sizes: Sizes, seed: int) -> bool:
    """Print how far outputs and gradients are apart, and return whether that is within the limit."""
    query, events = sizes.inputs(seed)
    weights = np.random.default_rng(seed + 1).standard_normal((sizes.users, 2 * sizes.width), np.float32)
    theirs = DeepCtrSessions(sizes)
    theirs(query, events, training=False)  # Makes the weights.
    randomize(theirs, seed)
    want = outcome_of_theirs(theirs, query, events, weights)
    got, exact = (outcome_of_ours(theirs, query, events, weights, kind) for kind in (torch.float32, torch.float64))
    passed = True
    for name, a, b, c in zip(("output", "d candidate", "d events"), got, want, exact, strict=True):
        between, mine, other = (float(np.abs(x - y).max()) for x, y in ((a, b), (a, c), (b, c)))
        print(
            f"{sizes}: {name}: {between:.1e} apart, of numbers up to {np.abs(c).max():.2g}; from float64 "
            f"dien-fast {mine:.1e}, DeepCTR {other:.1e}"
        )
        passed &= between <= LIMIT
    return passed


def main() -> int:
    results = [compare(sizes, seed) for seed, sizes in enumerate(CASES)]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
