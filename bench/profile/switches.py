"""Who gets the processor when a server's main thread loses it, by `perf record` of switches."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench import threads
from bench.figure import Note, Table
from bench.figures.setting import Setting, bound_module, calls, counting
from bench.profile.attached import attached, require
from bench.profile.finding import Finding, NotMeasured
from bench.stage import Endpoint, Stage
from bench.timing import throughput

IN_FLIGHT = 32
_SECONDS = 2.0
RUNNER, CLIENT, NOBODY, OTHERS = "a runner", "the client", "nobody: it slept", "another process"
ELSEWHERE = "elsewhere"
# "python:123 [120] R ==> sbx-runner:456 [120]", or with names of fields: see sched_switch.
_SWITCH = re.compile(r":\d+ \[\d+\] (\S+) ==> .*:(\d+) \[\d+\]")
_SWITCH_NAMED = re.compile(r"prev_state=(\S+) ==> next_comm=.* next_pid=(\d+)")
# "        10ac4d __libc_sendmsg": the kernel's addresses are at the end of all addresses.
_USER_FRAME = re.compile(r"^\s+(?!ffff)[0-9a-f]+ (\S+)$")
# What gRPC's locks call is futex(2), and nothing else in the server goes that way.
_CALLS = (
    ("write", "writing: to a runner, or to wake a thread (`write`)"),
    ("syscall", "letting go of a lock (`futex`)"),
    ("sendmsg", "sending the answer (`sendmsg`)"),
)


Columns = dict[str, dict[str, float]]
"""A column of a table: switches per call, by kind."""


class Switch(NamedTuple):
    """A switch away from the thread.

    `thread_id` is of the one that came next, `function` the innermost one of the thread itself.
    """

    involuntary: bool
    thread_id: int
    function: str


def parse(script: str) -> list[Switch]:
    """Read the output of `perf script`: a line for each switch, and lines of its stack."""
    found: list[Switch] = []
    for line in script.splitlines():
        if match := _SWITCH_NAMED.search(line) or _SWITCH.search(line):
            state, thread_id = match.groups()
            found.append(Switch(state.startswith("R"), int(thread_id), ""))
        elif found and not found[-1].function and (frame := _USER_FRAME.match(line)):
            found[-1] = found[-1]._replace(function=frame[1])
    return found


def call_of(switch: Switch) -> str:
    """Name what the thread had called when it lost the processor."""
    return next((says for part, says in _CALLS if part in switch.function), ELSEWHERE)


def count(switches: Iterable[Switch], kind_of: Callable[[Switch], str]) -> Counter[str]:
    """Count involuntary switches by who came next, and voluntary ones as one kind."""
    return Counter(kind_of(switch) if switch.involuntary else NOBODY for switch in switches)


def kinds(
    own: Mapping[int, threads.Thread], client: Container[int], runners: Container[int]
) -> Callable[[Switch], str]:
    """Return what tells who came next, by thread ids."""

    def kind_of(switch: Switch) -> str:
        if switch.thread_id in own:
            return f"its own thread: {own[switch.thread_id].role}"
        if switch.thread_id in runners:
            return RUNNER
        return CLIENT if switch.thread_id in client else OTHERS

    return kind_of


async def measure(stage: Stage) -> Finding:
    """Watch the main threads of supervisor and echo server under load. Raises NotMeasured."""
    require("perf")
    by_next: Columns = {}
    by_call: Columns = {}
    async with stage.directory() as directory, bound_module(stage) as it:
        for server, endpoint in (("supervisor", it.daemon), ("echo server", it.echo)):
            calls_made, switches = await _watched(stage, directory / "switches", endpoint, it)
            kind_of = kinds(
                threads.read(endpoint.pid),
                threads.read(os.getpid()),
                {runner.pid for runner in (await it.daemon.status()).runners},
            )
            by_next[server] = _per(count(switches, kind_of), calls_made)
            by_call[server] = _per(
                Counter(call_of(switch) for switch in switches if switch.involuntary), calls_made
            )
    return Finding(
        [
            table(
                f"Switches away from the main thread per call, {IN_FLIGHT} in flight, by who came "
                "next:",
                "the processor went to",
                by_next,
            ),
            _NOTE,
            table("The involuntary ones by what the main thread had called:", "after", by_call),
        ]
    )


async def _watched(
    stage: Stage, file: Path, endpoint: Endpoint, it: Setting
) -> tuple[int, list[Switch]]:
    """Return how many calls were made, and the switches meanwhile."""
    seconds = _SECONDS if not stage.settings.quick else _SECONDS / 5
    counted = counting(calls(endpoint, it.request, IN_FLIGHT))
    await throughput(counted.calls, 0.1)
    counted.count = 0
    command = ["perf", "record", "-q", "-g", "-e", "sched:sched_switch", "-m", "4M"]
    async with attached([*command, "-o", str(file), "-t", str(endpoint.pid)]):
        await throughput(counted.calls, seconds)
    switches = parse(await asyncio.to_thread(_script, file))
    if not switches:
        raise NotMeasured("perf record saw no switch")
    return counted.count, switches


def _per(found: Counter[str], calls_made: int) -> dict[str, float]:
    return {name: number / calls_made for name, number in found.items()}


def _script(file: Path) -> str:
    done = subprocess.run(
        ["perf", "script", "-F", "event,trace,ip,sym", "-i", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotMeasured(f"perf script ended with {done.returncode}")
    return done.stdout


def table(title: str, what: str, found: Columns) -> Table:
    """Make a table of switches per call."""
    first = next(iter(found.values()))
    names = sorted(set().union(*found.values()), key=lambda name: (-first.get(name, 0.0), name))
    rows = [[name, *(f"{one.get(name, 0.0):.2f}" for one in found.values())] for name in names]
    return Table(title, [what, *found], rows)


_NOTE = Note(
    "All but those to nobody are involuntary: the thread could have run on. By `perf record` of "
    "the kernel's `sched_switch`."
)
