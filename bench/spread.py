"""Medians, quartiles, and ratios taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise values; of a single one, it is all three. Raises ValueError if there is none."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def round_ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Divide two sides round by round: what was measured in the same moments.

    Raises ValueError if they have not the same number of rounds, or a divisor is 0.
    """
    if len(of) != len(to):
        raise ValueError(f"{len(of)} rounds against {len(to)}")
    if not all(to):
        raise ValueError("a round of the divisor measured 0")
    return [one / two for one, two in zip(of, to, strict=True)]
