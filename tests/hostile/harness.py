"""Runs rows against a real daemon and says in one word what came back.

A word is the outcome with its stable detail: `trapped:UNREACHABLE`, `deadline:KILLED`,
`limit:MEMORY`, `exited:3`, `INVALID_ARGUMENT/INVALID_MODULE`, or what the transport did.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from google.rpc import error_details_pb2, status_pb2
from tests.conftest import DaemonProcess

from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    call_pb2,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)

WAIT_S = 30.0
CHUNK_BYTES = 1_000_000
# Socket, pidfd, status file, interrupt pipe, outbox: what the supervisor holds of a runner.
DESCRIPTORS_PER_RUNNER = 5
# What the supervisor may have grown by. A message of 4 MiB and headers of 18 MB that never end (as
# much as gRPC takes before it refuses them) leave room behind that the allocator gives back when it
# likes: 40 MiB were seen, up and down. In 20 repetitions of some 160 rows a leak of 16 KiB per call
# shows beside that.
RSS_ALLOWANCE_BYTES = 48 * 1024 * 1024
DESCRIPTORS_ALLOWANCE = 2

# Tight limits, so that what must be stopped is stopped soon; a guest that does not set its own
# deadline gets the default. The grace is longer than by default: on a busy machine a guest that can
# be interrupted may need more than 50 ms for it, and the rows tell one from the other.
DAEMON_ARGUMENTS = (
    *("--max-runners", "8", "--spare-runners", "4", "--max-module", "16MiB", "--grace", "400ms"),
    *("--default-wall-time", "1s", "--max-wall-time", "1200ms"),
    *("--compile-cpu-time", "1s", "--compile-wall-time", "4s", "--compile-memory", "768MiB"),
)


class Bench:
    """A daemon, a channel to it, and what rows need of both."""

    def __init__(self, daemon: DaemonProcess, channel: grpc.aio.Channel) -> None:
        self.daemon = daemon
        self.channel = channel
        self.sandbox = sandbox_pb2_grpc.SandboxServiceStub(channel)
        self.modules = module_pb2_grpc.ModuleServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._pushed: dict[bytes, str] = {}

    @property
    def socket(self) -> str:
        return str(self.daemon.socket)

    async def push(self, wasm: bytes, header: module_pb2.PushHeader | None = None) -> str:
        """Push and return the digest; `header` goes first if it is given."""
        parts = [] if header is None else [module_pb2.PushRequest(header=header)]
        parts += [
            module_pb2.PushRequest(chunk=wasm[at : at + CHUNK_BYTES])
            for at in range(0, len(wasm) or 1, CHUNK_BYTES)
        ]
        response = await self.modules.Push(iter(parts), timeout=WAIT_S)
        return response.module.digest

    async def stored(self, wasm: bytes) -> str:
        """The digest of a module that is pushed the first time it is asked for."""
        if wasm not in self._pushed:
            self._pushed[wasm] = await self.push(wasm)
        return self._pushed[wasm]

    async def execute(self, request: sandbox_pb2.ExecuteRequest) -> sandbox_pb2.ExecuteResponse:
        return await self.sandbox.Execute(request, timeout=WAIT_S)

    async def status(self) -> admin_pb2.GetStatusResponse:
        return await self.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=WAIT_S)

    async def until(
        self, condition: Callable[[admin_pb2.GetStatusResponse], object], timeout_s: float = 10.0
    ) -> admin_pb2.GetStatusResponse:
        """The first status that meets the condition."""
        end = time.monotonic() + timeout_s
        while True:
            status = await self.status()
            if condition(status):
                return status
            assert time.monotonic() < end, f"never so:\n{status}"
            await asyncio.sleep(0.01)

    async def quiet(self) -> admin_pb2.GetStatusResponse:
        """Wait until nothing runs, starts or dies."""
        return await self.until(
            lambda status: (
                not (
                    status.pool.busy
                    or status.pool.dying
                    or status.pool.starting
                    or status.pool.loading
                    or status.queue.depth
                    or status.compiling
                )
            )
        )


Act = Callable[[Bench], Awaitable[str]]


@dataclass(frozen=True)
class Row:
    """One hostile input: what it is, what must come of it, and how it is made.

    `expected` may name alternatives, joined with "or": always the same one must come.
    """

    name: str
    expected: str
    act: Act


@dataclass
class Finding:
    """What came of a row: how often each word, and the median of its time."""

    row: Row
    words: Counter[str]
    median_ms: float

    @property
    def kept(self) -> bool:
        (word, *others) = self.words
        return not others and word in self.row.expected.split(" or ")


async def repeat(bench: Bench, rows: Iterable[Row], times: int) -> list[Finding]:
    return [await _repeat(bench, row, times) for row in rows]


async def _repeat(bench: Bench, row: Row, times: int) -> Finding:
    words: Counter[str] = Counter()
    took_ms = []
    for _ in range(times):
        started_at = time.monotonic()
        words[await act(bench, row)] += 1
        took_ms.append((time.monotonic() - started_at) * 1000)
    return Finding(row, words, statistics.median(took_ms))


async def act(bench: Bench, row: Row) -> str:
    try:
        async with asyncio.timeout(2 * WAIT_S):
            return await row.act(bench)
    except grpc.aio.AioRpcError as error:
        return fault_word(error)
    except TimeoutError:
        return "nothing came back"
    except AssertionError as error:
        return f"not as it must be: {error}"


# --- words ----------------------------------------------------------------------------------------


def word(response: sandbox_pb2.ExecuteResponse) -> str:
    """The outcome with its stable detail."""
    kind = str(response.WhichOneof("outcome"))
    outcome: Any = getattr(response, kind)
    detail: Callable[[], str] | None = {
        "exited": lambda: str(outcome.code),
        "trapped": lambda: _name(call_pb2.TrapCode, outcome.code, "TRAP_CODE_"),
        "deadline_exceeded": lambda: _name(
            sandbox_pb2.StopMethod, outcome.stop.method, "STOP_METHOD_"
        ),
        "cpu_time_exceeded": lambda: _name(
            sandbox_pb2.StopMethod, outcome.stop.method, "STOP_METHOD_"
        ),
        "limit_exceeded": lambda: _name(call_pb2.LimitKind, outcome.kind, "LIMIT_KIND_"),
        "link_error": lambda: f"{outcome.module}.{outcome.name}",
        "crashed": lambda: outcome.signal_name,
    }.get(kind)
    short: str = {"deadline_exceeded": "deadline", "limit_exceeded": "limit"}.get(kind, kind)
    return short if detail is None else f"{short}:{detail()}"


def _name(enum: Any, value: int, prefix: str) -> str:
    return str(enum.Name(value)).removeprefix(prefix)


def fault_word(error: grpc.aio.AioRpcError) -> str:
    """Status and, if the daemon itself answered, its reason."""
    info = fault_info(error)
    reason = "transport" if info is None else info.reason
    return f"{error.code().name}/{reason}"


def fault_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(bytes(value))  # type: ignore[arg-type]
            info = error_details_pb2.ErrorInfo()
            for detail in status.details:
                if detail.Unpack(info):
                    return info
    return None


# --- the supervisor before and after --------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What the supervisor holds. Descriptors without those of its runners."""

    rss_bytes: int
    descriptors: int

    def grown(self, before: Footprint) -> list[str]:
        """What grew beyond the allowance, in words."""
        found = []
        if self.rss_bytes - before.rss_bytes > RSS_ALLOWANCE_BYTES:
            found.append(f"RSS {before.rss_bytes >> 10} -> {self.rss_bytes >> 10} KiB")
        if self.descriptors - before.descriptors > DESCRIPTORS_ALLOWANCE:
            found.append(f"descriptors {before.descriptors} -> {self.descriptors}")
        return found

    def __str__(self) -> str:
        return f"RSS {self.rss_bytes / 2**20:.1f} MiB, {self.descriptors} descriptors"


async def footprint(bench: Bench) -> Footprint:
    """Measure when it is quiet."""
    status = await bench.quiet()
    process = psutil.Process(bench.daemon.pid)
    held = DESCRIPTORS_PER_RUNNER * len(status.runners)
    return Footprint(process.memory_info().rss, descriptors(process) - held)


def descriptors(process: psutil.Process) -> int:
    """Open descriptors, connections of clients aside: these come and go by themselves."""
    clients = [c for c in process.net_connections("unix") if str(c.laddr).endswith("s.sock")]
    return process.num_fds() - len(clients)


async def run(
    daemon: DaemonProcess, rows: Sequence[Row], times: int
) -> tuple[list[Finding], Footprint, Footprint]:
    """Warm up with each row once, then repeat; return findings and footprints.

    The first time counts among `times`; the footprint before is taken after it.
    """
    async with daemon.aio_channel() as channel:
        bench = Bench(daemon, channel)
        first = await repeat(bench, rows, 1)
        before = await footprint(bench)
        findings = await repeat(bench, rows, times - 1)
        for finding, early in zip(findings, first, strict=True):
            finding.words += early.words
        return findings, before, await footprint(bench)
