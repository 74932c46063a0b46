"""Rows that the official code of DIEN has prepared (mouna99/dien, commit 1f314d1)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dien_fast.data.columns import first_line
from dien_fast.data.schema import Group, Pair, Schema
from dien_fast.data.sources.base import SourceKind, SourceRows, SourceSettings
from dien_fast.data.vocabulary import UNKNOWN
from dien_fast.errors import DataError

TRAIN, TEST = "local_train_splitByUser", "local_test_splitByUser"
# Between the events of a history, as script/local_aggretor.py joins them.
_SEPARATOR = "\x02"
# script/local_aggretor.py writes no header; its vocabularies (script/generate_voc.py) call the columns so.
_COLUMNS = ("label", "uid", "mid", "cat", "hist_mid", "hist_cat")


class OfficialSource(SourceKind):
    """``dataset`` is a directory with the files ``local_train_splitByUser`` and ``local_test_splitByUser``.

    The vocabularies beside them are pickles, which can run any program when opened, so they are not: they hold the
    words of the training rows, which are counted anew. Where ``mid_voc.txt`` or ``cat_voc.txt`` lists a vocabulary
    as text, a word a line (what follows a tab, such as its id, is passed over), all other words are unknown.
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
        notes = []
        if pickles:
            notes.append(f"{', '.join(pickles)}: pickles, not opened; words are counted in the training rows")
        for pair in _schema().pairs():
            file = path / f"{pair.ad}_voc.txt"
            if file.exists():
                words = _words(file)
                train, test = (_known(rows, pair, words) for rows in (train, test))
                notes.append(f"{file.name}: {len(words):,} words; all others of {pair.ad} are unknown")
        return SourceRows(
            train,
            _schema(),
            split=("users", "since the official code keeps test users apart"),
            test=(test, str(path / TEST)),
            notes=tuple(notes),
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


def _words(path: Path) -> pa.Array:
    """Return the words of a vocabulary, a line each."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, a word a line: {error.reason}") from None
    words = [line.partition("\t")[0] for line in lines]
    if "" in words:
        raise DataError(f"{path}, line {words.index('') + 1}: expected a word, got an empty line")
    if not words:
        raise DataError(f"{path}: expected a word a line, got an empty file")
    return pa.array(words, pa.string())


def _known(rows: pa.Table, pair: Pair, words: pa.Array) -> pa.Table:
    """Return the rows with words outside of a vocabulary as the unknown word, in candidates and histories."""

    def known(found: pa.Array) -> pa.Array:
        return pc.if_else(pc.is_in(found, value_set=words), found, UNKNOWN)

    candidates, histories = (rows[name].combine_chunks() for name in (pair.ad, pair.pos_hist))
    listed = pc.split_pattern(histories, _SEPARATOR)
    joined = pc.binary_join(pa.ListArray.from_arrays(listed.offsets, known(listed.values)), _SEPARATOR)
    joined = pc.if_else(pc.equal(histories, ""), "", joined)  # no event is no unknown event
    for name, column in ((pair.ad, known(candidates)), (pair.pos_hist, joined)):
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


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
