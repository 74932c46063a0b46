"""Any damage to an exported file: the numbers of before, or a refusal."""

import shutil

import pytest
from campaign import ASKED, Tally, attempt, campaign, command
from damage import damages
from hypothesis import given

from dien_fast.serving import OnnxModel, Package, export, export_onnx
from dien_fast.serving.programs import example

pytestmark = pytest.mark.slow


def answers(kind, path):
    """What an exported file says of itself, and what its programs give for an example."""
    exported = kind(path)
    found = [exported.description, exported.encoders()]
    for program in exported.description["programs"]:
        found.append(exported.run(program, example(exported.inputs(program), users=3)).tolist())
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "write", "name", "cases"),
    [(OnnxModel, export_onnx, "model.onnx", 600), (Package, export, "model.pt2", 60)],
    ids=["onnx", "pt2"],
)
def test_a_damaged_export_gives_its_numbers_or_is_refused(kind, write, name, cases, run, tmp_path):
    directory = tmp_path / "exported"
    directory.mkdir()
    path = write(run, directory / name)
    shutil.copyfile(path, directory / f"other-{name}")
    whole, tally = answers(kind, path), Tally(f"damaged {name}")

    @campaign(int(ASKED or cases))
    @given(damages(directory, name))
    def check(damage):
        with damage.done_to(directory):
            found, sentence = attempt(answers, kind, path)
            tally["right" if sentence is None else "refused"] += 1
            if sentence is None:
                assert found == whole, damage
            else:
                assert str(path) in sentence, sentence
            status, _, _ = command("check", path)
            assert (status == 0) == (sentence is None)

    check()
    tally.check(least_right=0)
