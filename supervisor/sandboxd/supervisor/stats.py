"""Counts of answers and a latency histogram: what the status shows."""

from __future__ import annotations

import math
from collections import Counter

# Buckets grow by this factor: a quantile is off by at most half of it.
_GROWTH = 1.05
_LOG_GROWTH = math.log(_GROWTH)


class Histogram:
    """Durations in nanoseconds, in buckets that grow by 5 %; constant memory, constant time."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets: Counter[int] = Counter()

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self.count += 1
        self.max_ns = max(self.max_ns, duration_ns)
        self._buckets[int(math.log(max(1, duration_ns)) / _LOG_GROWTH)] += 1

    def quantile(self, q: float) -> int:
        """Return the duration in nanoseconds below which a share `q` of all lies; 0 if none."""
        rank = q * self.count
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return min(self.max_ns, int(_GROWTH ** (bucket + 0.5)))
        return 0


class Stats:
    """What the daemon answered since it started."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.latency = Histogram()

    def outcome(self, name: str, latency_ns: int) -> None:
        """Count an outcome and how long its call took."""
        self.outcomes[name] += 1
        self.latency.add(latency_ns)

    def fault(self, reason: str) -> None:
        """Count a fault."""
        self.faults[reason] += 1
