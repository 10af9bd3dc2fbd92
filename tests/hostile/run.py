"""`make hostile`: every row, many times, through the real daemon over real gRPC.

Prints a table (row, what came of it, how often, median ms) and exits with 1 if any row had another
outcome even once, or if the supervisor holds more afterwards than before.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import DaemonProcess
from tests.hostile import batches, clients, guests, pushes
from tests.hostile.harness import (
    DAEMON_ARGUMENTS,
    DESCRIPTORS_ALLOWANCE,
    RSS_ALLOWANCE_BYTES,
    Finding,
    Footprint,
    Row,
    run,
)

# Of the daemon's log, this much is shown where it tells of a bug.
BUG_LINES = 30

ROWS: Sequence[Row] = (*guests.ROWS, *pushes.ROWS, *clients.ROWS, *batches.ROWS)


def line(finding: Finding) -> str:
    seen = ", ".join(f"{word} x{count}" for word, count in finding.words.items())
    mark = " " if finding.kept else "!"
    wanted = "" if finding.kept else f"  (expected {finding.row.expected})"
    return f"{mark} {finding.row.name:52} {finding.median_ms:8.1f}  {seen}{wanted}"


def bugs(log: str) -> list[str]:
    """Lines of the daemon's log that no client may cause."""
    signs = ("a bug, answered with INTERNAL", "Traceback", "exception was never retrieved")
    lines = log.splitlines()
    found = [at for at, text in enumerate(lines) if any(sign in text for sign in signs)]
    return ["\n".join(lines[at : at + BUG_LINES]) for at in found]


DOCUMENT = """# Hostile guests, modules and clients

Written by `make hostile`: each row through the real daemon over real gRPC, {times} times, with the
same typed outcome each time. A word is the outcome with its stable detail (errors.md), a gRPC
status with its reason, or, for a client's manners, what must hold of the others. Medians are in
milliseconds; the daemon runs with tight limits: {arguments}.

| row | outcome | median ms |
|---|---|---|
{rows}

The supervisor before, warmed up with each row once: {before}. After: {after}. It may have grown by
{rss} MiB (harness.py says why) and {descriptors} descriptors.

What else is hostile, and tested in `tests/hostile`: frames of a runner or compiler that was taken
over (`test_frames.py`, `test_compiler_frames.py`, `test_frames_fuzz.py`), hung runs
(`make soak-deadlines`), and what one call leaves for the next (`make soak-residue`).
"""


def document(findings: Sequence[Finding], before: Footprint, after: Footprint, times: int) -> str:
    rows = "\n".join(
        f"| {finding.row.name} | `{next(iter(finding.words))}` | {finding.median_ms:.0f} |"
        for finding in findings
    )
    return DOCUMENT.format(
        times=times,
        arguments="`" + " ".join(DAEMON_ARGUMENTS) + "`",
        rows=rows,
        before=before,
        after=after,
        rss=RSS_ALLOWANCE_BYTES >> 20,
        descriptors=DESCRIPTORS_ALLOWANCE,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="repetitions of each row")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--write", type=Path, help="write the table here if all rows were kept")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.only in row.name]
    with tempfile.TemporaryDirectory(prefix="sbx-") as directory:
        daemon = DaemonProcess(Path(directory), DAEMON_ARGUMENTS)
        daemon.start()
        try:
            findings, before, after = asyncio.run(run(daemon, rows, arguments.times))
        finally:
            status = daemon.stop()
        found_bugs = bugs(daemon.log)
    print(f"  {'row':52} {'median ms':>8}  outcome, {arguments.times} times each")
    for finding in findings:
        print(line(finding))
    broken = [finding for finding in findings if not finding.kept]
    grown = after.grown(before)
    print(f"\n{len(findings) - len(broken)} of {len(findings)} rows kept, each {arguments.times}x")
    print(f"supervisor before: {before}\nsupervisor after:  {after}")
    for text in (*grown, *found_bugs):
        print(f"! {text}")
    if status != 0:
        print(f"! the daemon ended with {status}")
    failed = bool(broken or grown or found_bugs or status)
    if arguments.write and not failed and not arguments.only:
        arguments.write.write_text(document(findings, before, after, arguments.times))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
