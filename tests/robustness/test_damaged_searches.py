"""Any damage to what ``compare`` and ``tune`` keep: the command ends as before, or refuses in one sentence."""

import pytest
from campaign import Tally, amounts, campaign, command
from damage import Damage, damages
from hypothesis import example, given
from hypothesis import strategies as st


def table_of(shop):
    return ["--dataset", shop / "clicks.csv", "--schema", shop / "clicks.toml", "--epochs", "1", "--cpu"]


@pytest.fixture(scope="module")
def compared(shop, tmp_path_factory):
    """A finished comparison, and the command that made it."""
    directory = tmp_path_factory.mktemp("compared") / "compared"
    words = ["compare", "--models", "din", "--seeds", "2", *table_of(shop), "--output", directory]
    assert command(*words)[0] == 0
    return directory, words


@pytest.fixture(scope="module")
def tuned(shop, tmp_path_factory):
    """A finished search, and the command that made it."""
    directory = tmp_path_factory.mktemp("tuned") / "tuned"
    words = ["tune", "--model", "din", "--trials", "2", "--search", "lr=1e-3:1e-1", "embedding_size=4,8"]
    words += [*table_of(shop), "--output", directory]
    assert command(*words)[0] == 0
    return directory, words


@amounts(quick=10, slow=600)
def test_a_damaged_comparison_has_its_table_or_is_refused(count, compared):
    directory, words = compared
    whole, tally = (directory / "table.md").read_bytes(), Tally("damaged comparisons")

    @campaign(count)
    @given(st.one_of(damages(directory, "compare.json"), damages(directory, "results.csv")))
    @example(Damage("compare.json", "value", content="[]"))
    @example(Damage("compare.json", "value", content='{"options": [1]}'))
    @example(Damage("results.csv", "value", content="variant,seed\nDIN,0\n"))
    @example(Damage("results.csv", "value", content='variant,"'))
    @example(Damage("results.csv", "empty"))
    @example(Damage("results.csv", "directory"))
    def check(damage):
        with damage.done_to(directory):
            status, _, sentence = command(*words)
            tally["right" if status == 0 else "refused"] += 1
            if status != 0:
                assert str(directory) in sentence, sentence
            elif damage.file != "results.csv":
                # Its numbers have no checksum: people may edit it.
                assert (directory / "table.md").read_bytes() == whole, damage

    check()
    tally.check()


@amounts(quick=5, slow=300)
def test_a_damaged_search_goes_on_or_is_refused(count, tuned):
    directory, words = tuned
    tally = Tally("damaged searches")

    @campaign(count)
    @given(damages(directory, "study.db"))
    def check(damage):
        with damage.done_to(directory):
            status, _, sentence = command(*words)
            tally["right" if status == 0 else "refused"] += 1
            if status != 0:
                assert str(directory) in sentence, sentence

    check()
    tally.check()
