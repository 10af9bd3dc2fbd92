"""The checks by name, in the order in which they are made: each one finds what the last one left.

A check returns what it measured, in words, and raises if that is not as it must be. The host knows
the names from here, so that it misses those of which the guest says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Check = Callable[[], str]

CHECKS: Final[dict[str, Check]] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Enter a function under a sentence that says what must hold."""

    def enter(function: Check) -> Check:
        assert name not in CHECKS, name
        CHECKS[name] = function
        return function

    return enter


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until it is so; return how long that took. Raises AssertionError if it never is."""
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() - started_at < timeout_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - started_at
