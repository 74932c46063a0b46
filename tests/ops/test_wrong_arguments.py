"""Wrong arguments of the interest layer's operators."""

import os

import pytest
import torch
from interest_cases import NATIVE, offsets_of, pairs, scoring

pytestmark = pytest.mark.skipif(
    os.environ.get("DIEN_FAST_BACKEND") == "reference", reason="the reference backend was asked for"
)


def changed(arguments, changes):
    """Arguments with some replaced by others, or by functions of them."""
    arguments = list(arguments)
    for position, value in changes.items():
        arguments[position] = value(arguments[position]) if callable(value) else value
    return arguments


def without(index):
    return lambda values: [value for place, value in enumerate(values) if place != index]


def with_one(index, change):
    return lambda values: [change(value) if place == index else value for place, value in enumerate(values)]


def twice(values):
    return [*values, values[-1]]


QUERY, KEYS, OFFSETS, STARTS, PARAMETERS, RUNNING, SEED, MAX_LENGTH, LAYERS, EPSILONS, DROPOUT, TRAINING = range(
    12
)
WRONG_SCORES = {
    "offsets beyond the keys": ({OFFSETS: offsets_of([3, 0, 6, 2])}, "offsets must rise from 0 to 10"),
    "offsets below the keys": ({OFFSETS: offsets_of([3, 0, 6, 0])}, "offsets must rise from 0 to 10"),
    "falling offsets": ({OFFSETS: torch.tensor([0, 3, 2, 9, 10])}, "offsets must rise from 0 to 10"),
    "negative offsets": ({OFFSETS: torch.tensor([-1, 3, 3, 9, 10])}, "offsets must rise from 0 to 10"),
    "huge offsets": ({OFFSETS: torch.tensor([0, 3, 2**63 - 1, 9, 10])}, "offsets must rise from 0 to 10"),
    "no offsets": (
        {OFFSETS: torch.empty(0, dtype=torch.int64)},
        r"offsets must have shape \(B \+ 1,\), got \(0,\)",
    ),
    "offsets of int32": ({OFFSETS: offsets_of([3, 0, 6, 1]).int()}, "offsets must be contiguous int64"),
    "offsets of float64": ({OFFSETS: offsets_of([3, 0, 6, 1]).double()}, "offsets must be contiguous int64"),
    "offsets apart": (
        {OFFSETS: offsets_of([3, 0, 6, 1]).repeat_interleave(2)[::2]},
        "offsets must be contiguous int64",
    ),
    "offsets in a matrix": ({OFFSETS: torch.zeros(5, 1).long()}, r"offsets must have shape \(\*,\), got \(5, 1\)"),
    "fewer queries": ({QUERY: torch.zeros(3, 5)}, r"query must have shape \(4, 5\), got \(3, 5\)"),
    "query without channels": ({QUERY: torch.zeros(4)}, r"query must have shape \(\*, \*\), got \(4,\)"),
    "no channels": (
        {QUERY: torch.zeros(4, 0), KEYS: torch.zeros(10, 0)},
        "query must have at least one channel, got 0",
    ),
    "wider keys": ({KEYS: torch.zeros(10, 6)}, r"keys must have shape \(\*, 5\), got \(10, 6\)"),
    "keys of float64": ({KEYS: torch.zeros(10, 5).double()}, "keys must have the dtype of "),
    "keys apart": ({KEYS: torch.zeros(5, 10).t()}, "keys must be contiguous"),
    "query of float16": ({QUERY: torch.zeros(4, 5).half()}, "query must have dtype float32 or float64"),
    "query of int64": ({QUERY: torch.zeros(4, 5).long()}, "query must have dtype float32 or float64"),
    "narrow max_length": ({MAX_LENGTH: 5}, "max_length must be at least the longest length 6, got 5"),
    "negative max_length": ({MAX_LENGTH: -1}, "max_length must be at least the longest length 6, got -1"),
    "no layers": ({LAYERS: []}, "layers must hold 1 to 8 layers, got 0"),
    "nine layers": ({LAYERS: [1] * 9}, "layers must hold 1 to 8 layers, got 9"),
    "unknown activation": ({LAYERS: [12, 5]}, "layers must hold codes of activations, got 5"),
    "unknown normalised activation": ({LAYERS: [13, 12]}, "layers must hold codes of activations, got 13"),
    "negative activation": ({LAYERS: [-1, 12]}, "layers must hold codes of activations, got -1"),
    "large activation": ({LAYERS: [16, 12]}, "layers must hold codes of activations, got 16"),
    "no parameters": ({PARAMETERS: []}, "parameters must "),
    "fewer parameters": ({PARAMETERS: without(15)}, "parameters must be those of the layers, got 15"),
    "more parameters": (
        {PARAMETERS: twice},
        "parameters, running and epsilons must be those of the layers, got 17",
    ),
    "fewer layers": ({LAYERS: [12]}, "parameters must have shape "),
    "narrow weight": (
        {PARAMETERS: with_one(0, lambda weight: weight[:, :15].contiguous())},
        r"parameters must have shape \(7, 20\), got \(7, 15\)",
    ),
    "weight without columns": (
        {PARAMETERS: with_one(0, lambda weight: weight[:, 0])},
        "parameters must hold a matrix",
    ),
    "long bias": (
        {PARAMETERS: with_one(1, lambda bias: bias.repeat(2))},
        r"parameters must have shape \(7,\), got \(14,\)",
    ),
    "parameter of float64": ({PARAMETERS: with_one(4, torch.Tensor.double)}, "parameters must have the dtype of "),
    "parameter apart": (
        {PARAMETERS: with_one(7, lambda weight: weight.t().contiguous().t())},
        "parameters must be contiguous",
    ),
    "fewer epsilons": ({EPSILONS: without(3)}, "epsilons must hold one number a normalisation, got 3"),
    "more epsilons": ({EPSILONS: twice}, "parameters, running and epsilons must be those of the layers"),
    "running in training": (
        {RUNNING: [torch.zeros(7)]},
        "parameters, running and epsilons must be those of the layers",
    ),
    "no running in evaluation": ({TRAINING: False}, "running must hold two tensors a normalisation, got 0"),
    "dropout of 1": ({DROPOUT: 1.0}, r"dropout must lie in \[0, 1\), got 1"),
    "negative dropout": ({DROPOUT: -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
    "dropout that is no number": ({DROPOUT: float("nan")}, r"dropout must lie in \[0, 1\), got"),
    "no seed": ({DROPOUT: 0.5, SEED: None}, "seed must be given with dropout"),
    "two seeds": ({DROPOUT: 0.5, SEED: torch.zeros(2).long()}, r"seed must have shape \(1,\), got \(2,\)"),
    "seed without a dimension": ({DROPOUT: 0.5, SEED: torch.tensor(3)}, r"seed must have shape \(1,\), got \(\)"),
    "seed of float32": ({DROPOUT: 0.5, SEED: torch.zeros(1)}, "seed must be int64"),
    "shared keys in training": ({STARTS: torch.zeros(4).long()}, "key_start must come with evaluation"),
}
WRONG_STARTS = {
    "behind": (torch.tensor([0, 0, 5, 9]), "key_start must leave history 2 inside the 10 keys, got 5 for 6 steps"),
    "in front": (
        torch.tensor([0, 0, -1, 9]),
        "key_start must leave history 2 inside the 10 keys, got -1 for 6 steps",
    ),
    "far": (
        torch.full((4,), 2**63 - 1),
        f"key_start must leave history 0 inside the 10 keys, got {2**63 - 1} for 3",
    ),
    "fewer": (torch.zeros(3).long(), r"key_start must have shape \(4,\), got \(3,\)"),
    "int32": (torch.zeros(4).int(), "key_start must be contiguous int64"),
    "apart": (torch.zeros(8).long()[::2], "key_start must be contiguous int64"),
}


class TestWrongArguments:
    """Wrong arguments are refused in one sentence before memory is touched."""

    @pytest.mark.parametrize("case", WRONG_SCORES)
    def test_attention_scores(self, case):
        changes, message = WRONG_SCORES[case]
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.attention_scores(*changed(scoring([3, 0, 6, 1], 6, dtype=torch.float32).raw(), changes))

    @pytest.mark.parametrize("case", WRONG_STARTS)
    def test_key_start(self, case):
        starts, message = WRONG_STARTS[case]
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.attention_scores(*s.raw(starts, save=False))

    def test_key_start_with_more_steps_than_keys(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        s.offsets, s.max_length = torch.tensor([0, 3, 3, 2**62, 2**62 + 1]), 2**62
        with (
            torch.no_grad(),
            pytest.raises(RuntimeError, match="key_start must leave history 2 inside the 10 keys"),
        ):
            NATIVE.attention_scores(*s.raw(torch.zeros(4).long(), save=False))

    def test_running_of_another_size(self):
        s = scoring([3, 0, 6, 1], 6, training=False, dtype=torch.float32)
        for running, message in (
            (with_one(1, lambda value: value[1:]), r"running must have shape \(7,\), got \(6,\)"),
            (with_one(1, torch.Tensor.double), "running must have the dtype of "),
            (without(7), "running must hold two tensors a normalisation, got 7"),
            (twice, "parameters, running and epsilons must be those of the layers"),
        ):
            with torch.no_grad(), pytest.raises(RuntimeError, match=message):
                NATIVE.attention_scores(*changed(s.raw(), {RUNNING: running}))

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, torch.zeros(9), r"dscores must have shape \(10,\), got \(9,\)"),
            (0, torch.zeros(20)[::2], "dscores must be contiguous"),
            (0, torch.zeros(10).double(), "dscores must have the dtype of "),
            (1, torch.zeros(11), r"scores must have shape \(10,\), got \(11,\)"),
            (8, torch.zeros(0), r"saved must have shape \(\d+,\), got \(0,\)"),
            (8, torch.zeros(0).double(), "saved must have "),
            (7, torch.zeros(2).long(), r"seed must have shape \(1,\), got \(2,\)"),
            (7, None, "seed must be given with dropout"),
            (9, 2, "max_length must be at least the longest length 6, got 2"),
            (4, offsets_of([3, 0, 6, 0]), "offsets must rise from 0 to 10"),
        ],
    )
    def test_attention_scores_backward(self, position, value, message):
        s = scoring([3, 0, 6, 1], 6, dropout=0.5, dtype=torch.float32)
        seed = torch.tensor([3])
        with torch.no_grad():
            scores, _, saved = NATIVE.attention_scores(*s.raw(seed=seed))
            query, keys, offsets, _, parameters, running, _, *rest, _ = s.raw()
            arguments = [torch.zeros(10), scores, query, keys, offsets, parameters, running, seed, saved, *rest]
            NATIVE.attention_scores_backward(*arguments)
            arguments[position] = value
            with pytest.raises(RuntimeError, match=message):
                NATIVE.attention_scores_backward(*arguments)

    def test_backward_of_what_was_not_kept(self):
        s = scoring([3, 0, 6, 1], 6, dtype=torch.float32)
        scores, _, _ = NATIVE.attention_scores(*s.raw(save=False))
        with pytest.raises(RuntimeError, match=r"saved must have shape \(\d+,\), got \(0,\)"):
            scores.sum().backward()

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, torch.zeros(10), r"states must have shape \(\*, \*\), got \(10,\)"),
            (0, torch.zeros(10, 5).half(), "states must have dtype float32 or float64"),
            (0, torch.zeros(5, 10).t(), "states must be contiguous"),
            (1, torch.zeros(9, 5), r"events must have shape \(10, 5\), got \(9, 5\)"),
            (1, torch.zeros(10, 4), r"events must have shape \(10, 5\), got \(10, 4\)"),
            (2, torch.zeros(10, 5).double(), "negatives must have the dtype of "),
            (2, torch.zeros(11, 5), r"negatives must have shape \(10, 5\), got \(11, 5\)"),
            (3, offsets_of([3, 0, 6, 2]), "offsets must rise from 0 to 10"),
            (3, torch.tensor([0, 3, 2, 9, 10]), "offsets must rise from 0 to 10"),
            (3, offsets_of([3, 0, 6, 1]).int(), "offsets must be contiguous int64"),
            (3, torch.empty(0, dtype=torch.int64), r"offsets must have shape \(B \+ 1,\), got \(0,\)"),
            (4, [], "parameters must hold weight and bias of 2 to 9 layers, got 0 tensors"),
            (4, without(0), "parameters must hold weight and bias of 2 to 9 layers, got 5 tensors"),
            (4, lambda values: values[4:], "parameters must hold weight and bias of 2 to 9 layers, got 2 tensors"),
            (
                4,
                lambda values: values * 4,
                "parameters must hold weight and bias of 2 to 9 layers, got 24 tensors",
            ),
            (
                4,
                with_one(0, lambda w: w[:, :9].contiguous()),
                r"parameters must have shape \(\*, 10\), got \(7, 9\)",
            ),
            (4, with_one(0, lambda w: w[:0]), "parameters must have at least one output a layer"),
            (4, with_one(1, lambda b: b[:6]), r"parameters must have shape \(7,\), got \(6,\)"),
            (4, with_one(2, torch.Tensor.double), "parameters must have the dtype of "),
            (4, with_one(2, lambda w: w.t().contiguous().t()), "parameters must be contiguous"),
            (4, with_one(4, lambda w: w.repeat(2, 1)), r"parameters must have shape \(1, 4\), got \(2, 4\)"),
        ],
    )
    def test_auxiliary_loss(self, position, value, message):
        p = pairs([3, 0, 6, 1], dtype=torch.float32)
        arguments = changed([*p.rows, p.offsets, p.parameters, True], {position: value})
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            NATIVE.auxiliary_loss(*arguments)

    @pytest.mark.parametrize(
        ("operator", "arguments", "message"),
        [
            (
                "rows_from_padded",
                (torch.zeros(3), offsets_of([1, 2, 0])),
                r"padded must have shape \(B, T, \.\.\.\)",
            ),
            ("rows_from_padded", (torch.zeros(4, 3).t(), offsets_of([1, 2, 0])), "padded must be contiguous"),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), offsets_of([1, 2])),
                r"offsets must have shape \(4,\), got \(3,\)",
            ),
            ("rows_from_padded", (torch.zeros(3, 4), offsets_of([1, 5, 0])), "lengths must be at most 4, got 5"),
            ("rows_from_padded", (torch.zeros(3, 4), torch.tensor([0, 3, 2, 4])), "offsets must rise from 0 to N"),
            ("rows_from_padded", (torch.zeros(3, 4), torch.tensor([1, 2, 3, 4])), "offsets must rise from 0 to N"),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), offsets_of([1, 2, 0]).int()),
                "offsets must be contiguous int64",
            ),
            (
                "rows_from_padded",
                (torch.zeros(3, 4), torch.tensor([0, 2, 4, 2**63 - 1])),
                "lengths must be at most 4",
            ),
            ("padded_from_rows", (torch.tensor(1.0), offsets_of([1]), 3), r"values must have shape \(N, \.\.\.\)"),
            ("padded_from_rows", (torch.zeros(2, 3).t(), offsets_of([3]), 3), "values must be contiguous"),
            ("padded_from_rows", (torch.zeros(3, 2), offsets_of([1, 1]), 3), "offsets must rise from 0 to 3"),
            ("padded_from_rows", (torch.zeros(3, 2), offsets_of([3]), 2), "lengths must be at most 2, got 3"),
            ("padded_from_rows", (torch.zeros(0, 2), offsets_of([0]), -1), "must be"),
            ("padded_from_rows", (torch.zeros(0, 2), offsets_of([]), -1), "steps must "),
            (
                "padded_from_rows",
                (torch.zeros(0, 2), torch.empty(0).long(), 1),
                r"offsets must have shape \(B \+ 1,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3), torch.zeros(3), offsets_of([3])),
                r"values must have shape \(\*, \*\), got \(3,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(2), offsets_of([3])),
                r"weights must have shape \(3,\), got \(2,\)",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(3).double(), offsets_of([3])),
                "weights must have the dtype",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2), torch.zeros(3), offsets_of([2])),
                "offsets must rise from 0 to 3",
            ),
            (
                "weighted_sum",
                (torch.zeros(3, 2).int(), torch.zeros(3).int(), offsets_of([3])),
                "values must have dtype",
            ),
            (
                "weighted_sum",
                (torch.zeros(2, 3).t(), torch.zeros(3), offsets_of([3])),
                "values must be contiguous",
            ),
            (
                "weighted_sum_backward",
                (torch.zeros(2, 2), torch.zeros(3, 2), torch.zeros(3), offsets_of([3])),
                r"dsum must have shape \(1, 2\), got \(2, 2\)",
            ),
        ],
    )
    def test_rows(self, operator, arguments, message):
        with pytest.raises(RuntimeError, match=message):
            getattr(NATIVE, operator)(*arguments)
