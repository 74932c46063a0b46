"""Features that are no tensors of ids, have another shape, or name ids that a table does not have."""

import numpy as np
import pytest
import torch
from candidates import layout_of, trained
from native_cases import needs_native
from random_batches import SHARED, make_model, of_every_model, random_batch, random_ids

from dien_fast import DIEN, use_backend

ITEMS = {"item": torch.tensor([1, 2, 3])}
in_both_layouts = pytest.mark.parametrize("layout", ["padded", "ragged"])

WRONG_CANDIDATES = {
    "a list of ids": (
        {"item": [1, 2, 3]},
        r"candidates\['item'\] must be a tensor, got a list of int; for the words",
    ),
    "a list of words": (
        {"item": ["a", "b"]},
        r"candidates\['item'\] must be a tensor, got a list of str; for the ",
    ),
    "an array": (
        {"item": np.array([1, 2])},
        r"candidates\['item'\] must be a tensor, got a ndarray; for the words",
    ),
    "no dict": ([1, 2, 3], "candidates must be a dict of tensors by feature, got a list of int"),
    "a tensor": (torch.tensor([1, 2]), "candidates must be a dict of tensors by feature, got a Tensor"),
    "numbers as ids": (
        {"item": torch.tensor([1.0, 2.0])},
        "feature 'item' must hold ids of dtype int64, got torch.f",
    ),
    "a number beside ids": (
        ITEMS | {"age": [0.1, 0.2, 0.3]},
        r"candidates\['age'\] must be a tensor, got a list of f",
    ),
}


@in_both_layouts
@of_every_model
def test_candidates_that_are_no_tensors(kind, layout):
    model, user = trained(kind, shared_embeddings=SHARED), layout_of(layout, random_batch(1))
    for candidates, message in WRONG_CANDIDATES.values():
        with pytest.raises(TypeError, match=message) as caught:
            model.score_candidates(user, candidates)
        assert "\n" not in str(caught.value)


@in_both_layouts
@of_every_model
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.tensor(5), r"feature 'item' must have shape \(B,\), got \(\)"),
        (torch.tensor([[5], [6]]), r"feature 'item' must have shape \(B,\), got \(2, 1\)"),
    ],
)
def test_candidates_of_another_shape(item, message, kind, layout):
    user = layout_of(layout, random_batch(1))
    with pytest.raises(ValueError, match=message):
        trained(kind).score_candidates(user, {"item": item})
    with pytest.raises(ValueError, match=message):
        trained(kind)(user | {"item": item})


@of_every_model
@pytest.mark.parametrize(("offsets", "got"), [([0, 3], "list"), (torch.tensor([0.0, 3.0]), "torch.float32")])
def test_candidate_offsets_that_are_no_integer_tensor(offsets, got, kind):
    with pytest.raises(TypeError, match=f"candidate_offsets must be a tensor of dtype int64, got {got}"):
        trained(kind).score_candidates(random_batch(1), ITEMS, offsets)


WRONG_USERS = {
    "a list of ids": ({"user": [1]}, TypeError, "feature 'user' must be a tensor or Ragged, got a list of int"),
    "a history as a list": (
        {"clicked_shop": [[1, 2]]},
        TypeError,
        "feature 'clicked_shop' must be a tensor or Ragged, got a list of list",
    ),
    "a history without its batch": (
        {"clicked_item": torch.tensor([1, 2, 3]), "clicked_category": torch.tensor([1, 2, 3])},
        ValueError,
        r"feature 'clicked_item' must be Ragged or have shape \(B, T\), got \(3,\)",
    ),
    "numbers side by side": (
        {"age": torch.rand(1, 2, dtype=torch.float64)},
        ValueError,
        r"feature 'age' must have shape \(B,\) or \(B, 1\), got \(1, 2\)",
    ),
    "a history of numbers": (
        {"tags": torch.tensor([[1.0, 2.0]])},
        TypeError,
        "feature 'tags' must hold ids of dtype int64, got torch.float32",
    ),
}


@in_both_layouts
@of_every_model
def test_users_that_are_no_batch(kind, layout):
    model, good = trained(kind), layout_of(layout, random_batch(1))
    for change, error, message in WRONG_USERS.values():
        user = good | change
        with pytest.raises(error, match=message):
            model.score_candidates(user, ITEMS)
        with pytest.raises(error, match=message):
            model(user)


def test_a_user_that_is_no_dict():
    with pytest.raises(TypeError, match="user must be a dict of tensors by feature, got a list of int"):
        trained(DIEN).score_candidates([1, 2, 3], ITEMS)


UNKNOWN_IDS = {
    "too large": ({"item": torch.tensor([1, 11, 3, 12])}, r"ids of feature 'item' must lie in \[0, 10\], got 11"),
    "negative": ({"user": torch.tensor([1, 2, 3, -4])}, r"ids of feature 'user' must lie in \[0, 5\], got -4"),
    "in a history": (
        {"clicked_shop": random_ids("shop", torch.tensor([2, 0, 1, 3]))._replace(values=torch.full((6,), 7))},
        r"ids of feature '(clicked|sampled)_shop' must lie in \[0, 6\], got 7",
    ),
    "in a pooled sequence": (
        {"tags": torch.full((4, 2), 99)},
        r"ids of feature 'tags' must lie in \[0, 7\], got 99",
    ),
}


@pytest.mark.parametrize("shared", [SHARED, None], ids=["shared tables", "own tables"])
@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference"])
@of_every_model
def test_an_id_that_the_table_lacks_is_named(kind, backend, shared):
    model, good = make_model(kind, shared_embeddings=shared), random_batch(4)
    for case, (change, message) in UNKNOWN_IDS.items():
        batch = good | change
        if case == "in a history":
            batch["sampled_shop"] = batch["clicked_shop"]
        with use_backend(backend):
            for training in (True, False):
                with pytest.raises(IndexError, match=message):
                    model.train(training)(batch)


@pytest.mark.parametrize("shared", [SHARED, None], ids=["shared tables", "own tables"])
@of_every_model
def test_a_candidate_that_the_table_lacks_is_named(kind, shared):
    model = trained(kind, shared_embeddings=shared)
    with pytest.raises(IndexError, match=r"ids of feature 'item' must lie in \[0, 10\], got 2000"):
        model.score_candidates(random_batch(1), {"item": torch.tensor([3, 2000])})
