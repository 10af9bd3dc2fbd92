"""Which threads of the supervisor spend a call's processor time, beside an echo server's."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from bench import threads
from bench.figure import Axis, Figure, Note, Part, Point, Ratio, Settings, Side, Table
from bench.figures.processor import Shares
from bench.figures.setting import Execute, bound_module, calls, counting
from bench.stage import Stage
from bench.threads import Account
from bench.timing import throughput

SECTION = "Calls"
IN_FLIGHT = (1, 32)
_SERVERS = ("supervisor", "echo server")
# What else there is sleeps.
_SHOWN = (threads.MAIN, threads.QUEUE, threads.ENGINE)


def _name(server: str, role: str) -> str:
    return f"{server}: {role}"


@dataclass
class _Watched:
    """A server under load, and what its threads used per call in each block."""

    server: str
    pid: int
    calls: Sequence[Execute]
    blocks: dict[str, list[Account]] = field(
        default_factory=lambda: {role: [] for role in threads.ROLES}
    )

    def sides(self, seconds: float) -> list[Side]:
        async def block() -> dict[str, float]:
            found = await per_call(self.pid, self.calls, seconds)
            for role, account in found.items():
                self.blocks[role].append(account)
            return {_name(self.server, role): found[role].ran_s for role in _SHOWN}

        return Shares([_name(self.server, role) for role in _SHOWN], block).sides()

    def median(self, role: str, pick: Callable[[Account], float]) -> float:
        """Of all blocks but the first, which does not count (run.py)."""
        return statistics.median(map(pick, self.blocks[role][1:]))


async def per_call(pid: int, made: Sequence[Execute], seconds: float) -> dict[str, Account]:
    """Make calls for so long; return what each kind of thread used per call."""
    counted = counting(made)
    before = threads.read(pid)
    await throughput(counted.calls, seconds)
    spent = threads.spent(before, threads.read(pid))
    return {role: account.per(counted.count) for role, account in spent.items()}


async def _threads(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    rows: list[list[str]] = []
    async with bound_module(stage) as it:
        for in_flight in IN_FLIGHT:
            watched = [
                _Watched(server, endpoint.pid, calls(endpoint, it.request, in_flight))
                for server, endpoint in zip(_SERVERS, (it.daemon, it.echo), strict=True)
            ]
            sides = [side for one in watched for side in one.sides(seconds)]
            yield Point(sides, x=in_flight)
            rows += [_row(one, role, in_flight) for one in watched for role in threads.ROLES]
    yield Table("Per call, medians of the blocks:", _COLUMNS, rows)
    yield Note(
        "By the kernel's accounts (`/proc/PID/task/*/status` and `schedstat`). Waiting is time in "
        "which the thread could have run and another one had the processor. A voluntary switch is "
        "the thread's own wait; an involuntary one took the processor away from it."
    )


_COLUMNS = (
    *("thread", "in flight", "ran, µs", "waited for a processor, µs"),
    *("voluntary switches", "involuntary switches"),
)


def _row(one: _Watched, role: str, in_flight: int) -> list[str]:
    ran = one.median(role, lambda account: account.ran_s * 1e6)
    waited = one.median(role, lambda account: account.waited_s * 1e6)
    voluntary = one.median(role, lambda account: account.voluntary)
    involuntary = one.median(role, lambda account: account.involuntary)
    return [
        *(_name(one.server, role), str(in_flight), f"{ran:.1f}", f"{waited:.1f}"),
        *(f"{voluntary:.2f}", f"{involuntary:.2f}"),
    ]


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    ours, theirs = (_name(server, threads.MAIN) for server in _SERVERS)
    return [
        Figure(
            "threads",
            "Processor time of one call, thread by thread",
            SECTION,
            "s",
            _threads,
            [Ratio("main thread of supervisor / of echo server", ours, theirs)],
            Axis("calls in flight"),
        )
    ]
