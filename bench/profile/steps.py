"""How long each step of a call takes, one call after the other, by marks in the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import guests, requests
from bench.baselines.echo import echo_endpoint
from bench.figure import Note, Table
from bench.figures.setting import INPUT, Execute, call_of
from bench.profile import ping_pong, points
from bench.profile.finding import Finding
from bench.profile.marked import Taken
from bench.profile.points import Step
from bench.report import text
from bench.spread import Spread, round_ratios, spread
from bench.stage import Stage

# Of all calls, so many have to make the marks of a bound call: others are the first ones.
_LEAST_SHARE = 0.8


class Window(NamedTuple):
    """A call as its client saw it: ns of the monotonic clock, and what its receipt says."""

    sent: int
    received: int
    inside_ns: int
    """What the runner says that it took."""


@dataclass
class _Side:
    """One server, its calls so far, and the median of each block, in seconds."""

    execute: Execute
    windows: list[Window] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    async def block(self, seconds: float) -> None:
        first = len(self.windows)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sent = time.perf_counter_ns()
            response = await self.execute()
            received = time.perf_counter_ns()
            inside_ns = response.receipt.self_reported.run_time_ns
            self.windows.append(Window(sent, received, inside_ns))
        times = [(window.received - window.sent) / 1e9 for window in self.windows[first:]]
        self.medians.append(spread(times).median)


class Timed(NamedTuple):
    """Calls of which all steps are known: ns of each step, and of the whole by the client."""

    steps: list[tuple[int, ...]]
    whole: list[int]
    inside: list[int]


async def measure(stage: Stage) -> Finding:
    """Measure a marked daemon, one without marks, and a marked echo server, in turn."""
    async with stage.directory() as directory:
        files = directory / "daemon.json", directory / "echo.json"
        async with _sides(stage, *files) as (marked, plain, echo):
            for number in range(stage.settings.rounds + 1):
                order = (marked, plain, echo) if number % 2 else (echo, plain, marked)
                for side in order:
                    await side.block(stage.settings.block_s)
        ours, theirs = (msgspec.json.decode(file.read_bytes(), type=Taken) for file in files)
    timed = joined(marked.windows, ours.marks, points.ORDER)
    echoed = joined(echo.windows, theirs.marks, points.ECHO_ORDER)
    round_trip_s = await asyncio.to_thread(ping_pong.round_trip_s, stage.settings.block_s)
    slower = spread(round_ratios(marked.medians[1:], plain.medians[1:]))
    return Finding(
        [
            _table("A call of a bound module, one after the other:", points.STEPS, timed),
            _inside(timed, round_trip_s),
            _table("The same of the bare echo:", points.ECHO_STEPS, echoed),
            _note(len(timed.whole), ours.cost_ns, slower),
        ]
    )


@contextlib.asynccontextmanager
async def _sides(
    stage: Stage, daemon_file: Path, echo_file: Path
) -> AsyncIterator[tuple[_Side, _Side, _Side]]:
    program = ("bench.profile.marked", "daemon", str(daemon_file))
    async with stage.daemon(program=program) as marked, stage.daemon() as plain:
        sides = []
        for daemon in (marked, plain):
            request = requests.bytes_call(await daemon.push(guests.echo()), "echo", INPUT)
            sides.append(_Side(call_of(daemon, request)))
        template = await sides[0].execute()
        program = ("bench.profile.marked", "echo", str(echo_file))
        async with echo_endpoint(stage, template, program=program) as echo:
            yield sides[0], sides[1], _Side(call_of(echo, request))


def joined(
    windows: Sequence[Window], marks: Iterable[tuple[str, int]], order: Sequence[str]
) -> Timed:
    """Set the marks of a server beside its client's.

    Raises RuntimeError if too few calls made the marks that `order` tells: the code has changed.
    """
    taken = sorted(marks, key=lambda mark: mark[1])
    times = [at for _, at in taken]
    timed = Timed([], [], [])
    others: Counter[str] = Counter()
    for sent, received, inside_ns in windows:
        within = taken[bisect_left(times, sent) : bisect_left(times, received)]
        if [name for name, _ in within] != list(order):
            others[", ".join(name for name, _ in within)] += 1
            continue
        edges = [sent, *(at for _, at in within), received]
        timed.steps.append(tuple(b - a for a, b in itertools.pairwise(edges)))
        timed.whole.append(received - sent)
        timed.inside.append(inside_ns)
    if len(timed.whole) < _LEAST_SHARE * len(windows) or not timed.whole:
        raise RuntimeError(
            f"{len(timed.whole)} of {len(windows)} calls made the marks {', '.join(order)}; most "
            f"others made {others.most_common(1)[0][0] or 'none'}: the steps of a call have "
            "changed, and bench/profile/points.py has to follow"
            if others
            else "there were no calls"
        )
    return timed


def _table(title: str, steps: Sequence[Step], timed: Timed) -> Table:
    rows = [
        [step.says, step.where, *_times(spread(list(times)))]
        for step, times in zip(steps, zip(*timed.steps, strict=True), strict=True)
    ]
    own = [at for at, step in enumerate(steps) if step.where == points.OWN]
    if own:
        sums = [sum(times[at] for at in own) for times in timed.steps]
        rows.append(["**all of the supervisor's own**", points.OWN, *_times(spread(sums))])
    rows.append(["**the whole call**", "", *_times(spread(timed.whole))])
    return Table(title, ["step", "where", "median", "quartiles"], rows)


def _times(ns: Spread) -> list[str]:
    seconds = Spread(*(value / 1e9 for value in (ns.median, ns.low, ns.high)))
    return [text.quantity(seconds.median, "s"), text.between(seconds, "s")]


def _inside(timed: Timed, round_trip_s: float) -> Note:
    there = [points.ORDER.index(name) for name in ("begun", "readable")]
    away = [sum(steps[at] for at in there) for steps in timed.steps]
    median, quartiles = _times(spread(away))
    inside, inside_quartiles = _times(spread(timed.inside))
    return Note(
        "The runner may take the processor while the frame is still being written. From the "
        f"beginning of the write until the answer is there it was {median} ({quartiles}), of which "
        f"the runner's work by its own clock was {inside} ({inside_quartiles}). A byte to another "
        f"process and back, over a socket pair, takes {text.quantity(round_trip_s, 's')} here."
    )


def _note(calls: int, cost_ns: float, slower: Spread) -> Note:
    return Note(
        f"{calls:,} calls of a real daemon whose functions were wrapped "
        "(`bench/profile/marked.py`); client and server mark with one clock. A wrapper with "
        "its two marks costs "
        f"{cost_ns:.0f} ns in a loop; with all of them the call took {text.digits(slower.median)} "
        f"times ({text.between(slower)}) what it took in a daemon without marks, measured in turn. "
        "Medians of steps need not add up to the median of the whole."
    )
