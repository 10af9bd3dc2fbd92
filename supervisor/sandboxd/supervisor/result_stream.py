"""Results on their way to a client: collected, written together, and held up if it does not read.

A message costs the event loop as much as several calls, so results wait for each other: until there
are enough for a message, or for some milliseconds after the message before. A result that comes
alone waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from sandboxd.supervisor import faults
from sandboxd.supervisor.held import HeldResults

# A message is written at once when so much is there, and has no more unless one result does.
MESSAGE_BYTES = 256 * 1024
# While so much waits to be written, `full` tells those who make results to make no more.
MAX_WAITING_BYTES = 1024 * 1024
# Messages that are not full begin at least this far apart. With 5 ms a sampling profiler, once, saw
# a fifth of the interpreter's time go into writing them.
PAUSE_S = 0.02
# A client that takes nothing for so long is given up: what it asked for holds memory.
STALL_TIMEOUT_S = 60.0


class ResultStream:
    """Takes results as serialized fields of a message; `run` writes them, some at a time.

    `held` counts them until they are written; `close` has the last word.
    `write` sends one message and returns when the transport has taken it.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        held: HeldResults,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._write = write
        self._held = held
        self._held_bytes = 0
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._finished = False
        self._due = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._written_at = 0.0

    @property
    def full(self) -> bool:
        """True if so much waits that no more should be made; `room` waits until it is not."""
        return self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def empty(self) -> bool:
        """True if every result that came was written."""
        return not self._held_bytes

    def _count(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self._held.count(size_bytes)

    def close(self) -> None:
        """Forget what was not written."""
        self._waiting.clear()
        self._count(-self._held_bytes)

    def add(self, result: bytes) -> None:
        """Take one result. Never waits, and takes it even if it is full."""
        self._count(len(result))
        self._waiting.append(result)
        self._waiting_bytes += len(result)
        if self._waiting_bytes >= MESSAGE_BYTES:
            self._due.set()
            if self.full:
                self._room.clear()
        elif len(self._waiting) == 1:
            self._loop.call_at(self._written_at + PAUSE_S, self._due.set)

    async def room(self) -> None:
        """Wait until it is not full."""
        await self._room.wait()

    def finish(self) -> None:
        """No more results come: `run` writes what is there and returns."""
        self._finished = True
        self._due.set()

    async def run(self) -> None:
        """Write until `finish`. Raises `faults.DeadlineFault` if the client does not read."""
        while True:
            await self._due.wait()
            if self._waiting:
                await self._write_one()
            elif self._finished:
                return
            else:
                # An alarm of results that went with an earlier message.
                self._due.clear()

    async def _write_one(self) -> None:
        self._written_at = self._loop.time()
        message = self._next_message()
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._write(message)
        except TimeoutError:
            raise faults.DeadlineFault(
                f"the client read no results for {self._stall_timeout_s:g} s"
            ) from None
        self._count(-len(message))

    def _next_message(self) -> bytes:
        waiting = self._waiting
        parts = [waiting.popleft()]
        size = len(parts[0])
        while waiting and size + len(waiting[0]) <= MESSAGE_BYTES:
            size += len(waiting[0])
            parts.append(waiting.popleft())
        self._waiting_bytes -= size
        if not self.full:
            self._room.set()
        if not waiting and not self._finished:
            self._due.clear()
        return b"".join(parts)
