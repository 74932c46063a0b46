"""What a trained model attends to, for one row of a table and several candidates (figure 5 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dien_fast.data import read_table
from dien_fast.data.columns import as_column, split_words
from dien_fast.data.dataset import Batch
from dien_fast.data.schema import Group
from dien_fast.errors import DataError
from dien_fast.ragged import Ragged
from dien_fast.training import plots
from dien_fast.training.runs import Run

_DEFAULT_CANDIDATES = 4


def attention_view(
    run: Run,
    table: object,
    directory: str | Path,
    *,
    row: int | None = None,
    user: str | None = None,
    candidates: Sequence[str] | None = None,
    group: str | None = None,
    log: Callable[[str], None] | None = None,
) -> tuple[Path, Path]:
    """Draw, for the history of one row, which steps each candidate attends to and how the interest moves.

    Words that training did not see are marked as unknown: to the model they are all the same word.

    Args:
        run: a run whose model can be traced, such as DIEN.
        table: as in :meth:`dien_fast.training.runs.Run.predict`.
        directory: where ``attention.png`` and ``interest.png`` are written.
        row: number of the row, counted from 0; by default the first that has a history.
        user: in place of ``row``: the last row of this user that has a history.
        candidates: words of the group's first candidate column; what else describes them (a category) is taken
            from a row of the table that has the same candidate. None takes the row's own and the table's
            most frequent others.
        group: name of the attention group, by default the first.
        log: takes a line that names the unknown candidates, and one for the unknown items of the history.

    Returns:
        The paths of the two pictures.

    Raises:
        DataError: if row, user, candidate or group is not there, the history is empty, or the model has no trace.

    Example:
        >>> attention_view(run, "test.parquet", "pictures", row=0, candidates=["50", "181"])  # doctest: +SKIP
    """
    if not run.model.can_trace:
        raise DataError(
            f"the attention view shows how interest evolves, which a {type(run.model).__name__} does not model"
        )
    chosen = _group(run, group)
    data = read_table(table, run.schema)
    # Pairs of a group describe the same events, so that their histories are of one length.
    number = _row_number(run, data, run.dataset(data).lengths(chosen.pairs[0].pos_hist), row, user)
    rows, names = _candidate_rows(data, chosen, number, candidates)
    described = run.dataset(_with_candidates(data, chosen, number, rows, names), allow_unknown=True)
    batch = described.batch(np.arange(len(rows)))
    scores, states = run.model.trace(batch, chosen.name)
    with torch.no_grad():
        probabilities = torch.sigmoid(run.model(batch)[0]).tolist()
    steps, new_steps = _steps(run, data, chosen.pairs[0].pos_hist, number, batch)
    length = len(steps)
    candidate_ids = batch[chosen.pairs[0].ad]
    assert isinstance(candidate_ids, torch.Tensor)
    marked, new_names = _marked(
        [name or "missing" for name in names], candidate_ids == run.encoders.unknown(chosen.pairs[0].ad)
    )
    labels = [f"{name}  (p = {chance:.2f})" for name, chance in zip(marked, probabilities, strict=True)]
    for new, of in ((new_names, f"{len(names)} candidates"), (new_steps, f"{length} items of the history")):
        if new and log is not None:
            log(f"{len(new)} of {of} are unknown to the model, which sees them as one word: {', '.join(new)}")
    whose = f"row {number}" if user is None else f"user {user}"
    directory = Path(directory)
    return (
        plots.plot_attention(
            scores[:, :length].numpy(),
            labels,
            steps,
            directory / "attention.png",
            f"{whose}: what each candidate ({chosen.pairs[0].ad}) attends to",
        ),
        plots.plot_interest(
            states[:, :length].numpy(), labels, directory / "interest.png", f"{whose}: how the interest evolves"
        ),
    )


def _steps(run: Run, table: pa.Table, column: str, row: int, batch: Batch) -> tuple[list[str], list[str]]:
    """Return the names of a row's events, unknown ones marked, and the words of those."""
    history, encoder = batch[column], run.encoders.sequence(column)
    assert isinstance(history, Ragged)
    ids = history.values[: int(history.lengths()[0])]
    given = split_words(as_column(table[column].slice(row, 1)).combine_chunks(), run.schema.separator)[
        0
    ].to_pylist()
    given = given[-len(ids) :] if encoder.keep == "newest" else given[: len(ids)]
    unknown = ids == run.encoders.unknown(column)
    words = []
    for index, new, word in zip(ids.tolist(), unknown.tolist(), given, strict=True):
        # A word that was learnt has one spelling, whatever the table's.
        words.append(str(word if new else encoder.vocabulary_.word(index)) if word is not None else "missing")
    return _marked(words, unknown)


