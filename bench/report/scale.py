"""Axes of charts: where a value stands, and where the ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A linear axis from 0 would flatten what spans more than this.
_LOG_FROM = 15.0
_MOST_TICKS = 9
# So few decades have room for ticks at 1, 2 and 5.
_FEW_DECADES = 3


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool
    base: int = 10
    zero: bool = False
    """Whether the start of a logarithmic axis stands for 0."""

    def place(self, value: float) -> float:
        """Return the pixel of a value; a value below the axis is at its start."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return the values that get a label."""
        ticks = self._powers() if self.logarithmic else self._steps()
        return [0.0, *ticks[1:]] if self.zero else ticks

    def _powers(self) -> list[float]:
        first = math.floor(math.log(self.low, self.base) + 1e-9)
        last = math.ceil(math.log(self.high, self.base) - 1e-9)
        step = max(1, math.ceil((last - first + 1) / _MOST_TICKS))
        ticks = [float(self.base) ** power for power in range(first, last + 1, step)]
        if self.base == 10 and last - first <= _FEW_DECADES:
            ticks = [tick * times for tick in ticks for times in (1, 2, 5)]
        return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]

    def _steps(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + step * number for number in range(count + 1)]


def fit(values: Iterable[float], start: float, stop: float, binary: bool = False) -> Scale:
    """Return a scale that holds all values: logarithmic if they span much, else from 0.

    A binary one is always logarithmic, with steps of 4; if there is a 0, it stands at the start.
    """
    every = list(values)
    found = [value for value in every if value > 0]
    if not found:
        return Scale(0.0, 1.0, start, stop, logarithmic=False)
    low, high = min(found), max(found)
    if binary:
        zero = min(every) <= 0
        # Two steps before the least: 0 is farther from it than the next one.
        ends = _powers_around(low / 16 if zero else low, high, 4)
        return Scale(*ends, start, stop, logarithmic=True, base=4, zero=zero)
    if high / low < _LOG_FROM:
        return Scale(0.0, high * 1.08, start, stop, logarithmic=False)
    return Scale(*_round_around(low, high), start, stop, logarithmic=True)


def _powers_around(low: float, high: float, base: int) -> tuple[float, float]:
    first = math.floor(math.log(low, base) + 1e-9)
    last = math.ceil(math.log(high, base) - 1e-9)
    return float(base) ** first, float(base) ** max(last, first + 1)


def _round_around(low: float, high: float) -> tuple[float, float]:
    """Widen to 1, 2 or 5 times a power of ten: a whole decade may be mostly empty."""
    candidates = _ladder(low, high)
    below = max(step for step in candidates if step <= low * 1.0001)
    above = min(step for step in candidates if step >= high * 0.9999)
    return below, above


def _ladder(low: float, high: float) -> Sequence[float]:
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    return [times * 10.0**power for power in range(first, last + 1) for times in (1, 2, 5)]
