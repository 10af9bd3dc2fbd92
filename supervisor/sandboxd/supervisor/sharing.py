"""Calls of one module share few processes.

When as many runners of a module are at work as the machine has processors, its next call waits a
moment for one of those, although others may be free: more processes at once would only take turns,
and push each other out of the caches. If the moment passes in vain, calls of that module are long,
or they sleep; for a while they do not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator

from sandboxd.supervisor.line import Waiter
from sandboxd.supervisor.runner import Runner

# How long a module's calls do not wait for one another, after one of them waited in vain.
SPREAD_S = 0.25
_RESOLUTION_S = time.get_clock_info("monotonic").resolution


class Module:
    """The runners bound to one key: those that are idle, how many are at work, who waits for them.

    `spread_until` is when calls share processes again.
    """

    __slots__ = ("busy", "idle", "patient", "spread_until")

    def __init__(self) -> None:
        self.idle: list[Runner] = []
        self.busy = 0
        self.patient: deque[Waiter] = deque()
        self.spread_until = 0.0

    @property
    def unused(self) -> bool:
        """True if there is nothing to remember."""
        return not (self.idle or self.busy or self.patient)

    def next_patient(self) -> Waiter | None:
        """Take the first call that waits for one of the runners."""
        while self.patient:
            waiter = self.patient.popleft()
            if waiter.waits:
                return waiter
        return None


class Patience:
    """Says which calls wait for a runner at work, and for how long.

    busy_per_module: runners of a module at work from which on its next call waits.
    patience_s: how long at most; 0 for never.
    on_lost: called with each call whose patience has ended; it is in no list of its module.
    """

    def __init__(
        self, busy_per_module: int, patience_s: float, on_lost: Callable[[Waiter, Module], None]
    ) -> None:
        self.busy_per_module = busy_per_module
        self._patience_s = patience_s
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        # By when their patience ends, which is the order of their coming. Who was served stays.
        self._waiting: deque[tuple[float, Waiter, Module]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for _, waiter, _ in self._waiting if waiter.waits)

    def advises_to_wait(self, module: Module) -> bool:
        """Say whether the module's next call had better wait."""
        return (
            self._patience_s > 0
            and module.busy >= self.busy_per_module
            and time.monotonic() >= module.spread_until
        )

    def wait(self, waiter: Waiter, module: Module) -> None:
        """Have a call wait for one of the module's runners."""
        module.patient.append(waiter)
        ends_at = self._loop.time() + self._patience_s
        self._waiting.append((ends_at, waiter, module))
        if self._timer is None:
            self._timer = self._loop.call_at(ends_at, self._lose)

    def _lose(self) -> None:
        self._timer = None
        now = self._loop.time() + _RESOLUTION_S
        while self._waiting and self._waiting[0][0] <= now:
            _, waiter, module = self._waiting.popleft()
            if waiter.waits:
                module.spread_until = now + SPREAD_S
                module.patient.remove(waiter)
                self._on_lost(waiter, module)
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting[0][0], self._lose)

    def close(self) -> None:
        """Nobody's patience ends any more."""
        if self._timer is not None:
            self._timer.cancel()
