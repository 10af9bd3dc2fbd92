"""A bare `grpc.aio` server with the method Execute, in a process of its own.

It parses the request and answers with a response that a daemon once gave, its output as long as the
input. Responses are made once: nothing is left but the transport and the messages.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from grpc import aio

from sandboxd.supervisor import configuration
from sandboxd.supervisor.settings import Settings
from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc

READY = "serving"


class Echo(sandbox_pb2_grpc.SandboxServiceServicer):
    """Answers with a template of the length asked for."""

    def __init__(self, template: sandbox_pb2.ExecuteResponse) -> None:
        self._template = template
        self._made: dict[int, sandbox_pb2.ExecuteResponse] = {}

    async def Execute(  # noqa: N802 - gRPC's name
        self, request: sandbox_pb2.ExecuteRequest, context: aio.ServicerContext[Any, Any]
    ) -> sandbox_pb2.ExecuteResponse:
        """Answer."""
        length = len(request.bytes.input)
        response = self._made.get(length)
        if response is None:
            response = self._made[length] = self._make(length)
        return response

    def ExecuteBatch(  # noqa: N802 - gRPC's name
        self, request: sandbox_pb2.ExecuteBatchRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[sandbox_pb2.ExecuteBatchResponse]:
        """Not there: batches are compared with single calls."""
        raise NotImplementedError

    def _make(self, length: int) -> sandbox_pb2.ExecuteResponse:
        response = sandbox_pb2.ExecuteResponse()
        response.CopyFrom(self._template)
        response.completed.output = bytes(length)
        return response


def options(daemon_like: bool, message_bytes: int) -> list[tuple[str, int]]:
    """Return the server's options: gRPC's defaults, or those that the daemon sets.

    `message_bytes` lifts the limit on messages above the default of 4 MiB; 0 leaves it.
    """
    if daemon_like:
        return configuration.server_options(_settings(message_bytes or 4 << 20))
    return [("grpc.max_receive_message_length", message_bytes)] if message_bytes else []


def _settings(message_bytes: int) -> Settings:
    # A size that is not given is text, which only the command line turns into a number.
    return Settings(max_message=message_bytes, max_output=max(2 << 20, message_bytes))


async def _serve(arguments: argparse.Namespace) -> None:
    template = sandbox_pb2.ExecuteResponse.FromString(arguments.template.read_bytes())
    server = aio.server(options=options(arguments.daemon_options, arguments.message_bytes))
    sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(Echo(template), server)
    server.add_insecure_port(f"unix:{arguments.socket}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print(READY, file=sys.stderr, flush=True)
    await stop.wait()
    await server.stop(0)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--template", type=Path, required=True)
    parser.add_argument("--daemon-options", action="store_true")
    parser.add_argument("--message-bytes", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
