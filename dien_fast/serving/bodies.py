"""What stands in the bodies of requests: JSON, as the arguments of :class:`dien_fast.serving.batching.Batcher`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from dien_fast.data.columns import as_column
from dien_fast.errors import DataError


class ScoreBody(NamedTuple):
    """A request for scores.

    Attributes:
        single: whether it is about one user, and its answer one list.
        users: as ``Batcher.submit`` takes them.
        items: likewise.
        names: of the users, or None.
    """

    single: bool
    users: Any
    items: Any
    names: list[str] | None


class EventsBody(NamedTuple):
    """Events of users.

    Attributes:
        names: of the users.
        events: as ``Batcher.add`` takes them.
    """

    names: list[str]
    events: pa.Table


def read_score(body: bytes) -> ScoreBody:
    """Read the body of ``POST /score``.

    Raises:
        DataError: it is no such request.
    """
    content = _parsed(body)
    _check_keys(content, {"user", "users", "user_id", "user_ids", "items"}, "user or users, and items")
    single = "user" in content or "user_id" in content
    if single == ("users" in content or "user_ids" in content) or "items" not in content:
        raise DataError(f"the body must have exactly one of user and users, and items, got {', '.join(content)}")
    items = content["items"]
    if single:
        user = content.get("user", {})
        if not isinstance(user, dict):
            raise DataError(f"user must be an object, got {type(user).__name__}")
        if isinstance(items, dict):
            _check_columns(items)
        return ScoreBody(single, user, items, [_name(content["user_id"])] if "user_id" in content else None)
    names = _names(content["user_ids"]) if "user_ids" in content else None
    users = content["users"] if names is None or "users" in content else [{} for _ in names]
    _check_objects(users, "users")
    if names is not None and len(names) != len(users):
        raise DataError(f"user_ids must name each of {len(users)} users, got {len(names)}")
    if not isinstance(items, list) or len(items) != len(users):
        count = len(items) if isinstance(items, list) else type(items).__name__
        raise DataError(f"items must be a list of what each of {len(users)} users gets, got {count}")
    if items and all(isinstance(one, dict) for one in items):
        items = _transposed(items, "items")
    return ScoreBody(single, _table(users, "users", must_have_all=False), items, names)


def read_events(body: bytes) -> EventsBody:
    """Read the body of ``POST /events`` or ``PUT /events``.

    Raises:
        DataError: it holds no events.
    """
    content = _parsed(body)
    _check_keys(content, {"user_id", "user_ids", "events"}, "user_id or user_ids, and events")
    if ("user_id" in content) == ("user_ids" in content) or "events" not in content:
        raise DataError(
            f"the body must have exactly one of user_id and user_ids, and events, got {', '.join(content)}"
        )
    events = content["events"]
    if "user_id" in content:
        if not isinstance(events, dict):
            raise DataError(f"events must be an object, got {type(events).__name__}")
        return EventsBody([_name(content["user_id"])], _table([events], "events"))
    names = _names(content["user_ids"])
    _check_objects(events, "events")
    if len(names) != len(events):
        raise DataError(f"user_ids must name the users of each of {len(events)} events objects, got {len(names)}")
    return EventsBody(names, _table(events, "events"))


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DataError(f"the body must be JSON: {error}") from None


def _check_keys(content: Any, known: Collection[str], expected: str) -> None:
    if not isinstance(content, dict) or not content.keys() <= {*known}:
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"the body must be an object with {expected}, got {got}")


def _check_objects(values: Any, name: str) -> None:
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{name} must be a list of objects, one for each user")


def _check_columns(items: dict[str, Any]) -> None:
    for name, values in items.items():
        if not isinstance(values, list):
            raise DataError(f"items[{name!r}] must be a list, got {type(values).__name__}")


def _name(value: Any, what: str = "user_id") -> str:
    if not isinstance(value, str) or not value:
        got = "no characters" if value == "" else type(value).__name__
        raise DataError(f"{what} must be text, got {got}")
    return value


def _names(values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise DataError("user_ids must be a list of texts, one for each user")
    return [_name(value, f"user_ids[{number}]") for number, value in enumerate(values)]


def _table(objects: list[dict[str, Any]], what: str, must_have_all: bool = True) -> pa.Table:
    columns = {}
    for name, values in _transposed(objects, what, must_have_all).items():
        try:
            columns[name] = as_column(values)
        except DataError as error:
            raise DataError(f"{what}: column {name!r}: {error}") from None
    # A table without columns would have no rows either.
    return pa.table({"": pa.nulls(len(objects))} | columns)


def _transposed(objects: list[dict[str, Any]], what: str, must_have_all: bool = True) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for one in objects for name in one)
    if must_have_all:
        for number, one in enumerate(objects):
            for name in names:
                if name not in one:
                    raise DataError(f"{what}[{number}] has no column {name!r}, which others have")
    return {name: [one.get(name) for one in objects] for name in names}
