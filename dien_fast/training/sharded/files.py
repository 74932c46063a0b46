"""Divided tables in files, by ``torch.distributed.checkpoint``: for any number of processes, and for none.

A directory ``tables-7`` holds the tables after epoch 7. It counts from the moment at which ``best.pt`` or
``last.pt`` names it; these are written later, whole or not at all.
"""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dien_fast.errors import CheckpointError
from dien_fast.files import path_inside, sync_directory
from dien_fast.training.directory import tables_of_epoch

if TYPE_CHECKING:
    from dien_fast.training.directory import RunDirectory
    from dien_fast.training.sharded.tables import ShardedTables

# What the index of such a directory is made of; anything else in it is not torch's.
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float16", "bfloat16", "float64", "int64"},
    "pathlib": {"PosixPath"},
    "collections": {"OrderedDict"},
}


class TableFiles:
    """The directories with the tables of a run's epochs. Every process calls each method.

    Args:
        tables: what is written and read.
        run: the run; the first process decides where it writes.
    """

    def __init__(self, tables: ShardedTables, run: RunDirectory) -> None:
        self._tables, self._run = tables, run
        self._first = torch.distributed.get_rank(tables.group) == 0

    def save(self, epoch: int) -> None:
        """Write the tables as they are after an epoch.

        Raises:
            CheckpointError: if a process cannot write its part.
        """
        place: list[Any] = [str(self._run.place)]
        torch.distributed.broadcast_object_list(place, src=0, group=self._tables.group)
        path = Path(place[0]) / tables_of_epoch(epoch)
        if self._first:
            shutil.rmtree(path, ignore_errors=True)
        torch.distributed.barrier(group=self._tables.group)
        try:
            state_dict_saver.save(
                self._tables.state(), storage_writer=FileSystemWriter(path), process_group=self._tables.group
            )
        except CheckpointException as error:
            raise CheckpointError(f"{path} cannot be written: {_reason(error)}") from error
        if self._first:
            sync_directory(path)
            sync_directory(path.parent)

    def load(self, epoch: int) -> None:
        """Give the tables what they were after an epoch.

        Raises:
            CheckpointError: if the directory is missing or damaged, or has other tables.
        """
        path = self._run.path / tables_of_epoch(epoch)
        reader = TablesReader(path)
        state = self._tables.state()
        wanted = {f"{kind}.{name}": tuple(v.size()) for kind, of in state.items() for name, v in of.items()}
        check_tensors(reader.read_metadata(), wanted, path)
        try:
            state_dict_loader.load(state, storage_reader=reader, process_group=self._tables.group)
        except CheckpointException as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error

    def keep(self, *epochs: int) -> None:
        """Remove the directories of all other epochs."""
        if self._first:
            for path in self._run.path.glob("tables-*"):
                if path.name not in map(tables_of_epoch, epochs):
                    shutil.rmtree(path, ignore_errors=True)


class TablesReader(FileSystemReader):
    """torch's reader, which takes nothing from the index but what belongs there.

    Args:
        path: the directory.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index.

        Raises:
            CheckpointError: if it is missing, damaged or not torch's, or names files outside of the directory.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata: Metadata = _Unpickler(file).load()
            assert isinstance(metadata, Metadata)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        # Damage surfaces as almost any error, and always means the same.
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged or not from dien-fast ({' '.join(str(error).split())[:120]})"
            ) from error
        for stored in (metadata.storage_data or {}).values():
            path_inside(Path(self.path), stored.relative_path, CheckpointError)
        return metadata


class _Unpickler(pickle.Unpickler):
    """Makes objects of the classes of an index alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Enum:
    """Return a member of an enum; up to Python 3.11.3, pickles call getattr for it."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


def read_tables(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the tables of a directory as weights of a whole model, without TorchRec or other processes.

    Args:
        model: a plain model; nothing in it changes.
        path: the directory.

    Returns:
        The weights of its embedding tables by their names in its ``state_dict``.

    Raises:
        CheckpointError: if the directory is missing or damaged, or has other tables.
    """
    reader = TablesReader(path)
    metadata = reader.read_metadata()
    found: dict[str, Tensor] = {}
    stored = sum(file.stat().st_size for file in path.iterdir())
    shapes = {
        name.removeprefix("tables."): tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith("tables.") and isinstance(entry, TensorStorageMetadata)
    }
    for name, weight in model.state_dict().items():
        named = re.fullmatch(r"embedding:(.*)\.weight", name)
        if named is None or named[1] not in shapes:
            continue
        rows, width = weight.shape
        check_tensors(metadata, {f"tables.{named[1]}": (rows, -(-width // 4) * 4)}, path)
        stored -= 4 * rows * width
        if stored < 0:
            raise CheckpointError(f"{path} is damaged: its tables need more bytes than its files have")
        table = torch.empty(shapes[named[1]])
        try:
            with warnings.catch_warnings():
                # torch says that it reads in one process, as it was told to.
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                state_dict_loader.load({f"tables.{named[1]}": table}, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
        found[name] = table[:, :width]
    return found


def check_tensors(metadata: Metadata, wanted: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raise CheckpointError for the first tensor that is missing or of another shape."""
    for name, shape in wanted.items():
        entry = metadata.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{path} does not fit the model: it lacks {name!r}")
        if tuple(entry.size) != shape:
            raise CheckpointError(
                f"{path} does not fit the model: {name!r} must have shape {shape}, got {tuple(entry.size)}"
            )


def _reason(error: CheckpointException) -> str:
    """Return what the first process that failed says."""
    first = next(iter(error.failures.values()))[0]
    return " ".join(str(first).split())[:160] or type(first).__name__
