"""Any table: the probabilities that its rows have one by one in Python values, or a refusal."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from campaign import Tally, amounts, attempt, campaign, command
from hypothesis import example, given
from hypothesis import strategies as st
from shop import shop_table
from spoiled_bytes import spoil
from strange_columns import COLUMNS as STRANGE
from strange_columns import spoiled_tables
from table_files import SEQUENCES, as_parquet, as_text, column_styles, rows, text_styles

from dien_fast.data import ClickDataset, fit_encoders, prepare, read_table
from dien_fast.data.sources import Source

# Refusals of a whole table for what its rows are allowed to hold one by one.
OF_TABLES = ("got lists written as text",)
# And of a row, where the table has the word 0 as an item.
OF_ROWS = ("is padded with 0",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def one_by_one(run, found):
    """The probability of each row, asked for in Python values, or the sentence that refuses it."""
    for row in found:
        user = {name: row[name] for name in ("price", "country", *SEQUENCES)}
        items = {name: [row[name]] for name in ("item", "brand")}
        probabilities, sentence = attempt(run.score_candidates, user, items)
        yield sentence if probabilities is None else float(probabilities[0])


def compare(run, path, meant):
    """Check one file; return whether it was accepted."""
    probabilities, sentence = attempt(run.predict, path, allow_unknown=True)
    expected = list(one_by_one(run, meant))
    refusals = [one for one in expected if isinstance(one, str)]
    if probabilities is None:
        assert str(path) in sentence, sentence
        assert refusals or any(known in sentence for known in OF_TABLES), sentence
        return False
    assert len(probabilities) == len(meant)
    for found, wanted in zip(probabilities, expected, strict=True):
        if isinstance(wanted, str):
            assert any(known in wanted for known in OF_ROWS), wanted
        else:
            assert abs(found - wanted) <= 1e-6
    return True


@amounts(quick=10, slow=1000)
def test_text_tables_are_read_as_their_rows(count, run, folder):
    tally = Tally("CSV and TSV files")

    @campaign(count)
    @given(rows(), text_styles())
    def check(found, style):
        content, meant = as_text(found, style)
        path = folder / f"rows{style.ending}"
        path.write_bytes(content)
        tally["right" if compare(run, path, meant) else "refused"] += 1

    check()
    tally.check()


@amounts(quick=10, slow=1000)
def test_parquet_tables_are_read_as_their_rows(count, run, folder):
    tally = Tally("Parquet files")

    @campaign(count)
    @given(rows(), column_styles())
    def check(found, style):
        content, meant = as_parquet(found, style)
        if content is None:
            tally["not writable"] += 1
            return
        path = folder / "rows.parquet"
        path.write_bytes(content)
        tally["right" if compare(run, path, meant) else "refused"] += 1

    check()
    tally.check()


def written(table):
    """The bytes of a Parquet file with a table, or None where Parquet cannot hold it."""
    stream = io.BytesIO()
    try:
        pa.parquet.write_table(table, stream)
    except (pa.ArrowException, NotImplementedError):
        return None
    return stream.getvalue()


def encode(table, schema):
    """What a training does with a table before the first step; return the numbers of a batch."""
    encoders = fit_encoders(table, schema)
    dataset = ClickDataset(table, schema, encoders, require_label=True)
    batch = dataset[range(len(dataset))]
    numbers = [value if hasattr(value, "isfinite") else value.values for value in batch.values()]
    assert all(value.isfinite().all() for value in numbers)
    assert len(dataset) == table.num_rows
    return numbers


def example_of(kind, place):
    """The shop's rows with one column of a kind."""
    table = shop_table(6)
    return table.set_column(place, table.column_names[place], STRANGE[kind](6))


