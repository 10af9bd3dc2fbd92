"""Sides of the usual kinds, in one line each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from bench.figure import Side
from bench.timing import median_async, median_sync, throughput


def latency(name: str, call: Callable[[], Awaitable[object]], seconds: float) -> Side:
    """Median seconds of asynchronous calls, one after the other."""
    return Side(name, lambda: median_async(call, seconds))


def latency_sync(name: str, call: Callable[[], object], seconds: float) -> Side:
    """Median seconds of blocking calls, one after the other."""
    return Side(name, lambda: median_sync(call, seconds))


def rate(name: str, calls: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> Side:
    """Calls per second, with as many in flight as there are `calls`."""
    return Side(name, lambda: throughput(calls, seconds))
