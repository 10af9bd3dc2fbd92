"""The loops that blocks are made of.

All of them run for a given time and at least a given number of calls, and return one number.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat

MIN_CALLS = 3


async def samples_async(
    call: Callable[[], Awaitable[object]], seconds: float, min_calls: int = MIN_CALLS
) -> list[float]:
    """Make calls one after the other; return how many seconds each one took."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or len(samples) < min_calls:
        await call()
        samples.append(time.perf_counter() - start)
    return samples


async def median_async(
    call: Callable[[], Awaitable[object]], seconds: float, min_calls: int = MIN_CALLS
) -> float:
    """Make calls one after the other; return the median in seconds."""
    return statistics.median(await samples_async(call, seconds, min_calls))


async def median_sync(
    call: Callable[[], object], seconds: float, min_calls: int = MIN_CALLS
) -> float:
    """Make blocking calls one after the other; return the median in seconds."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or len(samples) < min_calls:
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


async def throughput(
    calls: Sequence[Callable[[], Awaitable[object]]], seconds: float, min_calls: int = MIN_CALLS
) -> float:
    """Keep as many calls in flight as there are `calls`; return how many ended per second.

    Counted are the calls that ended before the time was up; those still in flight then are awaited,
    not counted. Where calls are slow the time is extended until `min_calls` have ended.
    """
    start = time.perf_counter()
    end = start + seconds
    ended = 0
    last = start

    async def worker(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal ended, last
        while time.perf_counter() < end or ended < min_calls:
            await call()
            now = time.perf_counter()
            if now <= end or ended < min_calls:
                ended += 1
                last = now

    await asyncio.gather(*map(worker, calls))
    return ended / (max(end, last) - start)


async def throughput_of(
    call: Callable[[], Awaitable[object]], in_flight: int, seconds: float
) -> float:
    """Keep `in_flight` calls of one kind in flight; return how many ended per second."""
    return await throughput(list(repeat(call, in_flight)), seconds)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the samples do not exceed, by nearest rank."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
