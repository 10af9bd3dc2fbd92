"""Which system calls a server makes for one call: `perf trace`, or else `strace`, counts them."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.figure import Note, Table
from bench.figures.setting import Execute, bound_module, calls, counting
from bench.profile.attached import attached
from bench.profile.finding import Finding, NotMeasured
from bench.stage import Endpoint, Stage
from bench.timing import throughput

IN_FLIGHT = (1, 32)
_SECONDS = 2.5
# Calls that are rarer per call of the daemon belong to timers.
_LEAST = 0.05
# "   epoll_wait   1234   5   ..." with counts of calls and of errors.
_PERF_ROW = re.compile(r"^\s+([a-z_0-9]+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+[\d.]+", re.MULTILINE)
# " 45.12  0.012345  12  1000  [5]  epoll_wait"
_STRACE_ROW = re.compile(
    r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z_0-9]+)\s*$", re.MULTILINE
)
_LOST = re.compile(r"LOST (\d+) events")


# " python (1234), 218 events, 97.3%" stands above the calls of a thread.
_PERF_THREAD = re.compile(r"^\s*\S.*\((\d+)\), \d+ events", re.MULTILINE)
_ALL = 0
Columns = dict[str, dict[str, float]]
"""A column of the table: system calls per call, by name."""
Counts = dict[int, Counter[str]]
"""System calls by thread id; those of all threads under 0."""


class _Tool(NamedTuple):
    """`command(pid, file)` is how it is called, `parse` reads what it left in the file."""

    name: str
    command: Callable[[int, Path], Sequence[str]]
    parse: Callable[[str], Counts]


def parse_perf(output: str) -> Counts:
    """Read the tables of `perf trace --summary`, one for each thread, and add them up."""
    # What stands before the first thread, and then a thread id and its table in turn.
    _, *parts = _PERF_THREAD.split(output)
    found: Counts = {_ALL: Counter()}
    for thread, rows in zip(parts[::2], parts[1::2], strict=True):
        own = found[int(thread)] = Counter()
        for name, count, _errors in _PERF_ROW.findall(rows):
            own[name] += int(count)
        found[_ALL] += own
    return found


def parse_strace(output: str) -> Counts:
    """Read the table of `strace -c`, which does not tell threads apart."""
    found = Counter({name: int(count) for count, name in _STRACE_ROW.findall(output)})
    found.pop("total", None)
    return {_ALL: found}


_PERF = _Tool(
    "perf trace",
    lambda pid, file: ["perf", "trace", "-s", "-m", "4M", "-o", str(file), "-p", str(pid)],
    parse_perf,
)
_STRACE = _Tool(
    "strace",
    lambda pid, file: ["strace", "-c", "-f", "-q", "-o", str(file), "-p", str(pid)],
    parse_strace,
)


async def measure(stage: Stage) -> Finding:
    """Count for supervisor and echo server. Raises NotMeasured if neither tool works here."""
    reasons = []
    for tool in (_PERF, _STRACE):
        program = tool.command(0, Path())[0]
        if shutil.which(program) is None:
            reasons.append(f"{program} is not installed")
            continue
        try:
            return await _measure(stage, tool)
        except NotMeasured as reason:
            reasons.append(str(reason))
    raise NotMeasured("; ".join(reasons))


async def _measure(stage: Stage, tool: _Tool) -> Finding:
    seconds = _SECONDS if not stage.settings.quick else _SECONDS / 5
    every: Columns = {}
    main: Columns = {}
    lost = 0
    async with stage.directory() as directory, bound_module(stage) as it:
        for server, endpoint in (("supervisor", it.daemon), ("echo server", it.echo)):
            for in_flight in IN_FLIGHT:
                file = directory / "counts"
                made = calls(endpoint, it.request, in_flight)
                count = await _under(tool, endpoint, file, made, seconds)
                output = file.read_text(errors="replace")
                lost += sum(int(number) for number in _LOST.findall(output))
                found = tool.parse(output)
                if not found[_ALL]:
                    raise NotMeasured(f"{tool.name} counted nothing")
                name = f"{server}, {in_flight} in flight"
                every[name] = _per(found[_ALL], count)
                main[name] = _per(found.get(endpoint.pid, Counter()), count)
    tables = [table("System calls per call, all threads:", every)]
    if all(main.values()):
        tables.append(table("Of these, by the main thread:", main))
    return Finding([*tables, _note(tool, lost)])


def _per(found: Counter[str], count: int) -> dict[str, float]:
    return {name: number / count for name, number in found.items()}


async def _under(
    tool: _Tool, endpoint: Endpoint, file: Path, made: Sequence[Execute], seconds: float
) -> int:
    """Make calls while the tool looks at the server; return how many."""
    # What a connection costs at first is not a call's.
    await throughput(made, 0.1)
    counted = counting(made)
    async with attached(tool.command(endpoint.pid, file)):
        await throughput(counted.calls, seconds)
    return counted.count


def table(title: str, columns: Columns) -> Table:
    """Make a table of system calls per call."""
    names = {name for found in columns.values() for name in found}
    most = {name: max(found.get(name, 0.0) for found in columns.values()) for name in names}
    rows = [
        [f"`{name}`", *(f"{found.get(name, 0.0):.2f}" for found in columns.values())]
        for name in sorted(names, key=lambda name: (-most[name], name))
        if most[name] >= _LEAST
    ]
    rows.append(["**all**", *(f"{sum(found.values()):.1f}" for found in columns.values())])
    return Table(title, ["system call", *columns], rows)


def _note(tool: _Tool, lost: int) -> Note:
    told = (
        f"Counted by `{tool.name}`, which slows the server down. That changes what depends on "
        "timing: turns of the loop (`epoll_wait`), threads that wake each other (`futex`, "
        "`write`). "
        f"The rest is as ever. Calls rarer than {_LEAST} are left out."
    )
    if lost:
        told += f" {lost:,} events were lost: the true numbers are a little higher."
    return Note(told)
