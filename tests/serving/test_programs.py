"""A model as a program: the graph serves every size, calls each kernel once, and gives the model's numbers."""

import pytest
import torch
from selection import slow_but
from served import KINDS, all_empty, program_of
from shop import make_shop

from dien_fast.errors import DienFastError
from dien_fast.serving.package import operators, trace
from dien_fast.serving.programs import example, programs_of
from dien_fast.training.runs import load, without_negatives

PROGRAMS = ("rows", "candidates")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(make_shop(tmp_path_factory.mktemp("shop")) / "run")


@pytest.mark.parametrize(
    ("kind", "entry"),
    slow_but([("DIEN AUGRU", "candidates")], [(kind, entry) for kind in KINDS for entry in PROGRAMS]),
)
def test_one_graph_for_every_size(run, kind, entry):
    program = program_of(run, kind, entry)
    exported = trace(program, example(program.inputs))
    wanted = KINDS[kind][2]
    if wanted is not None:
        assert sorted(name for name in operators(exported) if "padded" not in name) == wanted
    graph = exported.module()
    cases = [example(program.inputs, seed, users) for seed, users in ((1, 3), (2, 1), (3, 7))]
    for arguments in [*cases, all_empty(program.inputs)]:
        torch.testing.assert_close(graph(*arguments), program(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_programs_are_the_model(run, kind):
    """What a program computes of tensors is what the model computes of a batch."""
    rows = program_of(run, kind, "rows")
    arguments = example(rows.inputs)
    expected = rows.model(rows.batch(arguments))[0].sigmoid()
    assert torch.equal(rows(*arguments), expected)
    assert [item.name for item in rows.inputs][:6] == [
        "price",
        "country",
        "item",
        "brand",
        "past_items",
        "past_brands",
    ]

    candidates = program_of(run, kind, "candidates")
    given = dict(zip((item.name for item in candidates.inputs), example(candidates.inputs), strict=True))
    repeated = {name: value for name, value in given.items() if name != "candidates.offsets"}
    single = candidates.batch(tuple(given.values()))
    found = candidates(*given.values())
    assert found.shape == repeated["item"].shape
    # The first candidate of each user, as a row.
    first = given["candidates.offsets"][:-1]
    batch = single | {name: repeated[name][first] for name in ("item", "brand")}
    torch.testing.assert_close(found[first], candidates.model(batch)[0].sigmoid(), rtol=1e-5, atol=1e-6)


def test_a_graph_refuses_offsets_that_do_not_fit(run):
    program = program_of(run, "DIEN AUGRU", "candidates")
    graph = trace(program, example(program.inputs)).module()
    for name in ("past_items.offsets", "candidates.offsets"):
        wrong = [
            value + 1 if item.name == name else value
            for item, value in zip(program.inputs, example(program.inputs), strict=True)
        ]
        with pytest.raises(RuntimeError, match=r"must (rise|have)"):
            graph(*wrong)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["item", "colour"], "candidate features must be among price, country, item, brand, got 'colour'"),
        (["item"], "candidate features must include 'brand'"),
    ],
)
def test_wrong_candidate_features(run, features, message):
    with pytest.raises(DienFastError, match=message):
        programs_of(run.model, without_negatives(run.schema), run.encoders, features)


def test_candidate_features_decide_what_is_repeated(run):
    schema = without_negatives(run.schema)
    _, candidates = programs_of(run.model, schema, run.encoders, ["item", "brand", "price"])
    sizes = {item.name: item.size for item in candidates.inputs}
    assert sizes["price"] == sizes["item"] == "candidates"
    assert sizes["country"] == "users"
    assert len(programs_of(run.model, schema, run.encoders, [])) == 1
