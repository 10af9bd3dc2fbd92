"""A fake daemon on a socket of its own for every test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.client.fake_daemon import FakeDaemon, in_thread

from sandboxd.client import AsyncClient, Client


@pytest.fixture
def socket() -> Iterator[Path]:
    # Not tmp_path: a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="sandboxd-") as directory:
        yield Path(directory) / "sock"


@pytest.fixture
def daemon(socket: Path) -> Iterator[FakeDaemon]:
    with in_thread(FakeDaemon(socket)) as fake:
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.address) as connected:
        yield connected


@pytest.fixture
async def loop_daemon(socket: Path) -> AsyncIterator[FakeDaemon]:
    """The fake on the test's own loop: gRPC polls for one asyncio loop per process best."""
    fake = FakeDaemon(socket)
    async with fake.serve():
        yield fake


@pytest.fixture
async def async_client(loop_daemon: FakeDaemon) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(loop_daemon.address) as connected:
        yield connected
