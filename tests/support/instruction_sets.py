"""Runs the native operators on one instruction set against their references.

``python tests/support/instruction_sets.py avx2``: in a process of its own, as the choice is made once. Exits with
status 3, and "not this machine's" on the standard error, where the machine lacks the instruction set.
"""

import os
import sys

import pytest
import recurrence_cases as recurrence
import torch
from comparison import assert_same, assert_within_twice
from dropout_masks import check_dropout_gradients, check_kept_share, check_masks
from interest_cases import (
    CODES,
    DTYPES,
    KINDS,
    LOSS_SHAPES,
    ROW_LENGTHS,
    SHAPES,
    SOME,
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
from interest_checks import check_copies, check_large_batch, check_scores, check_shared_keys, check_weighted_sum

from dien_fast.functional import GATES


def check_keys_without_channels():
    """A depth of 0 is refused; a division by 0 would end the process."""
    s = scoring(SOME)
    query, keys, weight = (torch.zeros(rows, 0).double().requires_grad_() for rows in (6, 18, 7))
    s = s.with_parameters(query, keys, weight, *s.mlp.parameters[1:])
    with pytest.raises(RuntimeError, match="query must have at least one channel"):
        outcome(native, s)


def check_recurrence():
    """attention_gru of every cell on every shape, in both dtypes."""
    for cell in GATES:
        for shape in recurrence.SHAPES:
            given = recurrence.problem(shape, cell)
            exact = recurrence.outcome("reference", *given, cell)
            for name, value in recurrence.outcome("native", *given, cell).items():
                torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-12, msg=name)
            if shape[0] > 1:
                single = recurrence.problem(shape, cell, torch.float32)
                outcomes = [recurrence.outcome(backend, *single, cell) for backend in ("native", "reference")]
                assert_within_twice(*outcomes, exact)


def check_interest():
    """The interest layer's operators."""
    for shape in SHAPES:
        for kind in KINDS:
            check_scores(scoring_of(shape, *kind))
    for dtype in DTYPES:
        check_large_batch(1, dtype)
        check_shared_keys("dice", dtype)
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
    for dtype in DTYPES:
        check_kept_share(0.5, dtype)
    for activation in ("sigmoid", "prelu"):
        check_masks(activation)
        check_dropout_gradients(activation, True)
    for shape in ROW_LENGTHS:
        check_copies(shape, (18,))
        check_weighted_sum(shape, 18)


def main(capability):
    os.environ["DIEN_FAST_CPU_CAPABILITY"] = capability
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        found = torch.ops.dien_fast.cpu_capability()
    except RuntimeError as error:
        if "must name an instruction set of this machine" not in str(error):
            raise
        print(f"{capability}: not this machine's", file=sys.stderr)
        return 3
    assert found == capability, found
    check_keys_without_channels()
    check_recurrence()
    check_interest()
    print(f"checked {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
