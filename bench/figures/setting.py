"""What most figures begin with: a daemon, a bound module, and echo servers of the same message."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench import guests, requests
from bench.baselines.echo import echo_endpoint
from bench.stage import Daemon, Endpoint, Stage, completed
from sandboxd.v1 import sandbox_pb2

Execute = Callable[[], Awaitable[sandbox_pb2.ExecuteResponse]]

SANDBOXD = "sandboxd"
ECHO = "bare echo"
ECHO_DAEMON_OPTIONS = "bare echo, daemon's channel options"
INPUT = b"x" * 64
# Half of what the daemon lets a connection have at once (configuration.server_options): it counts
# calls that it has answered and not yet forgotten, and refuses what is beyond.
CALLS_PER_CONNECTION = 500


@dataclass(frozen=True, slots=True)
class Setting:
    """A daemon with a module bound to a runner, and echo servers that answer as it did."""

    daemon: Daemon
    digest: str
    request: sandbox_pb2.ExecuteRequest
    echo: Endpoint
    echo_daemon_options: Endpoint


@contextlib.asynccontextmanager
async def bound_module(
    stage: Stage, data: bytes = INPUT, *arguments: str, message_bytes: int = 0
) -> AsyncIterator[Setting]:
    """Set it up: the module answers `data`. `message_bytes` lifts the servers' limit on messages.

    `arguments` are flags of the daemon.
    """
    async with stage.daemon(*arguments) as daemon:
        digest = await daemon.push(guests.echo())
        request = requests.bytes_call(digest, "echo", data)
        execute = daemon.stub().Execute
        for _ in range(10):
            template = completed(await execute(request))
        assert template.completed.output == data
        async with (
            echo_endpoint(stage, template, message_bytes=message_bytes) as plain,
            echo_endpoint(
                stage, template, daemon_options=True, message_bytes=message_bytes
            ) as like_daemon,
        ):
            yield Setting(daemon, digest, request, plain, like_daemon)


def calls(endpoint: Endpoint, request: sandbox_pb2.ExecuteRequest, in_flight: int) -> list[Execute]:
    """Return as many callables as calls shall be in flight, on as few connections as take them."""
    connections = [
        endpoint.stub().Execute for _ in range((in_flight - 1) // CALLS_PER_CONNECTION + 1)
    ]

    def one(number: int) -> Execute:
        execute = connections[number % len(connections)]

        async def call() -> sandbox_pb2.ExecuteResponse:
            return completed(await execute(request))

        return call

    return [one(number) for number in range(in_flight)]


@dataclass(slots=True)
class Counting:
    """Calls that count themselves as they begin."""

    calls: list[Execute]
    count: int = 0


def counting(made: Sequence[Execute]) -> Counting:
    """Return the same calls, counted."""
    counted = Counting([])

    def one(call: Execute) -> Execute:
        async def begin() -> sandbox_pb2.ExecuteResponse:
            counted.count += 1
            return await call()

        return begin

    counted.calls += map(one, made)
    return counted


def call_of(endpoint: Endpoint, request: sandbox_pb2.ExecuteRequest) -> Execute:
    """Return a callable that makes one call on a connection of its own."""
    return calls(endpoint, request, 1)[0]
