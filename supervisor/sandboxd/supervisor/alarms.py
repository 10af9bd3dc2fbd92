"""Many alarms on one timer of the event loop.

Every call sets one and nearly every call cancels it. A timer of the loop costs several times as
much to make and to compare, so these share one, which is set for the earliest.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_RESOLUTION_S = time.get_clock_info("monotonic").resolution
# Cancelled alarms stay where they are until they are due, or make up most of so many.
_MIN_COMPACTED = 256


class Alarm:
    """An alarm that was set, for `cancel`. Without a callback it was cancelled, or called."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback


class Alarms:
    """Callbacks by time, in seconds of the event loop's clock. A callback must not raise."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # By time; the number decides between equals.
        self._heap: list[tuple[float, int, Alarm]] = []
        self._number = itertools.count().__next__
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def set(self, due_at: float, callback: Callable[[], None]) -> Alarm:
        """Have `callback` called once, at `due_at` or as soon after as the loop gets to it."""
        alarm = Alarm(callback)
        heapq.heappush(self._heap, (due_at, self._number(), alarm))
        if due_at < self._timer_at:
            self._set_timer(due_at)
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """Do not call it. Idempotent, and without effect on one that has been called."""
        if alarm.callback is None:
            return
        alarm.callback = None
        self._cancelled += 1
        if self._cancelled >= _MIN_COMPACTED and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _set_timer(self, due_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due_at
        self._timer = self._loop.call_at(due_at, self._fire)

    def _fire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self._loop.time() + _RESOLUTION_S
        while self._heap and self._heap[0][0] <= now:
            _, _, alarm = heapq.heappop(self._heap)
            callback, alarm.callback = alarm.callback, None
            if callback is None:
                self._cancelled -= 1
                continue
            try:
                callback()
            except Exception:
                log.exception("a bug: an alarm's callback failed")
        if self._heap and self._heap[0][0] < self._timer_at:
            self._set_timer(self._heap[0][0])

    def close(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
