"""Shared by all tests: a real daemon, started as a user would start it."""

from __future__ import annotations

import os

# Some tests fork this process on purpose; gRPC's handlers around fork abort in a child of a child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import wasmtime

from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2_grpc,
)

# Each channel has a connection of its own: closing one disconnects, and a flood on one does not
# disturb the others.
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


@dataclasses.dataclass
class DaemonProcess:
    """A running daemon with a directory, a socket and a log of its own.

    `user` is the user and group id to run it as; None for those of the tests. `host` is a command
    that prepares a host and then execs what follows it.
    """

    directory: Path
    arguments: tuple[str, ...]
    user: int | None = None
    host: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    start_time_s: float = 0.0
    """How long the start took: a measure of how busy this machine is."""

    @property
    def socket(self) -> Path:
        return self.directory / "s.sock"

    @property
    def target(self) -> str:
        return f"unix:{self.socket}"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it serves."""
        started_at = time.monotonic()
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.host, sys.executable, "-m", "sandboxd.supervisor.main"),
                    *("--listen", f"unix://{self.socket}", "--state-dir", str(self.state_dir)),
                    *self.arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while f"listens on unix://{self.socket}" not in self.log.rpartition("starting run")[2]:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the daemon does not listen:\n{self.log}")
            time.sleep(0.02)
        self.start_time_s = time.monotonic() - started_at

    def restart(self) -> None:
        """Start it again after its end."""
        with open(self.directory / "log", "ab") as log:
            log.write(b"starting run\n")
        self.start()

    def stop(self) -> int:
        """Stop it as systemd would and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """kill -9 of the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def descendants(self) -> list[psutil.Process]:
        """Every process below the supervisor, those in its PID namespace included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.target, CHANNEL_OPTIONS)

    def aio_channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS)

    def status(self) -> admin_pb2.GetStatusResponse:
        with self.channel() as channel:
            return admin_pb2_grpc.AdminServiceStub(channel).GetStatus(
                admin_pb2.GetStatusRequest(), timeout=10
            )

    def wait_status(
        self,
        condition: Callable[[admin_pb2.GetStatusResponse], bool],
        timeout_s: float = 10.0,
    ) -> admin_pb2.GetStatusResponse:
        """Return the first status that meets the condition; fail if none does in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if condition(status):
                return status
            assert time.monotonic() < deadline, f"never so:\n{status}\n{self.log}"
            time.sleep(0.02)

    def push(self, wasm: bytes) -> str:
        """Push a module and return its digest."""
        chunks = [wasm[at : at + 1_000_000] for at in range(0, len(wasm), 1_000_000)]
        with self.channel() as channel:
            response = module_pb2_grpc.ModuleServiceStub(channel).Push(
                iter([module_pb2.PushRequest(chunk=chunk) for chunk in chunks]), timeout=120
            )
        return response.module.digest


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until these processes are gone and return those that are not.

    A zombie counts as gone: whoever adopted it reaps it when it likes. (psutil.wait_procs looks at
    one process at a time, which takes seconds for many.)
    """
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if is_alive(process)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    return left


def is_alive(process: psutil.Process) -> bool:
    """True if this very process still runs, not another one of the same id."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def descriptors(pid: int) -> int:
    """Number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(scope="session")
def start_daemon() -> Iterator[Callable[..., contextlib.AbstractContextManager[DaemonProcess]]]:
    """Start a daemon with these arguments; it must end clean, leaving no process behind."""

    @contextlib.contextmanager
    def start(
        *arguments: str, user: int | None = None, host: tuple[str, ...] = ()
    ) -> Iterator[DaemonProcess]:
        # Short, because a socket's path is limited; not pytest's, which is long.
        with tempfile.TemporaryDirectory(prefix="sbx-") as directory:
            if user is not None:
                os.chown(directory, user, user)
            daemon = DaemonProcess(Path(directory), arguments, user, host)
            daemon.start()
            below = daemon.descendants()
            try:
                yield daemon
            finally:
                below += daemon.descendants()
                status = daemon.stop()
                alive = wait_gone(below, timeout_s=5)
                for process in alive:
                    process.kill()
            assert status in (0, -signal.SIGKILL), daemon.log
            assert not alive, f"left behind: {alive}"
            assert "a bug, answered with INTERNAL" not in daemon.log, daemon.log
            assert "Traceback" not in daemon.log, daemon.log

    return start  # type: ignore[return-value]


@pytest.fixture(scope="module")
def daemon(
    start_daemon: Callable[..., contextlib.AbstractContextManager[DaemonProcess]],
) -> Iterator[DaemonProcess]:
    """One daemon with default settings for all tests of a module."""
    with start_daemon() as running:
        yield running


@pytest.fixture
async def sandbox(
    daemon: DaemonProcess,
) -> AsyncIterator[sandbox_pb2_grpc.SandboxServiceAsyncStub]:
    """An asynchronous stub of the module's daemon."""
    async with daemon.aio_channel() as channel:
        yield sandbox_pb2_grpc.SandboxServiceStub(channel)


@pytest.fixture(scope="session")
def wat() -> Callable[[str], bytes]:
    """Assemble WebAssembly text."""
    return lambda text: bytes(wasmtime.wat2wasm(text))


@pytest.fixture(scope="session")
def guests() -> Path:
    """The folder of example guests."""
    return Path(__file__).parent.parent / "examples" / "guests"