def _marked(words: Sequence[str], unknown: torch.Tensor) -> tuple[list[str], list[str]]:
    """Mark the words where ``unknown`` holds; return all words and, unmarked, the unknown ones."""
    pairs = list(zip(words, unknown.tolist(), strict=True))
    return [f"{word} (unknown)" if new else word for word, new in pairs], [word for word, new in pairs if new]


def _group(run: Run, name: str | None) -> Group:
    groups = {group.name: group for group in run.schema.groups}
    if not groups:
        raise DataError("the run's schema has no attention group to look at")
    if name is not None and name not in groups:
        raise DataError(f"the run has no attention group {name!r}; its groups are {', '.join(groups)}")
    return groups[name] if name is not None else next(iter(groups.values()))


def _row_number(run: Run, table: pa.Table, lengths: np.ndarray, row: int | None, user: str | None) -> int:
    """Return the row to look at, one with a history; ``lengths`` ``[rows]`` are those of the histories."""
    if user is not None:
        column = run.schema.user
        if column is None or column not in table.column_names:
            raise DataError(
                f"the table has no user column to look for user {user!r} in; give a row number instead"
            )
        mine = pc.equal(_words(table, column), user).to_numpy(zero_copy_only=False)
        if not mine.any():
            raise DataError(f"user {user!r} is not in column {column!r} of the table")
        found = np.flatnonzero(mine & (lengths > 0))
        if not len(found):
            raise DataError(f"user {user!r} has only empty histories, so there is nothing to attend to")
        return int(found[-1])
    if row is None:
        if not lengths.any():
            raise DataError("all histories of the table are empty, so there is nothing to attend to")
        return int(np.flatnonzero(lengths)[0])
    if not 0 <= row < table.num_rows:
        raise DataError(f"row must be at least 0 and below the table's {table.num_rows} rows, got {row}")
    if not lengths[row]:
        raise DataError(f"row {row} has an empty history, so there is nothing to attend to")
    return row


def _words(table: pa.Table, column: str) -> pa.Array:
    if column not in table.column_names:
        raise DataError(f"the table has no column {column!r}")
    words = table[column].cast(pa.large_string()).combine_chunks()
    return pc.fill_null(words, "")


def _candidate_rows(
    table: pa.Table, group: Group, row: int, candidates: Sequence[str] | None
) -> tuple[list[int | None], list[str]]:
    """Return a row that has each candidate (None if there is none) and the candidates' words."""
    words = _words(table, group.pairs[0].ad)
    if candidates is None:
        counts = words.value_counts().sort(order="descending", by="counts").field("values").to_pylist()
        own = words[row].as_py()
        candidates = [own, *[word for word in counts if word != own]][:_DEFAULT_CANDIDATES]
    rows: list[int | None] = []
    for word in candidates:
        found = pc.index(words, pa.scalar(word, words.type)).as_py()
        if found < 0 and len(group.pairs) > 1:
            raise DataError(
                f"candidate {word!r} is in no row of the table, so its {group.pairs[1].ad!r} is not known"
            )
        rows.append(found if found >= 0 else None)
    return rows, list(candidates)


def _with_candidates(
    table: pa.Table, group: Group, row: int, rows: list[int | None], names: list[str]
) -> pa.Table:
    """Return row ``row`` once per candidate, with the candidate's values in the group's candidate columns."""
    repeated = table.take([row] * len(rows))
    for number, pair in enumerate(group.pairs):
        column = table[pair.ad]
        if None in rows and number == 0:
            # A candidate that the table lacks can only be given as a word of the column's type.
            try:
                values = pa.array(names).cast(column.type)
            except pa.ArrowException as error:
                raise DataError(f"candidates of column {pair.ad!r} must be {column.type}, got {names}") from error
        else:
            values = column.take(rows)
        repeated = repeated.set_column(repeated.column_names.index(pair.ad), pair.ad, values)
    return repeated
