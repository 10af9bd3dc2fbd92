"""Latency quantiles are as accurate as the API promises."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor.stats import Histogram, Stats

MICROSECOND_NS = 1000
durations = st.lists(st.integers(MICROSECOND_NS, 10**13), min_size=1, max_size=200)


@given(durations, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_5_percent_of_the_exact_one(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert abs(histogram.quantile(q) - exact) <= 0.05 * exact


@given(durations)
def test_quantiles_rise_and_never_exceed_the_maximum(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = [histogram.quantile(q) for q in (0.0, 0.5, 0.9, 0.99, 1.0)]
    assert found == sorted(found)
    assert found[-1] <= histogram.max_ns == max(values)
    assert histogram.count == len(values)


@given(st.integers(-10, MICROSECOND_NS))
def test_durations_below_the_clocks_resolution_do_not_matter(value: int) -> None:
    histogram = Histogram()
    histogram.add(value)
    assert 0 <= histogram.quantile(0.5) <= MICROSECOND_NS or value < 0


def test_no_durations_have_no_quantiles() -> None:
    assert Histogram().quantile(0.5) == 0


def test_faults_are_counted_apart_and_have_no_latency() -> None:
    stats = Stats()
    stats.outcome("completed", 5000)
    stats.fault("QUEUE_FULL")
    stats.fault("QUEUE_FULL")
    assert stats.outcomes == {"completed": 1}
    assert stats.faults == {"QUEUE_FULL": 2}
    assert stats.latency.count == 1
