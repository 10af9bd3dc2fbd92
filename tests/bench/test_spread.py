"""Medians, quartiles and ratios."""

from __future__ import annotations

import pytest
from bench.figure import at_least, at_most
from bench.spread import round_ratios, spread
from bench.timing import percentile


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)


def test_a_single_value_is_its_own_spread() -> None:
    found = spread([7.0])
    assert (found.low, found.median, found.high) == (7.0, 7.0, 7.0)


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_ratios_are_taken_within_a_round() -> None:
    # A machine that grew ten times slower in the second round changes no ratio.
    assert round_ratios([2.0, 20.0], [1.0, 10.0]) == [2.0, 2.0]


def test_ratios_of_different_numbers_of_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1"):
        round_ratios([1.0, 1.0], [1.0])


def test_a_divisor_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="measured 0"):
        round_ratios([1.0], [0.0])


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_a_value_by_nearest_rank(share: float, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_a_goal_is_met_at_its_bound() -> None:
    assert at_most(1.3).met(1.3)
    assert not at_most(1.3).met(1.31)
    assert at_least(0.7).met(0.7)
    assert not at_least(0.7).met(0.69)
    assert (str(at_most(1.3)), str(at_least(100))) == ("≤ 1.3", "≥ 100")
