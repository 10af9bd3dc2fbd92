"""Work that is done at once, and often, without holding up the event loop.

An item of a batch can be refused, or decoded and checked, for microseconds or milliseconds without
waiting for anything. Thousands of them in a row, of one batch or of many, would keep the loop from
everybody else. All who do such work ask here before each piece, and share what one turn of the loop
may take.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

# What work of this kind may take of one turn, beside the piece that goes beyond it.
TURN_S = 0.001
# How many are woken in a turn: what they do then is counted again.
_WOKEN = 8


class Pacer:
    """Says when it is time to let others go first. First come, first served."""

    def __init__(self, turn_s: float = TURN_S) -> None:
        self._turn_s = turn_s
        self._loop = asyncio.get_running_loop()
        self._began_at = 0.0
        self._counting = False
        self._waiting: deque[asyncio.Future[bool]] = deque()

    @property
    def over(self) -> bool:
        """True if this turn of the loop has had its share; then `wait` for another one."""
        if not self._counting:
            self._count()
            return False
        return time.monotonic() - self._began_at > self._turn_s

    def _count(self) -> None:
        self._counting = True
        self._began_at = time.monotonic()
        self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._counting = False
        woken = 0
        while self._waiting and woken < _WOKEN:
            future = self._waiting.popleft()
            if not future.done():
                # The first of each turn goes on however much else there is, or none would ever.
                future.set_result(not woken)
                woken += 1
        if self._waiting:
            self._count()

    async def wait(self) -> bool:
        """Wait for another turn. True: go on; False: look first whether that one is over, too."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(future)
        if not self._counting:
            self._count()
        return await future
