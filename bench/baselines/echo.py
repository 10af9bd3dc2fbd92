"""Starts the bare echo server of echo_server.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

from bench.baselines import echo_server
from bench.stage import Endpoint, Stage, process
from sandboxd.v1 import sandbox_pb2


@contextlib.asynccontextmanager
async def echo_endpoint(
    stage: Stage,
    template: sandbox_pb2.ExecuteResponse,
    *,
    daemon_options: bool = False,
    message_bytes: int = 0,
    program: Sequence[str] = ("bench.baselines.echo_server",),
) -> AsyncIterator[Endpoint]:
    """Run an echo server that answers like `template`, a response of the daemon.

    `program` is a module that starts one, and what goes before its own flags.
    """
    async with stage.directory() as directory:
        socket = directory / "e.sock"
        (directory / "template").write_bytes(template.SerializeToString())
        command = [
            *(sys.executable, "-m", *program),
            *("--socket", str(socket), "--template", str(directory / "template")),
            *("--message-bytes", str(message_bytes)),
            *(["--daemon-options"] if daemon_options else []),
        ]
        async with process(command, directory / "log", echo_server.READY) as running:
            endpoint = Endpoint(socket, running.pid)
            try:
                yield endpoint
            finally:
                await endpoint.close()
