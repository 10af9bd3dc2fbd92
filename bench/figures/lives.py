"""What a runner uses in the course of its life: page faults and processor time, by the kernel."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

from bench import guests, requests
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Table
from bench.figures.fresh import SPARES
from bench.figures.processor import Shares, processor_time
from bench.figures.setting import INPUT, call_of
from bench.stage import Daemon, Stage
from sandboxd.v1 import admin_pb2

SECTION = "New processes"
_CALLS = 20
_SPARE = "from its fork until it is a spare"
_FIRST = "its first call: bound, sealed, answered, and ready for the next"
_LATER = "a later call"
_STAGES = (_SPARE, _FIRST, _LATER)
# What follows an answer is to be over before a process is looked at.
_SETTLE_S = 0.01


class Used(NamedTuple):
    """What a process has used so far."""

    faults: float
    """Minor page faults."""
    cpu_s: float

    def since(self, before: Used, calls: int = 1) -> Used:
        """Return what was used since, per call."""
        return Used((self.faults - before.faults) / calls, (self.cpu_s - before.cpu_s) / calls)


def minor_faults(stat: str) -> int:
    """Return the minor page faults from the text of /proc/PID/stat."""
    # The process chooses its name, which may hold blanks and brackets.
    return int(stat.rpartition(")")[2].split()[7])


def used(pid: int) -> Used:
    """Look at a process."""
    return Used(minor_faults(Path(f"/proc/{pid}/stat").read_text()), processor_time(pid))


class _Lives:
    """Leads one runner after the other through its life."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._numbers = itertools.count()
        self.faults: dict[str, list[float]] = {stage: [] for stage in _STAGES}

    async def one(self) -> dict[str, float]:
        """Return the processor time of each stage, in seconds."""
        daemon = self._daemon
        digest = await daemon.push(guests.variant(guests.echo(), next(self._numbers)))
        call = call_of(daemon, requests.bytes_call(digest, "echo", INPUT))
        await daemon.wait_for_spares(SPARES)
        spares = {pid: used(pid) for pid in await self._pids(admin_pb2.RUNNER_STATE_SPARE)}
        await call()
        await asyncio.sleep(_SETTLE_S)
        (pid,) = await self._pids(admin_pb2.RUNNER_STATE_IDLE, digest)
        if pid not in spares:
            raise RuntimeError("the call took a process that was no spare before it")
        first = used(pid)
        for _ in range(_CALLS):
            await call()
        await asyncio.sleep(_SETTLE_S)
        stages = (spares[pid], first.since(spares[pid]), used(pid).since(first, _CALLS))
        for stage, found in zip(_STAGES, stages, strict=True):
            self.faults[stage].append(found.faults)
        return {stage: found.cpu_s for stage, found in zip(_STAGES, stages, strict=True)}

    async def _pids(self, state: admin_pb2.RunnerState.ValueType, digest: str = "") -> list[int]:
        return [
            runner.pid
            for runner in (await self._daemon.status()).runners
            if runner.state == state and runner.module_digest == digest
        ]


async def _life(stage: Stage) -> AsyncGenerator[Part, None]:
    async with stage.daemon() as daemon:
        lives = _Lives(daemon)
        yield Point(Shares(_STAGES, lives.one).sides())
    rows = [[name, f"{statistics.median(lives.faults[name]):.1f}"] for name in _STAGES]
    yield Table("Page faults, medians of as many runners:", ["in", "minor faults"], rows)
    yield Note(
        "One runner per block, of a real daemon, each bound to a module of its own; "
        "`/proc/PID/stat` and the process's clock, read from outside. The spare's time is from its "
        "fork on, lock-down and rehearsal included; a later call's is the mean of "
        f"{_CALLS}, one after the other. `make profile` tells the steps apart."
    )


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "runner-life",
            "Processor time of a runner, in the course of its life",
            SECTION,
            "s",
            _life,
            [Ratio("first call / a later one", _FIRST, _LATER)],
        )
    ]
