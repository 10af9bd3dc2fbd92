"""The gate: what the daemon still takes in while it stops, and what it waits for."""

from __future__ import annotations

import asyncio

from sandboxd.supervisor import faults


class Gate:
    """Counts calls at work; once closed it lets no new one in.

    Use it as a context manager around a call; entering raises `faults.ShuttingDown` once closed.
    """

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._empty: asyncio.Event | None = None

    def __enter__(self) -> None:
        if self.closed:
            raise shutting_down()
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1
        if self._inside == 0 and self._empty is not None:
            self._empty.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True

    async def wait_empty(self) -> None:
        """Wait until all who were let in have left. To be called once, when it is closed."""
        self._empty = asyncio.Event()
        if self._inside:
            await self._empty.wait()


def shutting_down() -> faults.ShuttingDown:
    """The refusal of a daemon that stops."""
    return faults.ShuttingDown("the daemon is stopping; retry elsewhere or later", retry_after_s=1)
