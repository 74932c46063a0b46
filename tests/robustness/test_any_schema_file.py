"""Any schema file: a schema with its settings, which encoders and a model can be made of, or a refusal."""

import copy
import datetime
import tomllib

import numpy as np
import pyarrow as pa
import pytest
from campaign import Tally, amounts, attempt, campaign, command
from hypothesis import example, given
from hypothesis import strategies as st
from shop import SCHEMA, shop_table
from spoiled_values import ODD, spoiled
from toml_text import toml_text

from dien_fast.data import ClickDataset, Schema, fit_encoders
from dien_fast.data.event_tables import read_event_table
from dien_fast.data.sources import Source
from dien_fast.errors import one_sentence
from dien_fast.training.config import RunConfig
from dien_fast.training.runs import build_model

VALID = tomllib.loads(SCHEMA) | {
    "lists": "when",
    "share_vocabulary": True,
    "max_length": 20,
    "keep": "oldest",
    "negatives": "popularity",
    "exclude_clicked": True,
    "embedding_sizes": {"country": 3},
}
VALID["groups"][0] |= {"time": "moments", "session_gap": 60.0}
EVENTS = {
    "min_count": 1,
    "max_length": 5,
    "events": {"user": "who", "item": "item", "time": "when", "item_columns": ["brand"], "session_gap": 60},
}
ODD_TOML = st.one_of(
    ODD, st.sampled_from([datetime.date(2024, 2, 29), datetime.datetime(1, 1, 1), datetime.time(0, 0)])
)
# Bytes that are put anywhere into a file.
PIECES = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"""',
    b"[[groups]]\n",
    b"a.b.c = 1\n",
    b"x = " + b"[" * 3000,
    b"x = " + b"9" * 5000 + b"\n",
    b"x = 1e99999\n",
    b"x = 2024-13-45\n",
    b"x = 99999-01-01T00:00:00Z\n",
    b"x.y = {" + b"a.b = {" * 500,
    b"[" + b"a." * 3000 + b"a]\n",
]


@st.composite
def files(draw, valid):
    """The bytes of a schema file."""
    content = toml_text(draw(spoiled(valid, odd=ODD_TOML))).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)):
        return content
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["cut", "piece", "flip", "line", "encoding"]))
        if change == "cut":
            content = content[:place]
        elif change == "piece":
            content = content[:place] + draw(st.sampled_from(PIECES)) + content[place:]
        elif change == "line":
            content = draw(st.sampled_from(PIECES)) + content
        elif change == "encoding":
            how = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"]))
            content = content.decode("utf-8", "replace").encode(how, "replace")
        elif content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
    return content


def rows_for(schema):
    """A small table with the columns that a schema names."""
    table = {}
    numbers = np.arange(12)
    for name in schema.sequences:
        table[name] = [["a", "b"][: row % 3] for row in numbers]
    for name in schema.negative_features() if schema.negatives == "columns" else []:
        table[name] = table[schema.sequences[0]]
    for name in schema.event_times():
        table[name] = pa.array([[1.0, 2.0][: row % 3] for row in numbers], pa.list_(pa.float64()))
    for name in schema.categorical:
        table[name] = [["a", "b", "c"][row % 3] for row in numbers]
    for name in schema.numeric:
        table[name] = numbers / 7
    for name in (schema.user, schema.time, schema.lists):
        if name is not None:
            table.setdefault(name, numbers)
    table[schema.label] = numbers % 2
    return pa.table(table)


def use(schema):
    """Encode rows of a schema and give them to a model, as a training does."""
    table = rows_for(schema)
    encoders = fit_encoders(table, schema)
    config = RunConfig(schema=schema.to_dict(), embedding_size=2, attention_hidden=[2], mlp_hidden=[2])
    batch = ClickDataset(table, schema, encoders)[range(table.num_rows)]
    logits, _ = build_model(config, encoders).eval()(batch)
    assert logits.isfinite().all()


def check_settings(schema, written):
    """Fail unless a schema has the settings of a file."""
    found = schema.to_dict()
    assert Schema.from_dict(copy.deepcopy(found)) == schema
    for key, value in written.items():
        if key != "groups":
            assert found[key] == value, key
    for group, given_group in zip(found["groups"], written.get("groups", []), strict=True):
        assert group["name"] == given_group["name"]
        assert group.get("time", "") == given_group.get("time", "")
        for pair, given_pair in zip(group["pairs"], given_group["pairs"], strict=True):
            assert given_pair.items() <= pair.items() or not given_pair.get("neg_hist", "-")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schemas")


@amounts(quick=40, slow=6000)
def test_a_schema_is_what_its_file_says_or_is_refused(count, folder):
    path, table, output = folder / "clicks.toml", folder / "clicks.csv", folder / "run"
    pa.csv.write_csv(shop_table(80), table)
    tally = Tally("schema files")

    @campaign(count)
    @given(files(VALID))
    @example(toml_text(VALID).encode())
    @example(b"x = " + b"[" * 3000)
    @example(b"max_length = " + b"9" * 5000)
    def check(content):
        path.write_bytes(content)
        schema, sentence = attempt(Schema.from_toml, path)
        if schema is None:
            assert sentence.startswith(f"{path}: "), sentence
            words = ["train", "--dataset", table, "--schema", path, "--output", output, "--cpu", "--quiet"]
            assert command(*words) == (2, "", one_sentence(sentence))
            assert not output.exists()
            tally["refused"] += 1
            return
        check_settings(schema, tomllib.loads(content.decode("utf-8-sig")))
        _, sentence = attempt(use, schema)
        tally["right" if sentence is None else "refused when it is used"] += 1

    check()
    tally.check()


@amounts(quick=20, slow=3000)
def test_a_schema_of_events_is_what_its_file_says_or_is_refused(count, folder):
    path, table = folder / "events.toml", folder / "events.csv"
    pa.csv.write_csv(shop_table(80), table)
    tally = Tally("schema files of events")

    @campaign(count)
    @given(files(EVENTS))
    @example(toml_text(EVENTS).encode())
    @example(toml_text(EVENTS | {"max_length": 2**63}).encode())
    @example(toml_text(EVENTS | {"max_length": "5"}).encode())
    def check(content):
        path.write_bytes(content)
        events, sentence = attempt(read_event_table, table, path)
        if events is None:
            assert str(path) in sentence or str(table) in sentence, sentence
            tally["refused"] += 1
            return
        written = tomllib.loads(content.decode("utf-8-sig"))
        for name, value in written["events"].items():
            assert (
                list(getattr(events, name)) == value if isinstance(value, list) else getattr(events, name) == value
            )
        assert {**events.settings} == {name: value for name, value in written.items() if name != "events"}
        source = Source(dataset=str(table), schema=str(path), task="next", split="random")
        _, sentence = attempt(source.load, 0)
        tally["right" if sentence is None else "refused when it is used"] += 1

    check()
    tally.check()
