"""Checkpoints: written whole or not at all, and read without trusting them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from dien_fast.errors import CheckpointError
from dien_fast.files import check_archive, write_atomically

# Checked on reading, so that another program's file is told from a damaged one of ours.
FORMAT = "dien-fast checkpoint 1"


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings and lists and dicts of them) atomically to ``path``.

    Raises:
        OSError: with ``path`` as its ``filename``, if the file cannot be written: no space is left, for example.
    """
    with write_atomically(path) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save({"format": FORMAT, **content}, cast("BinaryIO", _WhileOpen(file)))
        except RuntimeError as error:
            # torch reports how far its writer came; what kept it from going on stands behind.
            reason = error.__cause__ or error.__context__
            raise (reason if isinstance(reason, OSError) else error) from None


class _WhileOpen:
    """What PyTorch's writer of archives writes to: a file, and nowhere when that is closed.

    The writer's destructor writes the end of an archive that a signal has left without one. The file may be closed
    by then, and an error in that destructor would abort the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        return len(data) if self._file.closed else self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path, required: tuple[str, ...] = ("model",)) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` to the CPU, with ``weights_only=True``.

    Args:
        path: the file.
        required: entries that must be there.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it is not a checkpoint of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damage surfaces as almost any error (zip, pickle, struct, key, ...), and always means the same.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, cut short or not from dien-fast ({reason})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of dien-fast: it lacks the mark {FORMAT!r}")
    for key in required:
        if key not in content:
            raise CheckpointError(f"{path} is not a complete checkpoint: it lacks the entry {key!r}")
    return content


def load_weights(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copy ``state`` into ``model``; every key and shape must fit.

    Args:
        model: the model to fill.
        state: a state_dict.
        path: where the state comes from, for the message.

    Raises:
        CheckpointError: naming the first key that is missing, unknown or of another shape.
    """
    check_weights(model, state, path)
    model.load_state_dict(state)


def check_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise the CheckpointError of :func:`load_weights`, but copy nothing.

    Args:
        model: on any device, torch's meta device too.
        state: as there.
        path: as there.
    """
    own = model.state_dict()
    for key, value in own.items():
        if key not in state:
            raise CheckpointError(f"{path} does not fit the model: it lacks the weight {key!r}")
        found = state[key]
        if not isinstance(found, Tensor) or found.shape != value.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CheckpointError(
                f"{path} does not fit the model: weight {key!r} must have shape {tuple(value.shape)}, got {shape}"
            )
    for key in state:
        if key not in own:
            raise CheckpointError(f"{path} does not fit the model: it has the unknown weight {key!r}")


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs, as a phrase, or None.

    Example:
        >>> first_difference({"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 3})
        'seed = 0, now seed = 3'
    """
    for name in {**before, **now}:
        if name not in before or name not in now or before[name] != now[name]:
            old, new = (repr(values[name]) if name in values else "not set" for values in (before, now))
            return f"{name} = {old}, now {name} = {new}"
    return None
