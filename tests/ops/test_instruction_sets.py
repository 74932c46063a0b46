"""Every instruction set of this machine, and what could end a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_dropout
import test_rows
import test_scores
import test_shared_keys
import torch
from comparison import assert_same, assert_within_twice
from interest_cases import (
    CODES,
    DTYPES,
    KINDS,
    LOSS_SHAPES,
    ROW_LENGTHS,
    SHAPES,
    check_scores,
    loss_outcome,
    native,
    native_loss,
    outcome,
    pairs,
    plain,
    plain_loss,
    scoring,
    scoring_of,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)

HERE = Path(__file__).parent


def run_here(code, **environment):
    """Run code beside this file, on one thread."""
    return subprocess.run(
        [sys.executable, "-c", f"import torch\ntorch.set_num_threads(1)\n{code}"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "support")} | environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )


def test_keys_without_channels():
    """Refused, as torch refuses to divide by the root of 0; in a process of its own, which must not end."""
    code = (
        "import pytest\n"
        "from interest_cases import SOME, native, outcome, scoring\n"
        "s = scoring(SOME)\n"
        "query, keys, weight = (torch.zeros(rows, 0).double().requires_grad_() for rows in (6, 18, 7))\n"
        "s = s.with_parameters(query, keys, weight, *s.mlp.parameters[1:])\n"
        "with pytest.raises(RuntimeError, match='query must have at least one channel'):\n"
        "    outcome(native, s)\n"
    )
    result = run_here(code)
    assert result.returncode == 0, result.stderr


def check_everything():
    """What every instruction set must do; called in a process of its own."""
    for shape in SHAPES:
        for kind in KINDS:
            check_scores(scoring_of(shape, *kind))
    for dtype in DTYPES:
        test_scores.TestAttentionScores().test_large_batches_without_gradients(1, dtype)
        test_shared_keys.TestSharedKeys().test_equals_repeated_keys("dice", dtype)
    lengths = [length % 61 for length in range(0, 800, 13)]
    for activation in CODES:
        for norm, training in ((True, True), (False, False)):
            single = scoring(lengths, 60, 18, (36, 20), activation, norm, training).to(torch.float32)
            exact = outcome(plain, single.to(torch.float64))
            assert_within_twice(outcome(native, single), outcome(plain, single), exact)
    for shape in LOSS_SHAPES:
        p = pairs(*LOSS_SHAPES[shape])
        assert_same(loss_outcome(native_loss, p), loss_outcome(plain_loss, p), 1e-9, 1e-9)
    single = pairs(lengths, 18, (100, 50), torch.float32)
    exact = loss_outcome(plain_loss, single.to(torch.float64))
    assert_within_twice(loss_outcome(native_loss, single), loss_outcome(plain_loss, single), exact)
    dropout = test_dropout.TestDropout()
    for dtype in DTYPES:
        dropout.test_kept_share_and_scale(0.5, dtype)
    for activation in ("sigmoid", "prelu"):
        dropout.test_forward_and_backward_use_the_masks_that_are_seen(activation)
        dropout.test_gradcheck(activation, True)
    for shape in ROW_LENGTHS:
        test_rows.TestRows().test_there_and_back((18,), shape)
        test_rows.TestRows().test_weighted_sum(18, shape)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512vl", "avx512"])
def test_every_instruction_set_of_this_machine(capability):
    """Each in a process of its own, as the choice is made once."""
    code = (
        "import dien_fast, test_instruction_sets\n"
        f"if torch.ops.dien_fast.cpu_capability() != '{capability}': raise SystemExit(3)\n"
        "test_instruction_sets.check_everything()\n"
    )
    result = run_here(code, DIEN_FAST_CPU_CAPABILITY=capability)
    if "must name an instruction set of this machine" in result.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert result.returncode == 0, result.stderr
