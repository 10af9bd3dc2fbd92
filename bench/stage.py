"""What figures are measured on: real daemons, as a user would start them, and their stubs."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpc import aio

from bench.figure import Settings
from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)

if TYPE_CHECKING:
    from sandboxd.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / "examples" / "guests"

Metadata = tuple[tuple[str, str], ...]
"""Of a gRPC call: keys and values."""

START_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1_000_000

# The same for every gRPC side. A pool of its own keeps a channel from sharing its connection with
# others; -1 lets 16 MiB pass, and costs nothing below.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class Endpoint:
    """A gRPC server on a unix socket that has the method Execute."""

    def __init__(self, socket: Path, pid: int) -> None:
        self.target = f"unix:{socket}"
        self.pid = pid
        self._channels: list[aio.Channel] = []

    def channel(self) -> aio.Channel:
        """Open a connection of its own; it is closed with this endpoint."""
        channel = aio.insecure_channel(self.target, CHANNEL_OPTIONS)
        self._channels.append(channel)
        return channel

    def stub(self) -> SandboxServiceAsyncStub:
        """Return an asyncio stub on a connection of its own."""
        return sandbox_pb2_grpc.SandboxServiceStub(self.channel())

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()


class Daemon(Endpoint):
    """A running daemon."""

    def __init__(self, socket: Path, pid: int) -> None:
        super().__init__(socket, pid)
        channel = self.channel()
        self._modules = module_pb2_grpc.ModuleServiceStub(channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)

    async def push(self, wasm: bytes, metadata: Metadata = ()) -> str:
        """Push and compile a module; return its digest."""
        return (await self.push_timed(wasm, metadata)).module.digest

    async def push_timed(self, wasm: bytes, metadata: Metadata = ()) -> module_pb2.PushResponse:
        """Push and compile a module; the response tells how long compiling took."""
        parts = [
            module_pb2.PushRequest(chunk=wasm[at : at + _CHUNK_BYTES])
            for at in range(0, len(wasm), _CHUNK_BYTES)
        ]
        return await self._modules.Push(iter(parts), metadata=metadata)

    async def delete(self, digest: str) -> None:
        """Delete a module."""
        await self._modules.Delete(module_pb2.DeleteRequest(digest=digest))

    async def status(self) -> admin_pb2.GetStatusResponse:
        """Return what the daemon says about itself."""
        return await self._admin.GetStatus(admin_pb2.GetStatusRequest())

    async def wait_for_spares(self, count: int) -> None:
        """Wait until so many runners are ready and none is on its way."""
        while True:
            pool = (await self.status()).pool
            if pool.spare >= count and not (pool.starting or pool.dying or pool.loading):
                return
            await asyncio.sleep(0.01)


class Stage:
    """What a figure may use while it is measured."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layers: dict[str, str] = {}
        """Active layers of the daemons so far: name to what was verified."""
        self.versions: dict[str, str] = {}
        """Versions that only the daemon knows."""

    @contextlib.asynccontextmanager
    async def directory(self) -> AsyncIterator[Path]:
        """Make a directory for sockets and files. Its path is short: sockets' paths are limited."""
        with tempfile.TemporaryDirectory(prefix="sbx-") as directory:
            yield Path(directory)

    @contextlib.asynccontextmanager
    async def daemon(
        self, *arguments: str, program: Sequence[str] = ("sandboxd.supervisor.main",)
    ) -> AsyncIterator[Daemon]:
        """Run a daemon with these flags, and with its defaults for all others.

        `program` is a module that starts one, and what goes before the daemon's own flags.
        """
        async with self.directory() as directory:
            socket = directory / "s.sock"
            command = [
                *(sys.executable, "-m", *program),
                *("--listen", f"unix://{socket}", "--state-dir", str(directory / "state")),
                *arguments,
            ]
            async with process(command, directory / "log", "listens on") as running:
                daemon = Daemon(socket, running.pid)
                try:
                    await self._note(daemon)
                    yield daemon
                finally:
                    await daemon.close()

    async def _note(self, daemon: Daemon) -> None:
        status = await daemon.status()
        self.versions["sandboxd"] = status.version
        self.versions["engine"] = status.engine_version
        for layer in status.layers:
            if layer.active:
                self.layers[layer.name] = layer.detail


@contextlib.asynccontextmanager
async def process(
    command: Sequence[str], log: Path, ready: str
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a process from when its log says `ready` until the block ends.

    Raises RuntimeError, with the log, if it never does.
    """
    running = _start(command, log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while ready not in (said := _read(log)):
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[2]} did not start:\n{said}")
            await asyncio.sleep(0.02)
        yield running
    finally:
        running.terminate()
        try:
            await asyncio.to_thread(running.wait, START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def completed(response: sandbox_pb2.ExecuteResponse) -> sandbox_pb2.ExecuteResponse:
    """Return the response of a guest that ended well; raise RuntimeError for any other."""
    outcome = response.WhichOneof("outcome")
    if outcome not in ("completed", "exited"):
        raise RuntimeError(f"the guest did not end well: {outcome}: {response}")
    return response
