"""What each step of a runner's life takes: time, page faults, processor time."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import wasmtime

from bench import guests
from bench.figure import Note, Table
from bench.profile import nursery
from bench.profile.finding import Finding
from bench.profile.nursery import LATER_CALLS, Life
from bench.report import text
from bench.spread import spread
from bench.stage import ROOT, Stage
from sandboxd.runner.engine import build_engines

_ROUNDS, _ROUNDS_QUICK = 60, 4
# What leads to each mark.
_SAYS = {
    nursery.BEGUN: "forked",
    nursery.LOCKED: "outbox mapped; locked down",
    nursery.REHEARSED: "rehearsed",
    nursery.RECEIVED: "said that it is ready; interrupt thread begun; module received",
    nursery.LOADED: "module loaded and linked",
    nursery.SEALED: "sealed",
    nursery.ANSWERED: "said so; first call received and made",
    nursery.PREPARED: "answer sent; next instance made",
    nursery.CALLED: f"{LATER_CALLS} further calls, each",
}
# Its time is mostly its supervisor's.
_WAITS = (nursery.RECEIVED,)


class Step(NamedTuple):
    """One step, in seconds and page faults per child (per call for the last one).

    `low_s` and `high_s` are quartiles of the time; a step that is mostly a wait has none of them.
    """

    says: str
    time_s: float | None
    low_s: float
    high_s: float
    faults: float
    cpu_s: float


async def measure(stage: Stage) -> Finding:
    """Have runners forked, locked down, bound and called."""
    rounds = _ROUNDS_QUICK if stage.settings.quick else _ROUNDS
    async with stage.directory() as directory:
        artifact = directory / "artifact"
        module = wasmtime.Module(build_engines().plain, guests.echo())
        artifact.write_bytes(bytes(module.serialize()))
        size = artifact.stat().st_size
        lives = await _lives(artifact, rounds)
    return Finding([table(steps(lives)), _note(lives, size)])


def _note(lives: Sequence[Life], artifact_bytes: int) -> Note:
    whole = [life for life in lives if life.until == nursery.CALLED]
    system_s = sum(life.system_s for life in whole)
    share = system_s / (system_s + sum(life.user_s for life in whole))
    return Note(
        f"Medians of {len(whole)} runners that a process like the zygote forked, one after the "
        f"other. The artifact has {artifact_bytes:,} bytes. Calls follow each other at once, which "
        "leaves caches warmer than they are in a daemon. Page faults and "
        "processor time are differences between runners that end after a step and such that end "
        f"before it. The kernel has {100 * share:.0f} % of the processor time of a whole life, its "
        "end included."
    )


async def _lives(artifact: Path, rounds: int) -> list[Life]:
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.profile.nursery"),
        *("--artifact", str(artifact), "--rounds", str(rounds)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        # As the zygote's environment: see the supervisor's launcher.py.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "TOKIO_WORKER_THREADS": "1"},
    )
    said, errors = await running.communicate()
    if running.returncode:
        raise RuntimeError(f"the nursery failed:\n{errors.decode(errors='replace')}")
    return msgspec.json.decode(said, type=list[Life])


def steps(lives: Sequence[Life]) -> list[Step]:
    """Work out the steps. A mark that no runner made is left out, as is the step to it."""
    whole = [life for life in lives if life.until == nursery.CALLED]
    found: list[Step] = []
    before = ""
    faults_before = cpu_before = 0.0
    for mark in nursery.MARKS:
        ended = [life for life in lives if life.until == mark and mark in life.marks]
        if not ended:
            continue
        count = LATER_CALLS if mark == nursery.CALLED else 1
        times = spread([(life.marks[mark] - life.marks.get(before, life.forked)) for life in whole])
        faults = statistics.median(life.faults for life in ended)
        cpu = statistics.median(life.user_s + life.system_s for life in ended)
        scale = 1e9 * count
        found.append(
            Step(
                _SAYS[mark],
                None if mark in _WAITS else times.median / scale,
                times.low / scale,
                times.high / scale,
                (faults - faults_before) / count,
                (cpu - cpu_before) / count,
            )
        )
        before, faults_before, cpu_before = mark, faults, cpu
    return found


def table(found: Sequence[Step]) -> Table:
    """Make the table."""
    rows = [
        [
            step.says,
            *(_time(step)),
            text.digits(step.faults),
            text.quantity(step.cpu_s, "s") if step.cpu_s > 0 else "within the noise",
        ]
        for step in found
    ]
    columns = ["step", "median", "quartiles", "page faults", "processor time"]
    return Table("The steps of a runner's life:", columns, rows)


def _time(step: Step) -> tuple[str, str]:
    if step.time_s is None:
        return "waits", ""
    low, high = (text.quantity(value, "s") for value in (step.low_s, step.high_s))
    return text.quantity(step.time_s, "s"), f"{low} to {high}"
