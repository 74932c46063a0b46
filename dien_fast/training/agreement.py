"""Several processes that are to train as one must have the same settings and the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dien_fast.errors import DienFastError


def check_same_everywhere(what: Mapping[str, Any]) -> None:
    """Refuse processes that were started with other settings or other rows than the first.

    Every process calls this, and all of them raise the same error: none waits for another.

    Args:
        what: plain values by name, such as ``{"lr": 0.002, "training rows": "800 of checksum 1f"}``.

    Raises:
        DienFastError: naming the first process that differs, and in what.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    text = json.dumps(what, default=str)
    digests: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    # The whole is exchanged only where it differs.
    texts: list[str] = [""] * len(digests)
    torch.distributed.all_gather_object(texts, text)
    raise DienFastError(
        f"{difference_among([json.loads(text) for text in texts])}; start all processes with the same command "
        "on the same data"
    )


def difference_among(settings: Sequence[Mapping[str, Any]]) -> str:
    """Return, as a phrase, the first that differs from the one at 0, and in what.

    Example:
        >>> difference_among([{"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}])
        'process 0 has lr = 0.1, but process 2 has lr = 0.2'
    """
    first = settings[0]
    for process, own in enumerate(settings):
        for name in {**first, **own}:
            if name not in first or name not in own or first[name] != own[name]:
                here, there = (f"{name} = {of[name]!r}" if name in of else f"no {name}" for of in (first, own))
                return f"process 0 has {here}, but process {process} has {there}"
    raise AssertionError("nothing differs")
