"""Plain values, such as TOML and JSON hold, with some of them changed."""

import copy

from hypothesis import strategies as st

NAMES = [
    "label",
    "clicked",
    "price",
    "item",
    "past_items",
    "neg_past_items",
    "items",
    "__row__",
    "",
    "ü\u2028\x00",
]
NAMES += ["a" * 3000, "event", "hist_item", "who", "when", "brand"]
ODD = st.one_of(
    st.sampled_from([0, 1, -1, True, False, 2**31, 2**63, 2**64, 10**30, 10**400, "", "dien", [], {}, [[]], [{}]]),
    st.sampled_from([0.0, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), *NAMES]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.sampled_from([*NAMES, 3]), max_size=4),
    st.dictionaries(st.sampled_from(NAMES), st.integers(-2, 9), max_size=3),
)


def places(value, path=()):
    """The path of every value inside of a value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def at(value, path):
    """The value at a path."""
    for step in path:
        value = value[step]
    return value


def _own(draw, odd):
    """A value that may be changed: Hypothesis would draw the changed one again."""
    return copy.deepcopy(draw(odd))


@st.composite
def spoiled(draw, valid, most=3, odd=ODD):
    """A value with up to ``most`` changes inside: other values, and keys that are gone or new."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, most))):
        inside = [path for path in places(value) if path]
        if not inside:
            return _own(draw, odd)
        *path, key = draw(st.sampled_from(inside))
        holder = at(value, path)
        change = draw(st.sampled_from(["set", "delete", "copy", "name", "add"]))
        if change == "set":
            holder[key] = _own(draw, odd)
        elif change == "delete":
            del holder[key]
        elif change == "copy":
            holder[key] = copy.deepcopy(at(value, draw(st.sampled_from(inside))))
        elif change == "name":
            holder[key] = draw(st.sampled_from(NAMES))
        elif isinstance(holder, list):
            holder.insert(key, _own(draw, odd))
        else:
            holder[draw(st.sampled_from([*NAMES, "lable", "group", "max_len"]))] = _own(draw, odd)
    return value
