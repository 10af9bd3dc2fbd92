"""Which code the supervisor's processor time goes to, by samples of `perf record`."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

from bench.figure import Note, Table
from bench.figures.setting import bound_module, calls
from bench.profile.attached import attached, require
from bench.profile.finding import Finding, NotMeasured
from bench.stage import Stage
from bench.timing import throughput

IN_FLIGHT = 32
_SECONDS = 4.0
_HZ = 1999
# "    45.21%    1234  [kernel.kallsyms]"
_ROW = re.compile(r"^\s+([\d.]+)%\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
KERNEL, OTHERS = "kernel", "others"
# In this order: the names of extension modules have "python" in them, too.
_KINDS = (
    ("[kernel", KERNEL),
    ("[vdso]", "clock (vDSO)"),
    ("cygrpc", "gRPC (cygrpc)"),
    ("_message", "protobuf (upb)"),
    ("libc.", "C library"),
    ("libc-", "C library"),
    ("ld-linux", "C library"),
    ("python", "Python interpreter and its standard modules"),
)


def kind_of(shared_object: str) -> str:
    """Name what a shared object is."""
    for part, kind in _KINDS:
        if part in shared_object:
            return kind
    return OTHERS


def parse(report: str) -> Counter[str]:
    """Return samples by kind from `perf report -F overhead,sample,dso`."""
    found: Counter[str] = Counter()
    for _share, samples, name in _ROW.findall(report):
        found[kind_of(name)] += int(samples)
    return found


async def measure(stage: Stage) -> Finding:
    """Sample supervisor and echo server under load. Raises NotMeasured."""
    require("perf")
    seconds = _SECONDS if not stage.settings.quick else _SECONDS / 5
    found: dict[str, Counter[str]] = {}
    async with stage.directory() as directory, bound_module(stage) as it:
        file = directory / "samples"
        for server, endpoint in (("supervisor", it.daemon), ("echo server", it.echo)):
            made = calls(endpoint, it.request, IN_FLIGHT)
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_HZ)]
            async with attached([*command, "-o", str(file), "-p", str(endpoint.pid)]):
                await throughput(made, seconds)
            found[server] = parse(_report(file))
            if not found[server]:
                raise NotMeasured("perf record took no samples")
    return Finding([table(found), _note(found)])


def _report(file: Path) -> str:
    command = ["perf", "report", "--stdio", "-F", "overhead,sample,dso", "-i", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(
            f"perf report: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
        )
    return done.stdout


def table(found: dict[str, Counter[str]]) -> Table:
    """Make the table of shares."""
    first = next(iter(found.values()))
    kinds = sorted(set().union(*found.values()), key=lambda kind: -first[kind])
    rows = [
        [kind, *(f"{100 * samples[kind] / samples.total():.1f} %" for samples in found.values())]
        for kind in kinds
    ]
    return Table(
        f"Share of the processor time, {IN_FLIGHT} in flight, all threads:", ["of", *found], rows
    )


def _note(found: dict[str, Counter[str]]) -> Note:
    counts = ", ".join(f"{samples.total():,} of the {name}" for name, samples in found.items())
    return Note(
        f"Samples of the processor's clock by `perf record`, {_HZ} a second while a thread runs: "
        f"{counts}. The kernel's share has the system calls, the switches and the page faults."
    )
