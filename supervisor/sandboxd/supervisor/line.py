"""Calls that wait for a runner, first come, first served."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from sandboxd.supervisor import faults
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.runner import Runner


class QueueDeadline(Exception):  # noqa: N818 - an outcome of waiting
    """The deadline passed while the call waited for a runner."""


class Waiter:
    """One call that waits. `future` gets its runner, or why there is none.

    `overtaken` counts those behind it that were served before it.
    """

    __slots__ = ("fresh", "future", "key", "overtaken")

    def __init__(self, key: Key, fresh: bool, future: asyncio.Future[Runner]) -> None:
        self.key = key
        self.fresh = fresh
        self.future = future
        self.overtaken = 0

    @property
    def waits(self) -> bool:
        """False once it was served, refused or cancelled."""
        return not self.future.done()

    def expire(self) -> None:
        """Its deadline passed."""
        if not self.future.done():
            self.future.set_exception(QueueDeadline())


class Line:
    """The waiting calls in their order, and by key. All operations take constant time.

    `refused_total` counts those that found it full.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._by_key: dict[Key, OrderedDict[Waiter, None]] = {}
        self.refused_total = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    def join(self, waiter: Waiter) -> None:
        """Put a call at the end. Raises `faults.QueueFull`."""
        if len(self._waiters) >= self._capacity:
            self.refused_total += 1
            raise faults.QueueFull(
                f"{len(self._waiters)} calls are waiting already; retry later", retry_after_s=0.5
            )
        self._waiters[waiter] = None
        self._by_key.setdefault(waiter.key, OrderedDict())[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Take a call out. Idempotent."""
        if waiter not in self._waiters:
            return
        del self._waiters[waiter]
        same_key = self._by_key[waiter.key]
        del same_key[waiter]
        if not same_key:
            del self._by_key[waiter.key]

    def first(self) -> Waiter | None:
        """Return the first call that still waits."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            if waiter.waits:
                return waiter
            self.leave(waiter)
        return None

    def first_for(self, key: Key, *, used: bool) -> Waiter | None:
        """Return the first call that can be served by a runner of `key`.

        A call that wants a fresh process never takes a used one, nor do those behind it overtake
        it for longer than anybody else.
        """
        for waiter in self._by_key.get(key, ()):
            if waiter.waits:
                return None if used and waiter.fresh else waiter
        return None
