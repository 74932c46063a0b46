"""The recurrence of every provider on the sizes of the README, after the check that they agree.

Run with ``python -m pytest benchmarks/test_attention_gru.py --benchmark-only``; a group is one size and pass, and
``steps per second`` of its JSON are valid steps. oneDNN runs ``augru_official``; nn.GRU is another function.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import Any

import pytest
import torch
from providers import RECURRENCE, SIZES, WIDE_SIZES, Contest, Size, against_onednn, recurrence

PROVIDERS = (*RECURRENCE, "oneDNN")


@pytest.fixture(autouse=True)
def _two_threads() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def contest(size: Size, backward: bool, onednn: bool) -> Contest:
    return against_onednn(size, backward, dense=False) if onednn else recurrence(size, backward)


# The topmost varies fastest: the inputs of a size are made once for all providers.
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("size", SIZES + WIDE_SIZES, ids=lambda size: "x".join(map(str, size)))
def test_recurrence(benchmark: Any, provider: str, backward: bool, size: Size) -> None:
    batch, steps, hidden = size
    benchmark.group = f"B {batch}, T {steps}, H {hidden}, {'forward + backward' if backward else 'forward'}"
    entrants = contest(size, backward, provider == "oneDNN")
    numbers = count()
    benchmark.pedantic(lambda: entrants.runs[provider](next(numbers)), rounds=5, warmup_rounds=2)
    if benchmark.stats:  # None where benchmarks are disabled.
        benchmark.extra_info["steps per second"] = round(entrants.steps / benchmark.stats.stats.median)
