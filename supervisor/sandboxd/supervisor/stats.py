"""Counts of answers and a latency histogram: what the status shows."""

from __future__ import annotations

from collections import Counter

# Each power of two is cut into this many buckets: a quantile is off by at most 1/32.
_PARTS_BITS = 4


class Histogram:
    """Durations in nanoseconds, in buckets that are proportional; constant memory and time."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets: Counter[int] = Counter()

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self.count += 1
        self.max_ns = max(self.max_ns, duration_ns)
        # A bucket is the duration with all but its highest bits cleared.
        cut = max(0, duration_ns.bit_length() - _PARTS_BITS - 1)
        self._buckets[duration_ns >> cut << cut] += 1

    def quantile(self, q: float) -> int:
        """Return the duration in nanoseconds below which a share `q` of all lies; 0 if none."""
        rank = q * self.count
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                width = 1 << max(0, bucket.bit_length() - _PARTS_BITS - 1)
                return min(self.max_ns, bucket + width // 2)
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
