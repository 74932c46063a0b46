"""Finds out what a module computes by running a copy of it.

Names prove nothing: the widespread listing prints AUGRU twice, with two orders of gates under the same names, and
prediction-flow's cell has these names with the inverted rule. A copy of the cell, in float64 with random weights
and without hooks, runs on random input, forward and backward, and must agree with exactly one rule and order of
gates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dien_fast.ops.backend import LIBRARY, use_backend
from dien_fast.ops.cells import GATES, ORDERS
from dien_fast.patches.cells import LAYOUTS, CellLayout, CellRule, Stacked, layout_of
from dien_fast.patches.swap import Recipe, swap
from dien_fast.patches.trial import (
    SEED,
    Draw,
    first_line,
    gradients_of,
    largest_difference,
    outcome,
    random_copy,
    undisturbed,
    uniform,
)
from dien_fast.reference.gru import replaced_share

TOLERANCE = 1e-12  # of the largest number; float64 rounding of these sizes is below 1e-14


class RefusedError(Exception):
    """A module is left as it is; the message is the reason."""


def _candidates(blocks: int) -> Iterator[CellRule]:
    """Yield every rule and order of gates that a cell with so many blocks of rows can have."""
    for reset in ("after", "before"):
        for cell, gates in GATES.items():
            for take in itertools.permutations(range(blocks), gates):
                yield CellRule(cell, take, blocks, reset)


class _OneStep:
    """A step of B histories with a cell's weights by any rule; products that rules share are computed once."""

    def __init__(self, weights: Stacked, blocks: int, x: Tensor, h: Tensor) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        self.h = h
        self.from_x = F.linear(x, weight_ih, bias_ih).chunk(blocks, 1)
        self.from_h = F.linear(h, weight_hh, bias_hh).chunk(blocks, 1)
        self.weights = weight_hh.chunk(blocks)
        self.biases = [None] * blocks if bias_hh is None else bias_hh.chunk(blocks)
        self.reset_first: dict[tuple[int, int], Tensor] = {}

    def run(self, rule: CellRule, att: Tensor) -> Tensor:
        """Return the states ``[B, H]`` after a step with attention ``[B]``."""
        block = dict(zip(ORDERS[rule.cell], rule.take, strict=True))
        r_block, n_block = block["r"], block["n"]
        u_block = block.get("u", r_block)  # without u, the rule does not read it
        r = torch.sigmoid(self.from_x[r_block] + self.from_h[r_block])
        u = torch.sigmoid(self.from_x[u_block] + self.from_h[u_block])
        if rule.reset == "after":
            inner = r * self.from_h[n_block]
        else:
            if (r_block, n_block) not in self.reset_first:
                product = F.linear(r * self.h, self.weights[n_block], self.biases[n_block])
                self.reset_first[r_block, n_block] = product
            inner = self.reset_first[r_block, n_block]
        n = torch.tanh(self.from_x[n_block] + inner)
        z = replaced_share(rule.cell, u, att.unsqueeze(1))
        return self.h + z * (n - self.h)


