"""Rows that the official code of DIEN has prepared (mouna99/dien, commit 1f314d1)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from dien_fast.data.columns import first_line
from dien_fast.data.schema import Group, Pair, Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.errors import DataError

TRAIN, TEST = "local_train_splitByUser", "local_test_splitByUser"
# Between the events of a history, as script/local_aggretor.py joins them.
_SEPARATOR = "\x02"
# script/local_aggretor.py writes no header; its vocabularies (script/generate_voc.py) call the columns so.
_COLUMNS = ("label", "uid", "mid", "cat", "hist_mid", "hist_cat")


class OfficialSource(SourceKind):
    """``dataset`` is a directory with the files ``local_train_splitByUser`` and ``local_test_splitByUser``.

    The vocabularies beside them are not read: they are pickles, which can run any program when opened, and hold
    the words of the training rows, which are counted anew.
    """

    def matches(self, settings: SourceSettings) -> bool:
        """Return whether these are files of the official code."""
        path = Path(settings.dataset)
        return (path / TRAIN).is_file() or path.name in (TRAIN, TEST) or path.name.endswith("_voc.pkl")

    def read(self, settings: SourceSettings, seed: int) -> SourceRows:
        """Read the training rows, and the test rows, which are those of other users."""
        path = Path(settings.dataset)
        if path.suffix == ".pkl":
            raise DataError(
                f"{path} is a pickle, which can run any program when opened, so it is not read; "
                f"name the directory of {TRAIN}, whose words are counted anew"
            )
        if not path.is_dir():
            path = path.parent
        train, test = (_read(path / name) for name in (TRAIN, TEST))
        pickles = sorted(file.name for file in path.glob("*_voc.pkl"))
        notes = [f"{', '.join(pickles)}: pickles, not opened; words are counted in the training rows"]
        return SourceRows(
            train,
            _schema(),
            split=("users", "since the official code keeps test users apart"),
            test=(test, str(path / TEST)),
            notes=tuple(notes if pickles else []),
        )


def _schema() -> Schema:
    pairs = [Pair("mid", "hist_mid"), Pair("cat", "hist_cat")]
    return Schema(
        user="uid",
        categorical=["mid", "cat"],
        sequences=["hist_mid", "hist_cat"],
        groups=[Group("items", pairs)],
        separator=_SEPARATOR,
    )


def _read(path: Path) -> pa.Table:
    types = {name: pa.string() for name in _COLUMNS} | {"label": pa.int64()}
    try:
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=list(_COLUMNS)),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pa.ArrowException as error:
        wanted = "label, user, item, category, items and categories before, divided by tabs"
        raise DataError(f"{path}: expected lines of {wanted}: {first_line(error)}") from None
