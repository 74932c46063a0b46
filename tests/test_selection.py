"""Which cases of a parametrised test make test runs."""

import itertools

import pytest
from selection import every_pair, slow_but, slow_but_pairs

AXES = ("abcd", [1, 2, 3], [True, False], [None, ()])


def test_any_two_values_meet_in_a_fraction_of_the_cases():
    cases = every_pair(*AXES)
    assert len(cases) < 16
    for first, second in itertools.combinations(range(4), 2):
        assert {(case[first], case[second]) for case in cases} == set(itertools.product(AXES[first], AXES[second]))


def test_every_case_stays_and_the_others_are_slow():
    parameters = slow_but_pairs(*AXES)
    assert [parameter.values for parameter in parameters] == list(itertools.product(*AXES))
    assert [parameter.values for parameter in parameters if not parameter.marks] == sorted(
        every_pair(*AXES), key=list(itertools.product(*AXES)).index
    )


def test_a_case_that_is_no_more_is_an_error():
    with pytest.raises(ValueError, match=r"kept must name cases, got \[\('d',\)\]"):
        slow_but(["a", "d"], "abc")
