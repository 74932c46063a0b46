"""Which cases of a parametrised test make test runs, and which are left to make test-all."""

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
