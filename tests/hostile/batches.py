"""Hostile batches, as rows: what ExecuteBatch is sent, and how its clients behave."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import grpc
from tests.hostile.clients import ALIVE, FLOOD_S, serves
from tests.hostile.guests import CABINET, assembled
from tests.hostile.harness import Act, Bench, Row, word

from sandboxd.v1 import call_pb2, sandbox_pb2

METHOD = "/sandboxd.v1.SandboxService/ExecuteBatch"
MALFORMED = "INVALID_ARGUMENT/MALFORMED_MESSAGE"
MIXED = "3 completed, 1 deadline:INTERRUPTED, 2 error 3"
BAD_REQUEST = "INVALID_ARGUMENT/INVALID_REQUEST"


def raw(data: bytes) -> Act:
    """Send bytes as the batch."""

    async def act(bench: Bench) -> str:
        send: Any = bench.channel.unary_stream(METHOD)
        call = send(data, timeout=10)
        async for _ in call:
            pass
        return "taken"

    return act


async def _batch(bench: Bench, *exports: str, **fields: Any) -> sandbox_pb2.ExecuteBatchRequest:
    digest = await bench.stored(assembled(CABINET))
    return sandbox_pb2.ExecuteBatchRequest(
        requests=[
            sandbox_pb2.ExecuteRequest(
                digest=digest, typed=call_pb2.TypedCall(export=export, args=_arguments(export))
            )
            for export in exports
        ],
        **fields,
    )


def _arguments(export: str) -> list[call_pb2.Value]:
    return [call_pb2.Value(i32=42)] if export == "number" else []


async def mixed(bench: Bench) -> str:
    """Good and bad ones in one batch: each one gets what it would get alone."""
    names = ["number", "nothing_of_that_name", "number", "spin_quietly", "number"]
    request = await _batch(bench, *names)
    request.requests.add().CopyFrom(sandbox_pb2.ExecuteRequest(digest="../../etc/passwd"))
    found: Counter[str] = Counter()
    async for message in bench.sandbox.ExecuteBatch(request, timeout=20):
        for result in message.results:
            alone = result.HasField("response")
            found[word(result.response) if alone else f"error {result.error.code}"] += 1
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


async def cancelled(bench: Bench) -> str:
    """Begin batches of hangs and cancel them at once, again and again."""
    request = await _batch(bench, *["spin_quietly"] * 50)
    end = asyncio.get_running_loop().time() + FLOOD_S
    while asyncio.get_running_loop().time() < end:
        call = bench.sandbox.ExecuteBatch(request, timeout=20)
        await asyncio.sleep(0.005)
        call.cancel()
    await bench.until(lambda status: status.pool.busy == 0 and status.queue.depth == 0)
    return await serves(bench)


async def unread(bench: Bench) -> str:
    """Ask for much output in batches, and read none of it."""
    request = await _batch(bench, *["flood_stdout"] * 50)
    channel = bench.daemon.aio_channel()
    try:
        stub: Any = channel.unary_stream(METHOD)
        calls = [stub(request.SerializeToString(), timeout=20) for _ in range(4)]
        await asyncio.sleep(FLOOD_S)
        served = await serves(bench)
        for call in calls:
            call.cancel()
    finally:
        await channel.close()
    await bench.until(lambda status: status.pool.busy == 0)
    return served


async def refusals(bench: Bench) -> str:
    """Batches of 10,000 items that are refused one by one; others are served meanwhile."""
    request = b"\x0a\x00" * 10_000
    send: Any = bench.channel.unary_stream(METHOD)
    call = send(request, timeout=20)

    async def read() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass

    reading = asyncio.create_task(read())
    while not reading.done():
        served = await serves(bench)
        if served != ALIVE:
            return served
    return await serves(bench)


ROWS = [
    Row("a batch of bytes that are no message", MALFORMED, raw(b"\xff" * 100)),
    Row("a batch cut short", MALFORMED, raw(b"\x0a\x50abc")),
    Row("a batch of nothing", BAD_REQUEST, raw(b"")),
    Row("a batch of 10,001 items", BAD_REQUEST, raw(b"\x0a\x00" * 10_001)),
    Row("a batch of 10,000 items that are refused", ALIVE, refusals),
    Row("a batch of good and bad items", MIXED, mixed),
    Row("batches that are cancelled at once", ALIVE, cancelled),
    Row("batches that nobody reads", ALIVE, unread),
]
