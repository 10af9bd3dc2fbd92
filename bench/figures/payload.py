"""From empty messages to 16 MiB in and out."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc

from bench import guests, requests, sides
from bench.figure import Axis, Figure, Note, Part, Point, Ratio, Settings, at_least
from bench.figures.setting import (
    ECHO,
    ECHO_DAEMON_OPTIONS,
    SANDBOXD,
    bound_module,
    calls,
)
from bench.stage import Stage

SECTION = "Payloads"
MIB = 1 << 20
# Two keep both processors busy; more of 16 MiB each measure how memory is allocated.
_IN_FLIGHT = 2
_SIZES = (0, 64, 1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
_QUICK_SIZES = (64, 1 << 16, 1 << 20, 1 << 24)
# Blocks of these take seconds.
_LARGE_BYTES, _LARGE_ROUNDS = 4 * MIB, 5
_ROOM = 17 * MIB
# What lets 16 MiB through; all other settings are the defaults.
_FLAGS = ("--max-message=17MiB", "--max-output=17MiB", "--default-output=17MiB")


async def _one_mebibyte(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    async with bound_module(stage, bytes(MIB)) as it:
        endpoints = {
            SANDBOXD: it.daemon,
            ECHO: it.echo,
            ECHO_DAEMON_OPTIONS: it.echo_daemon_options,
        }
        yield Point(
            [
                sides.rate(name, calls(endpoint, it.request, _IN_FLIGHT), seconds)
                for name, endpoint in endpoints.items()
            ]
        )


async def _curve(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s / 2
    async with bound_module(stage, b"x", *_FLAGS, message_bytes=_ROOM) as it:
        for size in _QUICK_SIZES if stage.settings.quick else _SIZES:
            request = requests.bytes_call(it.digest, "echo", bytes(size))
            yield Point(
                [
                    sides.rate(SANDBOXD, calls(it.daemon, request, _IN_FLIGHT), seconds),
                    sides.rate(ECHO, calls(it.echo, request, _IN_FLIGHT), seconds),
                ],
                x=size,
                rounds=_LARGE_ROUNDS if size >= _LARGE_BYTES else None,
            )
    yield Note(f"The daemon ran with `{' '.join(_FLAGS)}`, the echo with room for {_ROOM} bytes.")
    async for note in _refusals(stage):
        yield note


async def _refusals(stage: Stage) -> AsyncGenerator[Note, None]:
    """Say what the defaults refuse: found by trying."""
    async with stage.daemon() as daemon:
        digest = await daemon.push(guests.echo())
        execute = daemon.stub().Execute
        for size in (MIB, MIB + 1, 4 * MIB):
            try:
                response = await execute(requests.bytes_call(digest, "echo", bytes(size)))
                answer = str(response.WhichOneof("outcome"))
                if response.HasField("limit_exceeded"):
                    answer = f"`limit_exceeded`: {response.limit_exceeded.message}"
            except grpc.aio.AioRpcError as error:
                answer = f"`{error.code().name}`: {error.details()}"
            yield Note(f"With default settings, {size:,} bytes in and out: {answer}.")


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "payload-1mib",
            "1 MiB in and 1 MiB out, 2 in flight",
            SECTION,
            "/s",
            _one_mebibyte,
            [
                Ratio("throughput of 1 MiB in and out / bare echo", SANDBOXD, ECHO, at_least(0.6)),
                Ratio("the same / echo with the daemon's options", SANDBOXD, ECHO_DAEMON_OPTIONS),
            ],
        ),
        Figure(
            "payload-curve",
            "Payloads from 0 B to 16 MiB, in and out, 2 in flight",
            SECTION,
            "/s",
            _curve,
            [Ratio("throughput / bare echo", SANDBOXD, ECHO)],
            Axis("bytes in, and as many out", binary=True),
        ),
    ]
