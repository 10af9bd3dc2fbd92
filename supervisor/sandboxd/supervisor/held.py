"""What calls hold in memory while they wait: all of them together, against bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from sandboxd.supervisor import faults


class HeldMemory:
    """Counts the bytes of requests that wait.

    Attributes: size_bytes (held now), most_bytes (what may be held).
    """

    def __init__(self, most_bytes: int) -> None:
        self.size_bytes = 0
        self.most_bytes = most_bytes

    @contextlib.contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Count so many bytes until the block ends. Raises `faults.QueueFull`."""
        if self.size_bytes + size_bytes > self.most_bytes:
            raise faults.QueueFull(
                f"calls that wait hold {self.size_bytes} bytes already; retry later",
                retry_after_s=0.5,
            )
        self.size_bytes += size_bytes
        try:
            yield
        finally:
            self.size_bytes -= size_bytes


class HeldResults:
    """Counts results of batches that no client has taken yet, and those that are being made.

    Nobody is refused for them: who would make more waits until there is room. `most_bytes` is what
    may be held, `result_bytes` what one result may have, which is counted while it is being made.
    """

    def __init__(self, most_bytes: int, result_bytes: int) -> None:
        self.size_bytes = 0
        self.result_bytes = result_bytes
        self._most_bytes = most_bytes - result_bytes
        self._room = asyncio.Event()
        # There is no room for another result to be made; `room` waits until there is.
        self.full = self._most_bytes < 0

    def count(self, size_bytes: int) -> None:
        """Count so many bytes more, or less."""
        self.size_bytes += size_bytes
        self.full = self.size_bytes > self._most_bytes
        if size_bytes < 0:
            self._room.set()

    async def room(self) -> None:
        """Wait until something was taken, by whomever. It may be as full as before."""
        self._room.clear()
        await self._room.wait()