@amounts(quick=60, slow=5000)
def test_columns_of_any_type_are_scored_alike_in_memory_and_in_a_file_or_refused(count, run, folder):
    path, tally = folder / "spoiled.parquet", Tally("columns of any type")

    @campaign(count)
    @given(spoiled_tables(shop_table(8)))
    @example(example_of("text that is not UTF-8", 5))
    @example(example_of("text that is not UTF-8", 8))
    @example(example_of("an extension", 5))
    @example(example_of("byte views", 7))
    @example(example_of("half floats", 5))
    @example(example_of("run ends", 5))
    @example(example_of("a map", 3).slice(0, 0))
    @example(shop_table(4).set_column(0, "who", pa.chunked_array([["a", None], [None, "a"]])))
    @example(shop_table(4).append_column("when", pa.array([1, 2, 3, 4])))
    def check(table):
        probabilities, sentence = attempt(run.predict, table, allow_unknown=True)
        tally["right" if sentence is None else "refused"] += 1
        assert probabilities is None or len(probabilities) == table.num_rows
        attempt(lambda: encode(read_table(table), run.schema))
        content = written(table)
        if content is None:
            return
        path.write_bytes(content)
        again, other = attempt(run.predict, path, allow_unknown=True)
        assert (sentence is None) == (other is None), (sentence, other)
        if sentence is None:
            np.testing.assert_array_equal(again, probabilities)
        else:
            assert str(path) in other, other

    check()
    tally.check()


@amounts(quick=2, slow=300)
def test_commands_take_any_table_or_refuse_it(count, shop, run, folder):
    """Where predict refuses, it writes nothing; train and prepare leave no run and no data."""
    path, output, tally = folder / "given.parquet", folder / "scored.parquet", Tally("tables given to commands")

    @campaign(count)
    @given(spoiled_tables(shop_table(40)).filter(lambda table: written(table) is not None))
    def check(table):
        path.write_bytes(written(table))
        status, _, _ = command("predict", shop / "run", path, "--output", output, "--quiet", "--allow-unknown")
        tally["right" if status == 0 else "refused"] += 1
        assert output.exists() == (status == 0)
        if status == 0:
            # Unlike read_table, it takes a file with two columns of one name.
            scored = pa.parquet.ParquetFile(output).read()
            np.testing.assert_array_equal(scored["probability"], run.predict(path, allow_unknown=True))
            output.unlink()
        command("evaluate", shop / "run", path, "--quiet", "--allow-unknown")
        attempt(Source(str(path), schema=str(shop / "clicks.toml")).load, 0)
        prepared, sentence = attempt(
            prepare, path, run.schema, folder / "prepared", split="random", overwrite=True
        )
        if sentence is None:
            assert sum(prepared.rows.values()) == table.num_rows
        else:
            assert not (folder / "prepared" / "manifest.json").exists()

    check()
    tally.check()


FORMATS = [".csv", ".tsv", ".csv.gz", ".parquet"]


@st.composite
def damaged_files(draw):
    """An ending, and the bytes of a file with a few changes."""
    ending = draw(st.sampled_from(FORMATS))
    found = draw(rows())
    if ending == ".parquet":
        content = as_parquet(found, draw(column_styles()))[0] or b""
    else:
        style = draw(text_styles())
        style.compressed = ending.endswith(".gz")
        content = as_text(found, style)[0]
    if draw(st.integers(0, 19)) == 0:
        ending = draw(st.sampled_from(FORMATS))  # which the content does not have
    return ending, spoil(draw, content)


@amounts(quick=20, slow=5000)
def test_damaged_tables_are_refused_or_have_a_probability_for_each_row(count, run, folder):
    """What a changed file means is not known; its rows are counted, and every probability is one."""
    tally = Tally("damaged files of tables")

    @campaign(count)
    @given(damaged_files())
    def check(case):
        ending, content = case
        path = folder / f"damaged{ending}"
        path.write_bytes(content)
        probabilities, sentence = attempt(run.predict, path, allow_unknown=True)
        tally["right" if sentence is None else "refused"] += 1
        if sentence is None:
            assert len(probabilities) == read_table(path, run.schema).num_rows
            assert ((probabilities >= 0) & (probabilities <= 1)).all()
        else:
            assert str(path) in sentence, sentence

    check()
    tally.check()
