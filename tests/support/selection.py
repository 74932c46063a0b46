"""Which cases of a parametrised test make test runs, and which are left to make test-all."""

import itertools

import pytest


def slow_but(kept, cases):
    """Return the cases as parameters, with those that are not in ``kept`` marked slow.

    A case is a tuple of the parameters' values, or the value of the only one. ``kept`` names cases, so that one
    that no longer exists is an error, not a test that make test loses.
    """
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    kept = [case if isinstance(case, tuple) else (case,) for case in kept]
    unknown = [case for case in kept if case not in cases]
    if unknown:
        raise ValueError(f"kept must name cases, got {unknown}")
    return [pytest.param(*case, marks=() if case in kept else pytest.mark.slow) for case in cases]


def every_pair(*axes):
    """Return few cases among which any two values of two parameters meet, each parameter given by its values."""
    numbers = list(itertools.product(*(range(len(axis)) for axis in axes)))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in numbers}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(numbers, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    return [tuple(axis[number] for axis, number in zip(axes, case, strict=True)) for case in chosen]


def slow_but_pairs(*axes):
    """Return every case of the parameters, with those that :func:`every_pair` leaves out marked slow."""
    return slow_but(every_pair(*axes), itertools.product(*axes))
