"""kill -9 of runners, zygote and supervisor under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Any

import grpc
import psutil
from tests.conftest import wait_gone
from tests.daemon.calls import refusal

from sandboxd.v1 import call_pb2, sandbox_pb2, sandbox_pb2_grpc

RETRYABLE = {"RUNNER_LOST", "ZYGOTE_LOST"}


def add(digest: str) -> Any:
    call = call_pb2.TypedCall(export="add", args=[call_pb2.Value(i32=20), call_pb2.Value(i32=22)])
    return sandbox_pb2.ExecuteRequest(digest=digest, typed=call)


def spin(digest: str, wall_time_ms: int) -> Any:
    return sandbox_pb2.ExecuteRequest(
        digest=digest,
        typed=call_pb2.TypedCall(export="spin"),
        limits=sandbox_pb2.Limits(wall_time_ms=wall_time_ms),
    )


def patience(daemon: Any, promised_s: float) -> float:
    """What is promised, or more where starting a daemon takes more than a quarter of it."""
    return max(promised_s, 4.0 * float(daemon.start_time_s))


async def two_hang(daemon: Any, stub: Any, digest: str) -> list[asyncio.Task[str]]:
    """Start two calls that do not end, and wait until they run."""
    hung = [asyncio.create_task(_outcome(stub.Execute(spin(digest, 60_000)))) for _ in "ab"]
    while daemon.status().pool.busy < 2:  # noqa: ASYNC110 - the status is all there is
        await asyncio.sleep(0.02)
    return hung


async def load(stub: Any, digest: str, seconds: float, seen: list[str]) -> None:
    """Call without a pause and note every answer; only typed, retryable refusals are allowed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            response = await stub.Execute(add(digest), timeout=60)
        except grpc.aio.AioRpcError as error:
            found = refusal(error)
            seen.append(found.reason if found.retry_after_ms is not None else str(error))
            await asyncio.sleep(0.01)
        else:
            assert response.WhichOneof("outcome") == "completed", response
            assert response.completed.results[0].i32 == 42
            seen.append("completed")


async def test_killed_runners_are_replaced_and_their_calls_answered(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon() as daemon:
        digest = daemon.push(sink_wasm)
        async with daemon.aio_channel() as channel:
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            seen: list[str] = []
            hung = await two_hang(daemon, stub, digest)
            calls = [asyncio.create_task(load(stub, digest, 3.0, seen)) for _ in range(8)]
            await asyncio.sleep(0.7)
            killed_at = time.monotonic()
            for runner in daemon.status().runners:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(runner.pid, signal.SIGKILL)
            assert set(await asyncio.gather(*hung)) == {"UNAVAILABLE"}
            assert time.monotonic() - killed_at < patience(daemon, 2.0)
            await asyncio.gather(*calls)
            assert seen[-1] == "completed"
            assert set(seen) <= {"completed", *RETRYABLE}
            started_at = time.monotonic()
            response = await stub.Execute(add(digest), timeout=10)
            assert response.completed.results[0].i32 == 42
            assert time.monotonic() - started_at < patience(daemon, 2.0)


async def test_a_killed_zygote_is_replaced_and_calls_are_answered(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon() as daemon:
        digest = daemon.push(sink_wasm)
        async with daemon.aio_channel() as channel:
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            hung = await two_hang(daemon, stub, digest)
            seen: list[str] = []
            calls = [asyncio.create_task(load(stub, digest, 3.0, seen)) for _ in range(4)]
            await asyncio.sleep(0.7)
            before = daemon.status()
            zygote = psutil.Process(before.zygote_pid)
            old = [zygote, *zygote.children(recursive=True)]
            killed_at = time.monotonic()
            os.kill(before.zygote_pid, signal.SIGKILL)
            assert set(await asyncio.gather(*hung)) == {"UNAVAILABLE"}
            daemon.wait_status(
                lambda status: status.pool.zygote_starts_total == 2 and status.pool.spare > 0
            )
            assert time.monotonic() - killed_at < patience(daemon, 2.0)
            await asyncio.gather(*calls)
            assert seen[-1] == "completed"
            assert set(seen) <= {"completed", *RETRYABLE}
            assert not wait_gone(old, patience(daemon, 1.0))


async def test_nothing_outlives_a_killed_supervisor(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon() as daemon:
        digest = daemon.push(sink_wasm)
        async with daemon.aio_channel() as channel:
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            hung = await two_hang(daemon, stub, digest)
            below = daemon.descendants()
            assert len(below) > 4
            daemon.kill()
            assert not await asyncio.to_thread(wait_gone, below, patience(daemon, 1.0))
            assert set(await asyncio.gather(*hung)) == {"UNAVAILABLE"}
        daemon.restart()
        async with daemon.aio_channel() as channel:
            # What was acknowledged is still there.
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            response = await stub.Execute(add(digest), timeout=10)
            assert response.completed.results[0].i32 == 42


async def _outcome(call: Any) -> str:
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return str(response.WhichOneof("outcome"))
