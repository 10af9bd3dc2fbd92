"""The loops that blocks are made of.

All of them run for a given time and at least a given number of calls, and return one number.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

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

    The clock starts when as many calls have ended as are in flight: all of them started together,
    which no later ones do. It stops with the last call that ended in time; those still in flight
    then are awaited, not counted. Counted are at least twice as many as are in flight: they end in
    bursts, and fewer would measure a burst.
    """
    min_calls = max(min_calls, 2 * len(calls))
    ended = counted = 0
    start = last = 0.0

    def over() -> bool:
        return counted >= min_calls and time.perf_counter() >= start + seconds

    async def worker(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal ended, counted, start, last
        while not over():
            await call()
            ended += 1
            if ended == len(calls):
                start = time.perf_counter()
            elif ended > len(calls) and not over():
                counted += 1
                last = time.perf_counter()

    await asyncio.gather(*map(worker, calls))
    return counted / (last - start)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the samples do not exceed, by nearest rank."""
    # The share is rarely exact in binary: 0.99 of 100 is a little more than 99.
    rank = math.ceil(share * len(samples) - 1e-9)
    return sorted(samples)[max(rank, 1) - 1]
