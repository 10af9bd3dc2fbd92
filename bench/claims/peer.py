"""The other sides: programs that do a claim's work, asked over their standard streams.

A peer is a process that lives as long as its figure is measured. It does the work as often as it
is told and times that itself, so that no pipe and no start is in the number.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from bench.claims.tools import ROOT

# A resized image is one line of 2 MB.
_LINE_BYTES_MAX = 8 << 20
_BATCHES_PER_BLOCK = 10
# Node.js compiles what is hot within the first tenths of a second.
_WARM_UP_S = 0.3
_REPEAT_MAX = 10_000_000

Repeat = Callable[[int], Awaitable[int]]
"""Do the work so many times; return the nanoseconds."""


class PeerError(Exception):
    """A peer ended, or said something else than it should."""


class Peer:
    """A running peer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, line: str) -> str:
        """Send a line and return the answer; raises PeerError if there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(ConnectionError):
            stdin.write(f"{line}\n".encode())
            await stdin.drain()
        answer = await stdout.readline()
        if not answer.endswith(b"\n"):
            raise PeerError(f"a peer ended when asked to {line}")
        return answer.decode().strip()

    async def answer(self) -> bytes:
        """Return the result of the work."""
        return bytes.fromhex(await self.ask("answer"))

    def repeat(self, verb: str = "run") -> Repeat:
        """Return what times the work by one of the peer's verbs."""

        async def times(count: int) -> int:
            return int(await self.ask(f"{verb} {count}"))

        return times


@contextlib.asynccontextmanager
async def peer(command: Sequence[str]) -> AsyncIterator[Peer]:
    """Run a peer until the block ends. What it writes to standard error is the user's to see."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        limit=_LINE_BYTES_MAX,
    )
    try:
        yield Peer(process)
    finally:
        # End of input is every peer's signal to leave; a process that is stuck is not asked twice.
        with contextlib.suppress(ConnectionError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


class Repeated:
    """Blocks of a work that a peer repeats: `await block()` is the seconds of one repetition."""

    def __init__(self, repeat: Repeat, seconds: float) -> None:
        self._repeat = repeat
        self._seconds = seconds
        self._count = 1

    async def warm_up(self) -> None:
        """Let the peer get fast, and find how many repetitions a batch should have."""
        end = time.perf_counter() + _WARM_UP_S
        count = 1
        while True:
            elapsed_s = max(await self._repeat(count), 1) / 1e9
            self._count = batch_size(count / elapsed_s, self._seconds)
            if time.perf_counter() >= end:
                return
            count = min(2 * count, self._count)

    async def block(self) -> float:
        """Run batches for the time of a block, one at least; return the median of their means."""
        means: list[float] = []
        end = time.perf_counter() + self._seconds
        while not means or time.perf_counter() < end:
            means.append(await self._repeat(self._count) / self._count / 1e9)
        return statistics.median(means)


def batch_size(per_second: float, block_s: float) -> int:
    """Return how many repetitions fill one of the batches of a block; 1 at least."""
    return max(1, min(_REPEAT_MAX, int(per_second * block_s / _BATCHES_PER_BLOCK)))


def spawn(command: Sequence[str]) -> bytes:
    """Run a program to its end and return its output; raises PeerError if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT, check=False
    )
    if done.returncode != 0:
        raise PeerError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]!r}")
    return done.stdout
