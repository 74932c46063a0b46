"""What the columns of a click table mean: a small dataclass, or the TOML file that describes one."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dien_fast.data.utf8 import check_utf8
from dien_fast.errors import DataError

NEGATIVES = ("uniform", "popularity", "columns", "none")
KEEP = ("newest", "oldest")
ROW_KEY = "__row__"
# Lengths and offsets are numbers of 32 bits in shards.
LONGEST = 2**31 - 1


@dataclass(frozen=True)
class Pair:
    """A candidate's column and the histories that attention compares with it.

    Attributes:
        ad: the categorical column of the candidate.
        pos_hist: the sequence column of the user's clicks before the row, oldest first.
        neg_hist: the feature that holds one item not clicked for every click;
            ``"neg_" + pos_hist`` unless given.
    """

    ad: str
    pos_hist: str
    neg_hist: str = ""

    def __post_init__(self) -> None:
        if not self.neg_hist:
            object.__setattr__(self, "neg_hist", f"neg_{self.pos_hist}")


@dataclass(frozen=True)
class Group:
    """Pairs that describe the same events (item, category, ...) and share one attention.

    Attributes:
        name: of the group.
        pairs: the candidates with their histories.
        time: column with the time of each event of the histories, or empty. A list column of seconds (whole
            numbers or floats), timestamps or dates, or text in which the schema's separator divides the seconds.
        session_gap: seconds; a longer pause between two events begins a new session.

    Example:
        >>> group = Group("items", [Pair("itemId", "histItemIds")], time="histTimes")
        >>> group.session_gap
        1800.0
    """

    name: str
    pairs: list[Pair]
    time: str = ""
    session_gap: float = 1800.0


@dataclass
class Schema:
    """The meaning of a click table's columns.

    Attributes:
        label: column with 1 for a click and 0 for none.
        user: column that names the user (per-user splits and GAUC), or None.
        time: column that orders the rows (splits), or None.
        lists: column that is equal for the rows that were shown together, such as those of an impression, whose
            order the ranking metrics judge; None takes all rows of a user.
        numeric: columns of numbers.
        categorical: columns with one word (text or whole number) each, candidates included.
        sequences: columns with many words each: pooled ones, and the histories of ``groups``.
            A list column, or text in which ``separator`` divides the words.
        groups: candidates with their histories.
        share_vocabulary: one vocabulary and embedding table for a candidate, its history and its
            negatives. False gives every feature its own; then the auxiliary loss can tell clicks
            from negatives by the table alone.
        separator: what divides the words of a sequence that is stored as text.
        min_count: words seen less often in training become ``__UNKNOWN__``. The words seen once, which are
            left out by default, are what the embedding of unknown words learns from.
        max_length: events kept of a longer sequence; None keeps as many as the longest in training.
        keep: which events those are, the ``"newest"`` (last) or the ``"oldest"`` (first).
        negatives: ``"uniform"`` or ``"popularity"`` draws them, ``"columns"`` reads the ``neg_hist``
            columns, ``"none"`` trains without the auxiliary loss.
        exclude_clicked: drawn negatives also avoid the clicks of the history up to their step.
        embedding_sizes: widths of single features that differ from the model's.

    Raises:
        DataError: contradictory or unknown settings.

    Example:
        >>> schema = Schema(
        ...     categorical=["itemId"], sequences=["histItemIds"],
        ...     groups=[Group("items", [Pair("itemId", "histItemIds")])],
        ... )
        >>> schema.sequence_features()
        ['histItemIds', 'neg_histItemIds']
        >>> schema.shared_embeddings()
        {'histItemIds': 'itemId', 'neg_histItemIds': 'itemId'}
    """

    label: str = "label"
    user: str | None = None
    time: str | None = None
    lists: str | None = None
    numeric: list[str] = field(default_factory=list)
    categorical: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    share_vocabulary: bool = True
    separator: str = "|"
    min_count: int = 2
    max_length: int | None = 50
    keep: str = "newest"
    negatives: str = "uniform"
    exclude_clicked: bool = False
    embedding_sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_types(self)
        _check_features(self)
        _check_groups(self)
        _check_embedding_sizes(self)

    def columns(self) -> set[str]:
        """Return the names of all columns that a table should have, the negatives' where they are read."""
        names = {self.label, *self.numeric, *self.categorical, *self.sequences}
        names |= {name for name in (self.user, self.time, self.lists) if name is not None}
        names |= set(self.event_times())
        return names | set(self.negative_features() if self.negatives == "columns" else [])

    def pairs(self) -> list[Pair]:
        """Return the pairs of all groups, in order."""
        return [pair for group in self.groups for pair in group.pairs]

    def histories(self) -> list[str]:
        """Return the names of the histories, in order and each once."""
        return list(dict.fromkeys(pair.pos_hist for pair in self.pairs()))

    def event_times(self) -> list[str]:
        """Return the names of the columns with the times of events, in order and each once."""
        return list(dict.fromkeys(group.time for group in self.groups if group.time))

    def timed_groups(self) -> int:
        """Return how many groups have times."""
        return sum(bool(group.time) for group in self.groups)

    def negative_features(self) -> list[str]:
        """Return the names of the negative histories; none where ``negatives`` is ``"none"``."""
        if self.negatives == "none":
            return []
        return list(dict.fromkeys(pair.neg_hist for pair in self.pairs()))

    def sequence_features(self) -> list[str]:
        """Return the sequence features in the model's order: ``sequences``, then the negatives."""
        return [*self.sequences, *self.negative_features()]

    def vocabulary_owners(self) -> dict[str, str]:
        """Return feature -> the feature whose vocabulary it uses, for all that share another's."""
        owner: dict[str, str] = {}
        if not self.share_vocabulary:
            return owner

        def root(feature: str) -> str:
            while feature in owner:
                feature = owner[feature]
            return feature

        negatives = self.negatives != "none"
        for pair in self.pairs():
            first = root(pair.ad)
            for feature in (pair.pos_hist, *([pair.neg_hist] if negatives else [])):
                other = root(feature)
                if other != first and other in self.categorical:
                    # Two candidates share a history: the one listed first owns the vocabulary.
                    first, other = sorted((first, other), key=self.categorical.index)
                if other != first:
                    owner[other] = first
        return {feature: root(feature) for feature in owner}

    def shared_embeddings(self) -> dict[str, str] | None:
        """Return the ``shared_embeddings`` argument of the models; None: each feature its own table."""
        return self.vocabulary_owners() or None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON or TOML; :meth:`from_dict` reverses it.

        Where there are no lists, or a group has no times, there are no keys for them, as in the runs of versions
        that knew none.
        """
        settings = asdict(self)
        for group in settings["groups"]:
            if not group["time"]:
                del group["time"], group["session_gap"]
        if self.lists is None:
            del settings["lists"]
        return settings

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: str = "schema") -> Schema:
        """Return the schema that ``settings`` describe.

        Args:
            settings: as :meth:`to_dict` returns or a schema file holds.
            source: what error messages call the settings, for example a path.

        Raises:
            DataError: an unknown, contradictory or wrongly typed setting.
        """
        try:
            check_keys(settings, [item.name for item in fields(cls)], "the schema")
            known = dict(settings)
            if "groups" in known:
                known["groups"] = _groups(known["groups"])
            return cls(**known)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Schema:
        """Return the schema that a TOML file describes.

        Example of a file::

            label = "label"
            user = "userId"
            time = "timestamp"
            numeric = ["age"]
            categorical = ["gender", "itemId"]
            sequences = ["tags", "histItemIds"]

            [[groups]]
            name = "items"
            pairs = [{ ad = "itemId", pos_hist = "histItemIds" }]

        Raises:
            DataError: the file is missing, is not TOML, or holds a wrong setting.
        """
        return cls.from_dict(read_toml(path), source=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the settings of a schema file.

    Raises:
        DataError: the file is missing or is not TOML.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the schema file: {error.strerror}") from None
    check_utf8(content, str(path))
    try:
        # Editors of Windows put a byte order mark before the text, which TOML does not allow.
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise DataError(f"{path}: the schema file is nested too deeply") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise DataError(f"{path}: the schema file is not valid TOML: {error}") from None


def check_keys(settings: Mapping[str, Any], known: list[str], where: str, required: Iterable[str] = ()) -> None:
    """Refuse settings that are not known, and required ones that are not there."""
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}" if close else f"expected some of {', '.join(known)}"
            raise DataError(f"{where} has no setting {key!r}; {hint}")
    for key in required:
        if key not in settings:
            raise DataError(f"{where} lacks the setting {key!r}")


def _groups(settings: Any) -> list[Group]:
    groups = []
    for index, group in enumerate(_list_of_tables(settings, "groups")):
        where = f"groups[{index}]"
        check_keys(group, [item.name for item in fields(Group)], where, required=["name", "pairs"])
        pairs = []
        for number, pair in enumerate(_list_of_tables(group["pairs"], f"{where}.pairs")):
            names = ["ad", "pos_hist", "neg_hist"]
            check_keys(pair, names, f"{where}.pairs[{number}]", required=names[:2])
            pairs.append(Pair(**pair))
        groups.append(Group(**(group | {"pairs": pairs})))
    return groups


def _list_of_tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where} must be a list of tables, got {value!r}")
    return value


def _check_types(schema: Schema) -> None:
    if not isinstance(schema.label, str) or not schema.label:
        raise DataError(f"label must be the name of a column, got {schema.label!r}")
    for name in ("user", "time", "lists"):
        value = getattr(schema, name)
        if value is not None and (not isinstance(value, str) or not value):
            raise DataError(f"{name} must be the name of a column, got {value!r}")
    for name in ("numeric", "categorical", "sequences"):
        value = getattr(schema, name)
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise DataError(f"{name} must be a list of column names, got {value!r}")
    for name in ("share_vocabulary", "exclude_clicked"):
        if not isinstance(getattr(schema, name), bool):
            raise DataError(f"{name} must be true or false, got {getattr(schema, name)!r}")
    if not isinstance(schema.separator, str) or not schema.separator:
        raise DataError(f"separator must be a non-empty text, got {schema.separator!r}")
    if not _is_positive(schema.min_count):
        raise DataError(f"min_count must be a whole number of at least 1, got {schema.min_count!r}")
    longest = schema.max_length
    if longest is not None and (not _is_positive(longest) or longest > LONGEST):
        raise DataError(f"max_length must be a whole number from 1 to {LONGEST:,}, got {longest!r}")
    for name, choices in (("keep", KEEP), ("negatives", NEGATIVES)):
        if getattr(schema, name) not in choices:
            raise DataError(f"{name} must be one of {', '.join(choices)}, got {getattr(schema, name)!r}")


def _check_features(schema: Schema) -> None:
    seen: dict[str, str] = {}
    for kind in ("numeric", "categorical", "sequences"):
        for feature in getattr(schema, kind):
            if feature in seen:
                where = kind if seen[feature] == kind else f"{seen[feature]} and {kind}"
                raise DataError(f"column {feature!r} is listed twice, in {where}")
            seen[feature] = kind
    for reserved in (schema.label, ROW_KEY):
        if reserved in seen:
            raise DataError(f"column {reserved!r} cannot be a feature: the name is taken by the label")
    if not seen:
        raise DataError("the schema names no feature; list columns under numeric, categorical or sequences")


def _check_groups(schema: Schema) -> None:
    if not isinstance(schema.groups, list) or not all(isinstance(g, Group) for g in schema.groups):
        raise DataError(f"groups must be a list of groups, got {schema.groups!r}")
    features = {*schema.numeric, *schema.categorical, *schema.sequences}
    taken = {*features, schema.label}
    history_of: dict[str, str] = {}
    for group in schema.groups:
        if not isinstance(group.name, str) or not group.name or group.name in taken:
            raise DataError(f"a group needs a name that no feature or other group has, got {group.name!r}")
        taken.add(group.name)
        if not group.pairs:
            raise DataError(f"group {group.name!r} has no pairs")
        _check_times(group, features)
        for pair in group.pairs:
            if not all(isinstance(name, str) for name in (pair.ad, pair.pos_hist, pair.neg_hist)):
                raise DataError(f"group {group.name!r}: a pair must hold column names, got {pair!r}")
            if pair.ad not in schema.categorical:
                raise DataError(f"group {group.name!r}: ad {pair.ad!r} is not listed under categorical")
            if pair.pos_hist not in schema.sequences:
                raise DataError(f"group {group.name!r}: pos_hist {pair.pos_hist!r} is not listed under sequences")
            if pair.neg_hist in taken:
                raise DataError(
                    f"group {group.name!r}: neg_hist {pair.neg_hist!r} is already the name of a feature, "
                    "the label or a group; the negatives need a name of their own"
                )
            if history_of.setdefault(pair.neg_hist, pair.pos_hist) != pair.pos_hist:
                raise DataError(
                    f"neg_hist {pair.neg_hist!r} belongs to two histories, "
                    f"{history_of[pair.neg_hist]!r} and {pair.pos_hist!r}"
                )
    if history_of.keys() & taken:
        raise DataError(f"group {min(history_of.keys() & taken)!r} has the name of a neg_hist")


def _check_times(group: Group, features: set[str]) -> None:
    if not isinstance(group.time, str) or group.time in features:
        raise DataError(
            f"group {group.name!r}: time must be the name of a column that is no feature, got {group.time!r}"
        )
    gap = group.session_gap
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 <= gap < math.inf:
        raise DataError(
            f"group {group.name!r}: session_gap must be a finite number of seconds of at least 0, got {gap!r}"
        )
    if not group.time and gap != Group.session_gap:
        raise DataError(
            f"group {group.name!r}: session_gap needs the times of the events: name their column as time"
        )


def _check_embedding_sizes(schema: Schema) -> None:
    if not isinstance(schema.embedding_sizes, dict):
        raise DataError(f"embedding_sizes must map features to widths, got {schema.embedding_sizes!r}")
    known = {*schema.categorical, *schema.sequence_features()}
    for feature, size in schema.embedding_sizes.items():
        if feature not in known:
            raise DataError(f"embedding_sizes names {feature!r}, which is no categorical or sequence feature")
        if not _is_positive(size) or size > LONGEST:
            raise DataError(
                f"embedding_sizes[{feature!r}] must be a whole number from 1 to {LONGEST:,}, got {size!r}"
            )
    for feature, owner in schema.vocabulary_owners().items():
        sizes = {schema.embedding_sizes.get(name) for name in (feature, owner)}
        if feature in schema.embedding_sizes and len(sizes) > 1:
            raise DataError(
                f"embedding_sizes gives {feature!r} another width than {owner!r}, but they share one table"
            )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
