"""`make soak-deadlines`: hung runs of six kinds, and how late each of them ended.

Overshoot is measured twice: by the supervisor (the receipt's, from the moment at which the call was
due until it had stopped) and by the client (from sending the request to having the answer, less the
deadline). What the issue promises: p99 within 50 ms of the deadline plus the grace, none lost.

The six kinds. Standard input is bytes followed by end of file, so nothing can block on it: the kind
"stdin" reads past its end again and again, which is how a guest waits for input that never comes.
The kind "stopped process" is a loop whose runner the harness sends SIGSTOP.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from tests.conftest import DaemonProcess
from tests.hostile.guests import CABINET, SPIN_AT_START, assembled
from tests.hostile.harness import Bench, fault_word, word

from sandboxd.v1 import admin_pb2, sandbox_pb2

WALL_MS = 150
GRACE_MS = 50.0
PROMISED_MS = 50.0
PARALLEL = 3
# A module of its own: by its digest the status tells which process to stop.
TO_BE_STOPPED = '(module (func (export "f") (loop $on (br $on))) (func (export "stopped")))'


@dataclass(frozen=True)
class Kind:
    """A way to hang."""

    name: str
    export: str
    wat: str = CABINET
    stopped: bool = False


KINDS = (
    Kind("wasm loop", "spin_quietly"),
    Kind("start-function loop", "f", SPIN_AT_START),
    Kind("bulk memory", "fill"),
    Kind("poll_oneoff", "sleep"),
    Kind("stdin", "read_stdin"),
    Kind("stopped process", "f", TO_BE_STOPPED, stopped=True),
)


@dataclass(frozen=True)
class Run:
    """How one hung run ended. Overshoot in milliseconds beyond the deadline; None: it was lost."""

    kind: str
    outcome: str
    receipt_ms: float | None
    client_ms: float


async def hang(bench: Bench, kind: Kind) -> Run:
    """Make a run hang and wait for its end."""
    request = sandbox_pb2.ExecuteRequest(digest=await bench.stored(assembled(kind.wat)))
    request.typed.export = kind.export
    request.limits.wall_time_ms = WALL_MS
    run = asyncio.create_task(_timed(bench, kind, request))
    if kind.stopped:
        while not run.done() and not _stop(await bench.status(), request.digest):
            # There is nothing to wait for: that a process runs the guest is only in the status.
            await asyncio.wait({run}, timeout=0.002)
    return await run


def _stop(status: admin_pb2.GetStatusResponse, digest: str) -> bool:
    """Stop the processes that run this module; False if there are none."""
    pids = [
        runner.pid
        for runner in status.runners
        if runner.module_digest == digest and runner.state == admin_pb2.RUNNER_STATE_BUSY
    ]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return bool(pids)


async def _timed(bench: Bench, kind: Kind, request: sandbox_pb2.ExecuteRequest) -> Run:
    started_at = time.monotonic()
    try:
        response = await bench.sandbox.Execute(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        return Run(kind.name, fault_word(error), None, 0.0)
    client_ms = (time.monotonic() - started_at) * 1000 - WALL_MS
    stop = response.deadline_exceeded.stop
    late_ms = stop.overshoot_ns / 1e6 if response.HasField("deadline_exceeded") else None
    return Run(kind.name, word(response), late_ms, client_ms)


async def soak(daemon: DaemonProcess, count: int) -> list[Run]:
    """`count` runs, the kinds in turn, a few at once."""
    async with daemon.aio_channel() as channel:
        bench = Bench(daemon, channel)
        for kind in KINDS:
            # Compiled before anything is timed.
            await hang(bench, kind)
        await bench.quiet()
        left = iter(range(count))
        runs: list[Run] = []

        async def work() -> None:
            for index in left:
                runs.append(await hang(bench, KINDS[index % len(KINDS)]))

        await asyncio.gather(*(work() for _ in range(PARALLEL)))
        await bench.quiet()
        return runs


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(runs: Sequence[Run]) -> str:
    lines = [
        f"overshoot in ms beyond a deadline of {WALL_MS} ms (grace {GRACE_MS:.0f} ms), "
        f"{PARALLEL} runs at once",
        f"{'kind':20} {'runs':>5} {'p50':>7} {'p90':>7} {'p99':>7} {'max':>7}  "
        f"{'client p99':>10}  outcomes",
    ]
    for name in (*(kind.name for kind in KINDS), "all"):
        chosen = [run for run in runs if name in (run.kind, "all")]
        late = [run.receipt_ms for run in chosen if run.receipt_ms is not None] or [float("nan")]
        seen = Counter(run.outcome for run in chosen)
        lines.append(
            f"{name:20} {len(chosen):5} {percentile(late, 0.5):7.1f} {percentile(late, 0.9):7.1f} "
            f"{percentile(late, 0.99):7.1f} {max(late):7.1f}  "
            f"{percentile([run.client_ms for run in chosen], 0.99):10.1f}  "
            + ", ".join(f"{outcome} x{times}" for outcome, times in seen.items())
        )
    return "\n".join(lines)


def lost(runs: Sequence[Run]) -> list[Run]:
    """Runs that did not end at their deadline."""
    return [run for run in runs if run.receipt_ms is None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sbx-") as directory:
        daemon = DaemonProcess(Path(directory), ("--max-runners", "8"))
        daemon.start()
        try:
            runs = asyncio.run(soak(daemon, arguments.runs))
        finally:
            daemon.stop()
    print(table(runs))
    p99 = percentile([run.receipt_ms or 0.0 for run in runs], 0.99)
    missing = lost(runs)
    kept = p99 <= GRACE_MS + PROMISED_MS and not missing and len(runs) == arguments.runs
    print(f"p99 {p99:.1f} ms, promised {GRACE_MS + PROMISED_MS:.0f} ms; lost: {len(missing)}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
