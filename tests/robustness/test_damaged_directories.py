"""Any damage to a file of a run or of prepared data: the numbers of before, bit by bit, or a refusal."""

import json
import shutil

import numpy as np
import pytest
from campaign import Tally, amounts, attempt, campaign, command
from damage import Damage, damages
from hypothesis import example, given
from hypothesis import strategies as st
from prepared_clicks import small_pieces
from shop import shop_table

from dien_fast.data import PreparedData, prepare
from dien_fast.data.prepared.manifest import PARTS
from dien_fast.training.runs import load


@pytest.fixture(scope="module")
def damaged_run(shop, tmp_path_factory):
    return shutil.copytree(shop / "run", tmp_path_factory.mktemp("damaged") / "run")


@pytest.fixture(scope="module")
def prepared(shop, run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "prepared"
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, range_rows=90)
        prepare(shop / "clicks.csv", run.schema, directory)
    return directory


TABLE = shop_table(30, seed=3)


def scores(directory):
    return load(directory).predict(TABLE).tobytes()


@amounts(quick=12, slow=4000)
def test_a_damaged_run_gives_its_probabilities_or_is_refused(count, damaged_run):
    whole, tally = scores(damaged_run), Tally("damaged files of runs")
    weights = (damaged_run / "best.pt").stat().st_size // 2

    @campaign(count)
    @given(damages(damaged_run))
    @example(Damage("best.pt", "flip", place=weights))
    @example(Damage("config.json", "cut", place=100))
    @example(Damage("config.json", "value", content="[" * 100_000))
    @example(Damage("encoders/item.json", "value", content="[" * 100_000))
    def check(damage):
        with damage.done_to(damaged_run):
            found, sentence = attempt(scores, damaged_run)
            tally["right" if sentence is None else "refused"] += 1
            if sentence is None:
                assert found == whole, damage
            else:
                assert str(damaged_run) in sentence, sentence
            command("info", damaged_run)

    check()
    tally.check()


@amounts(quick=1, slow=100)
def test_a_damaged_run_goes_on_as_before_or_is_refused(count, damaged_run, tmp_path):
    """A resumed training ends with the weights of one that nothing damaged, or changes nothing."""
    words = ["--resume", "--epochs", "3", "--cpu", "--quiet"]
    whole = shutil.copytree(damaged_run, tmp_path / "whole")
    assert command("train", "--output", whole, *words)[0] == 0
    expected, tally = scores(whole), Tally("damaged runs that are resumed")
    files = [file.relative_to(damaged_run) for file in damaged_run.rglob("*") if file.is_file()]

    @campaign(count)
    @given(st.one_of(damages(damaged_run, "*.pt"), damages(damaged_run, "*.json")))
    @example(Damage("last.pt", "flip", place=(damaged_run / "last.pt").stat().st_size // 2))
    def check(damage):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = shutil.copytree(damaged_run, tmp_path / "copy")
        with damage.done_to(copy):
            before = {file: (copy / file).read_bytes() for file in files if (copy / file).is_file()}
            status, _, sentence = command("train", "--output", copy, *words)
            tally["right" if sentence is None else "refused"] += 1
            if status == 0:
                assert scores(copy) == expected, damage
            else:
                assert {file: (copy / file).read_bytes() for file in before} == before, damage

    check()
    tally.check(least_right=0)


def rows_of(directory):
    """Everything that a training reads of prepared data, as bytes."""
    data = PreparedData(directory)
    negatives = data.negatives(data.schema, 0)
    found = [repr(sorted(data.rows.items())), data.split]
    for part in PARTS:
        dataset = data.dataset(part, negatives=negatives)
        found += [dataset.labels, dataset.users, dataset.source_rows, repr(dataset.unknown)]
        found += [dataset.category_ids(name) for name in dataset.schema.categorical]
        batch = dataset[range(len(dataset))]
        found += [value if hasattr(value, "numpy") else value.values for _, value in sorted(batch.items())]
        found += [value.offsets for _, value in sorted(batch.items()) if hasattr(value, "offsets")]
    return [part if isinstance(part, str) else np.asarray(part).tobytes() for part in found]


def middle(directory, name):
    return Damage(name, "flip", place=(directory / name).stat().st_size // 2)


@amounts(quick=15, slow=3000)
def test_damaged_prepared_data_give_their_rows_or_are_refused(count, prepared):
    whole, tally = rows_of(prepared), Tally("damaged files of prepared data")
    manifest = (prepared / "manifest.json").read_text()

    @campaign(count)
    @given(damages(prepared))
    @example(middle(prepared, "train-0-000000.arrow"))
    @example(middle(prepared, "negatives-0.arrow"))
    @example(Damage("manifest.json", "value", content=manifest.replace('"split": "', '"split": "not ')))
    def check(damage):
        with damage.done_to(prepared):
            found, sentence = attempt(rows_of, prepared)
            tally["right" if sentence is None else "refused"] += 1
            if sentence is None:
                assert found == whole, damage
            else:
                assert str(prepared) in sentence, sentence

    check()
    tally.check(least_right=0)


@amounts(quick=15, slow=1000)
def test_a_flipped_bit_in_the_numbers_of_a_shard_is_refused(count, prepared):
    """Blocks are most of a shard; a campaign over all files flips few of their bits."""
    whole = rows_of(prepared)
    manifest = json.loads((prepared / "manifest.json").read_text())
    blocks = [
        (shard["file"], offset, size) for shard in manifest["shards"] for _, offset, size, _ in shard["blocks"]
    ]

    @campaign(count)
    @given(st.sampled_from(blocks), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def check(block, share, bit):
        file, offset, size = block
        with Damage(file, "flip", place=offset + int(share * size), mask=1 << bit).done_to(prepared):
            _, sentence = attempt(rows_of, prepared)
            assert "the shard is damaged" in sentence
            assert file in sentence

    check()
    assert rows_of(prepared) == whole
