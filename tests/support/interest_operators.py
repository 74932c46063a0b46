"""Makes the public functions of the interest layer's operators, on tensors of the CPU, run other operators."""

import interest_cases
import interest_checks
import torch

from dien_fast.ops import attention_scores, auxiliary_loss, rows

OPERATORS = (
    (attention_scores, "_OPERATOR", "attention_scores"),
    (auxiliary_loss, "_OPERATOR", "auxiliary_loss"),
    (rows, "_SUM", "weighted_sum"),
    (rows, "_PADDED", "padded_from_rows"),
)


def use_operators(operators, monkeypatch):
    """Put the CUDA operators ``operators``, which are emulated or simulated, in the place of the CPU's."""
    monkeypatch.setattr(torch.ops, "dien_fast", operators)
    for module in (interest_cases, interest_checks):
        monkeypatch.setattr(module, "NATIVE", operators)
    for module, name, operator in OPERATORS:
        monkeypatch.setattr(module, name, getattr(operators, operator).default)
    # The CUDA library has no kernel for these.
    monkeypatch.setattr(rows.COPY_KERNELS, "_on_cpu", frozenset())
    return operators
