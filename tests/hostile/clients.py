"""Hostile clients, as rows: requests and manners that no guest is needed for."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import grpc
from tests.hostile import http2
from tests.hostile.guests import CABINET, assembled
from tests.hostile.harness import Act, Bench, Row, word

from sandboxd.v1 import admin_pb2, call_pb2, module_pb2, sandbox_pb2, sandbox_pb2_grpc

FLOOD_S = 0.4
# A call that is stopped is answered or gone after the grace (harness.DAEMON_ARGUMENTS) and a kill;
# with what a slow machine may add.
STOPPED_WITHIN_S = 3.0
EXECUTE = "/sandboxd.v1.SandboxService/Execute"
DEADLY_SIGNALS = 10
BAD_REQUEST = "INVALID_ARGUMENT/INVALID_REQUEST"
REFUSED = "RESOURCE_EXHAUSTED/transport"
ALIVE = "the others are served"


async def serves(bench: Bench) -> str:
    """Prove that another client is served."""
    request = sandbox_pb2.ExecuteRequest(digest=await bench.stored(assembled(CABINET)))
    request.typed.CopyFrom(call_pb2.TypedCall(export="number", args=[call_pb2.Value(i32=42)]))
    response = await bench.execute(request)
    return ALIVE if response.completed.results[0].i32 == 42 else word(response)


# --- messages -------------------------------------------------------------------------------------


def raw(data: bytes, method: str = EXECUTE) -> Act:
    """Send bytes as the message."""

    async def act(bench: Bench) -> str:
        call: Any = bench.channel.unary_unary(method)
        await call(data, timeout=10)
        return "taken"

    return act


def request(**fields: object) -> Act:
    """Send an ExecuteRequest as it is; a digest of "stored" becomes a real one."""

    async def act(bench: Bench) -> str:
        message = sandbox_pb2.ExecuteRequest(**fields)  # type: ignore[arg-type]
        if message.digest == "stored":
            message.digest = await bench.stored(assembled(CABINET))
        return word(await bench.execute(message))

    return act


async def large_metadata(bench: Bench) -> str:
    call: Any = bench.channel.unary_unary("/sandboxd.v1.AdminService/GetStatus")
    await call(b"", timeout=10, metadata=(("x-junk", "j" * 20_000),))
    return "taken"


async def no_time_left(bench: Bench) -> str:
    message = sandbox_pb2.ExecuteRequest(digest=await bench.stored(assembled(CABINET)))
    message.typed.export = "spin"
    # Both clocks run out at the same time; the client's is usually the first to be heard.
    call = bench.sandbox.Execute(message, timeout=0.05)
    said = (await call.code()).name
    if said == "OK" and (await call).HasField("deadline_exceeded"):
        said = grpc.StatusCode.DEADLINE_EXCEEDED.name
    await _slot_is_free(bench)
    return f"{said}, and the slot is free"


TYPED = call_pb2.TypedCall(export="spin")
_NUL = call_pb2.WasiCommand(args=["a\0b"])
_TWICE = call_pb2.WasiCommand(
    env=[call_pb2.EnvironmentVariable(name="A"), call_pb2.EnvironmentVariable(name="A")]
)
_MANY = call_pb2.WasiCommand(args=["x"] * 5000)

MESSAGES = [
    Row("bytes that are no message", "INVALID_ARGUMENT/MALFORMED_MESSAGE", raw(b"\xff" * 100)),
    Row("a message cut short", "INVALID_ARGUMENT/MALFORMED_MESSAGE", raw(b"\x0a\x50abc")),
    Row("10,000 groups in one another", "INVALID_ARGUMENT/MALFORMED_MESSAGE",
        raw(b"\xfb\x7f" * 10_000)),
    Row("an empty message", BAD_REQUEST, raw(b"")),
    Row("a message of 5 MiB", REFUSED, raw(bytes(5 * 1024 * 1024))),
    Row("20 KB of metadata", REFUSED, large_metadata),
    Row("a method that is not there", "UNIMPLEMENTED/transport",
        raw(b"", "/sandboxd.v1.SandboxService/Escape")),
    Row("no module", BAD_REQUEST, request(typed=TYPED)),
    Row("no call", BAD_REQUEST, request(digest="stored")),
    Row("a digest that is none", BAD_REQUEST, request(digest="../../etc/passwd", typed=TYPED)),
    Row("a digest that is not stored", "NOT_FOUND/MODULE_NOT_FOUND",
        request(digest="sha256:" + "0" * 64, typed=TYPED)),
    Row("no export", BAD_REQUEST, request(digest="stored", typed=call_pb2.TypedCall())),
    Row("an export's name of 100 KB", BAD_REQUEST,
        request(digest="stored", typed=call_pb2.TypedCall(export="x" * 100_000))),
    Row("an argument without a value", BAD_REQUEST, request(
        digest="stored", typed=call_pb2.TypedCall(export="number", args=[call_pb2.Value()]))),
    Row("a million arguments", "INVALID_ARGUMENT/MALFORMED_MESSAGE", request(
        digest="stored",
        typed=call_pb2.TypedCall(export="number", args=[call_pb2.Value(i32=1)] * 1_000_000))),
    Row("0 ms of time", BAD_REQUEST, request(
        digest="stored", typed=TYPED, limits=sandbox_pb2.Limits(wall_time_ms=0))),
    Row("0 ms of CPU time", BAD_REQUEST, request(
        digest="stored", typed=TYPED, limits=sandbox_pb2.Limits(cpu_time_ms=0))),
    Row("a process policy that is none", BAD_REQUEST,
        request(digest="stored", typed=TYPED, process=99)),
    Row("a result convention that is none", BAD_REQUEST, request(
        digest="stored", bytes=call_pb2.BytesCall(export="echo", result_convention=99))),  # type: ignore[arg-type]
    Row("NUL in an argument", BAD_REQUEST, request(digest="stored", wasi=_NUL)),
    Row("a variable twice", BAD_REQUEST, request(digest="stored", wasi=_TWICE)),
    Row("5,000 arguments", BAD_REQUEST, request(digest="stored", wasi=_MANY)),
    Row("a layer that is not there", BAD_REQUEST,
        request(digest="stored", typed=TYPED, require_layers=["moat"])),
    Row("50 ms of gRPC deadline", "DEADLINE_EXCEEDED, and the slot is free", no_time_left),
]  # fmt: skip


# --- going away -----------------------------------------------------------------------------------


async def _slot_is_free(bench: Bench) -> None:
    await bench.until(lambda status: status.pool.busy == 0, STOPPED_WITHIN_S)


async def _running(bench: Bench, channel: grpc.aio.Channel, export: str) -> grpc.aio.Call:
    message = sandbox_pb2.ExecuteRequest(digest=await bench.stored(assembled(CABINET)))
    message.typed.export = export
    call = sandbox_pb2_grpc.SandboxServiceStub(channel).Execute(message, timeout=20)
    await bench.until(lambda status: status.pool.busy == 1)
    return call


def cancelled(export: str) -> Act:
    async def act(bench: Bench) -> str:
        call = await _running(bench, bench.channel, export)
        call.cancel()
        await _slot_is_free(bench)
        return "the slot is free"

    return act


def disconnected(export: str) -> Act:
    async def act(bench: Bench) -> str:
        channel = bench.daemon.aio_channel()
        await _running(bench, channel, export)
        await channel.close()
        await _slot_is_free(bench)
        return "the slot is free"

    return act


async def push_cancelled(bench: Bench) -> str:
    async def endless() -> object:
        yield module_pb2.PushRequest(chunk=b"\0asm\x01\0\0\0")
        while True:
            await asyncio.sleep(0.005)
            yield module_pb2.PushRequest(chunk=b"\0\x05\x01xabc")

    before = (await bench.status()).modules
    call = bench.modules.Push(endless(), timeout=20)  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.sleep(0.05)
    return "nothing was kept" if (await bench.status()).modules == before else "kept"


GOING = [
    Row("cancel of a loop", "the slot is free", cancelled("spin_quietly")),
    Row("cancel of a sleep", "the slot is free", cancelled("sleep")),
    Row("disconnect in a loop", "the slot is free", disconnected("spin_quietly")),
    Row("disconnect in a sleep", "the slot is free", disconnected("sleep")),
    Row("cancel of an endless push", "nothing was kept", push_cancelled),
]


# --- a process that is done to --------------------------------------------------------------------


def _busy_pids(status: admin_pb2.GetStatusResponse) -> list[int]:
    return [runner.pid for runner in status.runners if runner.state == admin_pb2.RUNNER_STATE_BUSY]


def signalled(number: signal.Signals) -> Act:
    """Send the runner of a loop a signal until it has an effect."""

    async def act(bench: Bench) -> str:
        message = sandbox_pb2.ExecuteRequest(digest=await bench.stored(assembled(CABINET)))
        message.typed.export = "spin_quietly"
        message.limits.wall_time_ms = 400
        call = bench.sandbox.Execute(message, timeout=20)
        status = await bench.until(_busy_pids)
        (pid,) = _busy_pids(status)
        # The engine's own handler takes the first fault for the guest's, finds that it is not, and
        # makes the next one deadly; which thread takes it is the kernel's choice.
        for _ in range(DEADLY_SIGNALS):
            await _signal(pid, number)
            if call.done():
                break
        return word(await call)

    return act


async def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    await asyncio.sleep(0.02)


DEATHS = [
    Row("SIGSEGV in the runner", "crashed:SIGSEGV", signalled(signal.SIGSEGV)),
    Row("SIGABRT in the runner", "crashed:SIGABRT", signalled(signal.SIGABRT)),
    Row("SIGILL in the runner", "crashed:SIGILL", signalled(signal.SIGILL)),
    Row("SIGSYS in the runner", "sandbox_violation", signalled(signal.SIGSYS)),
    Row("SIGKILL from outside", "UNAVAILABLE/RUNNER_LOST", signalled(signal.SIGKILL)),
    Row("the runner is stopped", "deadline:KILLED", signalled(signal.SIGSTOP)),
]


# --- the transport --------------------------------------------------------------------------------


def flood(attack: Callable[[str, float], object]) -> Act:
    """Flood on one connection; meanwhile and afterwards others are served."""

    async def act(bench: Bench) -> str:
        flooding = asyncio.create_task(asyncio.to_thread(attack, bench.socket, FLOOD_S))
        while not flooding.done():
            served = await serves(bench)
            if served != ALIVE:
                return served
        await flooding
        return await serves(bench)

    return act


async def pings(bench: Bench) -> str:
    goodbye = await asyncio.to_thread(http2.ping_flood, bench.socket, FLOOD_S)
    return f"GOAWAY {goodbye}, {await serves(bench)}"


async def continuation(bench: Bench) -> str:
    refused = await asyncio.to_thread(http2.continuation_flood, bench.socket, 10.0)
    return await serves(bench) if refused else "taken"


def garbage(data: bytes) -> Act:
    """Bytes that are not HTTP/2 at all: the connection ends, or is told so."""

    async def act(bench: Bench) -> str:
        def talk() -> bool:
            with http2.Connection(bench.socket, preface=False) as connection:
                connection.send(data)
                return connection.wait_closed(3.0)

        hung_up = await asyncio.to_thread(talk)
        return await serves(bench) if hung_up else "still connected"

    return act


async def hoard(bench: Bench) -> str:
    """Hold 100 connections that say nothing, or only hello."""
    held = [http2.Connection(bench.socket, preface=bool(i % 2)) for i in range(100)]
    try:
        return await serves(bench)
    finally:
        for connection in held:
            connection.__exit__(None, None, None)


async def no_window(bench: Bench) -> str:
    """Ask for output and never take it: it must not be held for others."""
    digest = await bench.stored(assembled(CABINET))
    message = sandbox_pb2.ExecuteRequest(digest=digest)
    message.typed.export = "flood_stdout"
    payload = message.SerializeToString()
    body = b"\0" + len(payload).to_bytes(4, "big") + payload

    def ask() -> None:
        with http2.Connection(bench.socket, window=0) as connection:
            for stream in range(1, 20, 2):
                block = http2.execute_headers()
                connection.send(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block))
                connection.send(http2.frame(http2.DATA, http2.END_STREAM, stream, body))
            time.sleep(FLOOD_S)

    asking = asyncio.create_task(asyncio.to_thread(ask))
    served = await serves(bench)
    await asking
    await _slot_is_free(bench)
    return served


TRANSPORT = [
    Row("stream resets", ALIVE, flood(http2.reset_flood)),
    Row("settings flood", ALIVE, flood(http2.settings_flood)),
    Row("headers that never end", ALIVE, continuation),
    Row("pings without a call", f"GOAWAY too_many_pings, {ALIVE}", pings),
    Row("HTTP/1.1", ALIVE, garbage(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
    Row("a TLS hello", ALIVE, garbage(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64))),
    Row("a preface and noise", ALIVE, garbage(http2.PREFACE + b"\xa5" * 4096)),
    Row("100 idle connections", ALIVE, hoard),
    Row("answers that nobody takes", ALIVE, no_window),
]

ROWS = [*MESSAGES, *GOING, *DEATHS, *TRANSPORT]
