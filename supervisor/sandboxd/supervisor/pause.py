"""Work that no call waits for, done when calls pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Longer than a call of a module that is bound usually takes.
PAUSE_S = 0.005
# However busy the daemon is, work waits no longer than this.
MAX_DELAY_S = 0.02


class Pause:
    """Calls `work()` once nobody has asked for it for `pause_s`, or it has waited for long."""

    def __init__(self, work: Callable[[], None], pause_s: float = PAUSE_S) -> None:
        self._work = work
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._asked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        """Have the work done when calls pause."""
        self._asked_at = self._loop.time()
        if self._timer is None:
            last = self._asked_at + MAX_DELAY_S
            self._timer = self._loop.call_later(self._pause_s, self._due, last)

    def _due(self, last: float) -> None:
        at = min(self._asked_at + self._pause_s, last)
        if self._loop.time() < at:
            self._timer = self._loop.call_at(at, self._due, last)
            return
        self._timer = None
        self._work()

    def close(self) -> None:
        """Forget what was asked for."""
        if self._timer is not None:
            self._timer.cancel()
