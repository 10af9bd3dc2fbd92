"""What a runner costs in memory, and what makes it."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncGenerator, Callable, Sequence

from bench import guests, memory_map, requests
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side, Table, absent, at_most
from bench.figures.setting import INPUT, call_of
from bench.memory_map import Mapping, Memory
from bench.stage import GUESTS, Daemon, Stage
from sandboxd.v1 import admin_pb2

SECTION = "Memory"
_BOUND_RUNNERS = 8
_CALLS = 20
_SPARE, _BOUND = "a spare", "a bound runner"
_SPARE_OWN, _BOUND_OWN = "a spare, its own alone", "a bound runner, its own alone"
_HIDDEN = "the kernel shows the memory of locked-down processes to root only"


async def _memory(stage: Stage) -> AsyncGenerator[Part, None]:
    async with stage.daemon() as daemon:
        await _bind(daemon)
        try:
            memory_map.read(await _pid(daemon, admin_pb2.RUNNER_STATE_IDLE))
        except PermissionError:
            yield Point([absent(name, _HIDDEN) for name in (_SPARE, _BOUND)])
            yield await _resident(daemon)
            return
        spare = await _mappings(daemon, admin_pb2.RUNNER_STATE_SPARE)
        bound = await _mappings(daemon, admin_pb2.RUNNER_STATE_IDLE)
    yield Point(
        [
            _side(_SPARE, spare, lambda memory: memory.pss),
            _side(_SPARE_OWN, spare, lambda memory: memory.private),
            _side(_BOUND, bound, lambda memory: memory.pss),
            _side(_BOUND_OWN, bound, lambda memory: memory.private),
        ],
        rounds=1,
    )
    yield _breakdown(spare, bound)
    yield Note(
        f"{len(bound)} runners, each bound to a module of its own and idle after {_CALLS} calls, "
        f"and {len(spare)} spares. The proportional set size divides a page by the number of "
        "processes that share it; what is a runner's alone is what one more of them costs."
    )


async def _bind(daemon: Daemon) -> None:
    """Bind runners to modules: small variants, and the largest example guest."""
    modules = [guests.variant(guests.echo(), number) for number in range(_BOUND_RUNNERS - 1)]
    for wasm in modules:
        call = call_of(daemon, requests.bytes_call(await daemon.push(wasm), "echo", INPUT))
        for _ in range(_CALLS):
            await call()
    sha256 = await daemon.push((GUESTS / "c" / "sha256.wasm").read_bytes())
    request = requests.bytes_call(sha256, "sha256", INPUT, convention=requests.FIXED, length=32)
    call = call_of(daemon, request)
    for _ in range(_CALLS):
        await call()
    await daemon.wait_for_spares(4)
    # What follows an answer (the next store is made ready) is to be over.
    await asyncio.sleep(0.2)


async def _pids(daemon: Daemon, state: admin_pb2.RunnerState.ValueType) -> list[int]:
    return [runner.pid for runner in (await daemon.status()).runners if runner.state == state]


async def _pid(daemon: Daemon, state: admin_pb2.RunnerState.ValueType) -> int:
    return (await _pids(daemon, state))[0]


async def _mappings(daemon: Daemon, state: admin_pb2.RunnerState.ValueType) -> list[list[Mapping]]:
    return [memory_map.read(pid) for pid in await _pids(daemon, state)]


def _side(
    name: str, processes: Sequence[Sequence[Mapping]], pick: Callable[[Memory], float]
) -> Side:
    async def block() -> float:
        return statistics.median(pick(memory_map.total(mappings)) for mappings in processes)

    return Side(name, block)


def _breakdown(spare: Sequence[Sequence[Mapping]], bound: Sequence[Sequence[Mapping]]) -> Table:
    nothing = Memory(0.0, 0.0)
    spares, bounds = _typical(spare), _typical(bound)
    rows = []
    for kind, memory in bounds.items():
        other = spares.get(kind, nothing)
        numbers = (other.pss, other.private, memory.pss, memory.private)
        rows.append([kind, *(f"{number:.2f}" for number in numbers)])
    return Table(
        "What makes it, in MiB, of one typical process each:",
        ["mapping", "spare", "its own", "bound", "its own"],
        rows,
    )


def _typical(processes: Sequence[Sequence[Mapping]]) -> dict[str, Memory]:
    """The kinds of the process with the median size."""
    ordered = sorted(processes, key=lambda mappings: memory_map.total(mappings).pss)
    return memory_map.by_kind(ordered[len(ordered) // 2])


async def _resident(daemon: Daemon) -> Table:
    """The resident sizes, which everyone may see: shared pages count in full."""
    runners = (await daemon.status()).runners
    rows = []
    for name, state in (
        (_SPARE, admin_pb2.RUNNER_STATE_SPARE),
        (_BOUND, admin_pb2.RUNNER_STATE_IDLE),
    ):
        sizes = [runner.rss_bytes / 2**20 for runner in runners if runner.state == state]
        rows.append([name, f"{statistics.median(sizes):.1f}"])
    return Table("Resident set size in MiB, shared pages counted in full:", ["of", "MiB"], rows)


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "memory",
            "Proportional set size of a runner",
            SECTION,
            "MiB",
            _memory,
            [Ratio("proportional set size of a bound idle runner, MiB", _BOUND, goal=at_most(5))],
        )
    ]