def _cell_input(inputs: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, h and attention of 12 rows: small and saturating numbers, attention inside and outside [0, 1]."""
    x, h, att = (uniform(generator, *shape).detach() for shape in ((12, inputs), (12, hidden), (12,)))
    x[6:9] *= 30 / max(inputs, 1) ** 0.5
    h[9:] *= 3
    att[4:] = att[4:].abs()
    att[:4] = torch.tensor([0.0, 1.0, -0.8, 2.5], dtype=torch.float64)
    return x.requires_grad_(), h.requires_grad_(), att.requires_grad_()


class _Trial(NamedTuple):
    """A copy of a cell after a step, in training and in evaluation.

    Attributes:
        weights: the copy's.
        blocks: how many blocks of rows they have.
        inputs: x ``[B, I]``, h ``[B, H]``, attention ``[B]``.
        leaves: the inputs and the copy's parameters.
        outcomes: states ``[B, H]`` in training, and in evaluation.
    """

    weights: Stacked
    blocks: int
    inputs: tuple[Tensor, Tensor, Tensor]
    leaves: list[Tensor]
    outcomes: list[Tensor]


def rule_of(cell: nn.Module) -> CellRule:
    """Return what a cell computes.

    Args:
        cell: a module with one of the layouts of :mod:`dien_fast.patches.cells`, without hooks.

    Returns:
        The one rule and order of gates that agrees with a copy of the cell to 1e-12, forward and backward.

    Raises:
        RefusedError: if none agrees, more than one, or one for which there is no kernel.
    """
    kind = f"its cell {type(cell).__name__}"
    name = layout_of(cell)
    if name is None:
        held = [key for key, _ in cell.named_parameters()]
        raise RefusedError(
            f"{kind} must have weight_ih, weight_hh, bias_ih and bias_hh, or x2h and h2h, "
            f"or Wu to bh, and nothing else that computes; it has {', '.join(held) or 'no parameters'}"
        )
    with undisturbed() as generator:
        matches = _matching_rules(_trial(cell, LAYOUTS[name], generator), generator)
    if len(matches) != 1:
        found = "none" if not matches else " and ".join(map(str, matches))
        raise RefusedError(
            f"{kind} was compared with the rules {', '.join(GATES)} in every order of gates, forward and "
            f"backward; {found} agrees to {TOLERANCE:g}"
        )
    (rule,) = matches
    if rule.reset == "before" or rule.cell == "gru":
        raise RefusedError(f"{kind} computes {rule}, for which there is no kernel with attention")
    return rule


def _trial(cell: nn.Module, layout: CellLayout, generator: torch.Generator) -> _Trial:
    """Run a copy of a cell for a step; raise RefusedError if it cannot be copied or run."""
    kind = f"its cell {type(cell).__name__}"
    try:
        twin = random_copy(cell, generator)
        weights = layout.stacked(twin)
    except Exception as error:
        raise RefusedError(f"{kind} cannot be copied: {first_line(error)}") from error
    hidden = weights[1].size(1)
    blocks, rest = divmod(weights[1].size(0), max(hidden, 1))
    if rest or blocks not in (2, 3) or weights[0].size(0) != weights[1].size(0):
        raise RefusedError(
            f"{kind} must have 2 or 3 gates of {hidden} rows, "
            f"got weights {tuple(weights[0].shape)} and {tuple(weights[1].shape)}"
        )
    inputs = _cell_input(weights[0].size(1), hidden, generator)
    outcomes = []
    for training in (True, False):
        twin.train(training)
        try:
            outcomes.append(layout.step(twin, *inputs))
        except Exception as error:
            raise RefusedError(f"a copy of {kind} in float64 raises {first_line(error)}") from error
    return _Trial(weights, blocks, inputs, [*inputs, *twin.parameters()], outcomes)


def _matching_rules(trial: _Trial, generator: torch.Generator) -> list[CellRule]:
    """Return the rules and orders of gates that agree with a trial, forward and backward."""
    x, h, att = trial.inputs
    state = generator.get_state()
    backward = gradients_of(trial.outcomes[0], trial.leaves, generator)
    step = _OneStep(trial.weights, trial.blocks, x, h)
    matches = []
    for rule in _candidates(trial.blocks):
        out = step.run(rule, att)
        if any(largest_difference([theirs.detach()], [out.detach()]) > TOLERANCE for theirs in trial.outcomes):
            continue
        generator.set_state(state)
        if largest_difference(backward, gradients_of(out, trial.leaves, generator)) <= TOLERANCE * 1e2:
            matches.append(rule)
    return matches


def check_same(module: nn.Module, recipe: Recipe, inputs: Draw, tolerance: float) -> None:
    """Raise unless the class that a recipe makes of a module computes what the module's own class does.

    Copies of both run in float64 with random weights, in training and evaluation, forward and backward.

    Args:
        module: the module.
        recipe: how its new class is made.
        inputs: draws the arguments of calls.
        tolerance: the largest allowed difference of outputs, gradients and buffers, relative to the largest
            number.

    Raises:
        RefusedError: if they differ, or one of the two raises.
    """
    native = use_backend("native" if LIBRARY.exists() else "reference")
    with undisturbed() as generator, native:
        for training in (True, False):
            found = []
            for fast in (False, True):
                generator.manual_seed(SEED)
                torch.default_generator.manual_seed(SEED)  # dropouts draw from it; undisturbed() restores it
                try:
                    twin = random_copy(module, generator)
                    twin.train(training)
                    if fast:
                        swap(twin, recipe)
                    found.append(outcome(twin, inputs(generator), generator))
                except Exception as error:
                    kind = "its new class" if fast else "a copy of it"
                    raise RefusedError(f"{kind} raises {first_line(error)}") from error
            (theirs, their_text), (ours, our_text) = found
            apart = math.inf if their_text != our_text else largest_difference(ours, theirs)
            if apart > tolerance:
                mode = "training" if training else "evaluation"
                by = f", by {apart:.1e} of the largest number" if math.isfinite(apart) else ""
                raise RefusedError(f"a copy of it computes something else in {mode}{by}")
