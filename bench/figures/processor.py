"""Where the processor time of a call goes: who spends how much."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side
from bench.figures.setting import Execute, bound_module, calls, counting
from bench.stage import Daemon, Endpoint, Stage
from bench.timing import throughput

SECTION = "Calls"
_IN_FLIGHT = 32
_SUPERVISOR, _RUNNERS, _CLIENT = "supervisor", "runners", "client of sandboxd"
_ECHO, _ECHO_CLIENT = "echo server", "client of the echo"


class Shares:
    """Measures several things in one block, and deals them out to a side each."""

    def __init__(
        self, names: Sequence[str], block: Callable[[], Awaitable[Mapping[str, float]]]
    ) -> None:
        self._block = block
        self._waiting: dict[str, deque[float]] = {name: deque() for name in names}

    def sides(self) -> list[Side]:
        """Return the sides. Whichever comes first in a round measures for all of them."""
        return [self._side(name) for name in self._waiting]

    def _side(self, name: str) -> Side:
        async def block() -> float:
            if not self._waiting[name]:
                for other, value in (await self._block()).items():
                    self._waiting[other].append(value)
            return self._waiting[name].popleft()

        return Side(name, block)


def processor_time(pid: int) -> float:
    """Return the processor time of another process in seconds; see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


async def _processor(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    async with bound_module(stage) as it:
        ours = calls(it.daemon, it.request, _IN_FLIGHT)
        echo = calls(it.echo, it.request, _IN_FLIGHT)

        async def through_daemon() -> dict[str, float]:
            before = await _runners_s(it.daemon)
            server, client, count = await _spent(it.daemon, ours, seconds)
            runners = (await _runners_s(it.daemon) - before) / count
            return {_SUPERVISOR: server, _RUNNERS: runners, _CLIENT: client}

        async def through_echo() -> dict[str, float]:
            server, client, _ = await _spent(it.echo, echo, seconds)
            return {_ECHO: server, _ECHO_CLIENT: client}

        yield Point(
            [
                *Shares([_SUPERVISOR, _RUNNERS, _CLIENT], through_daemon).sides(),
                *Shares([_ECHO, _ECHO_CLIENT], through_echo).sides(),
            ]
        )
    yield Note(
        "Processor time per call by the kernel's accounts, all threads counted. Runners that were "
        "replaced meanwhile take a little of theirs along."
    )


async def _spent(
    endpoint: Endpoint, made: Sequence[Execute], seconds: float
) -> tuple[float, float, int]:
    """Return seconds per call of the server and of this process, and the number of calls."""
    counted = counting(made)
    server, client = processor_time(endpoint.pid), time.process_time()
    await throughput(counted.calls, seconds)
    server, client = processor_time(endpoint.pid) - server, time.process_time() - client
    return server / counted.count, client / counted.count, counted.count


async def _runners_s(daemon: Daemon) -> float:
    """Processor time of the runners that live now."""
    return sum(runner.cpu_time_ns for runner in (await daemon.status()).runners) / 1e9


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "processor-time",
            f"Processor time of one call, {_IN_FLIGHT} in flight",
            SECTION,
            "s",
            _processor,
            [Ratio("processor time of supervisor / echo server", _SUPERVISOR, _ECHO)],
        )
    ]
