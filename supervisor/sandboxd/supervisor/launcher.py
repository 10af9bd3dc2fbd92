"""The supervisor's side of the launcher: exec it, ask it for zygotes, notice their ends.

It is exec'd before gRPC starts and before root is given up, so that this process neither forks nor
needs privilege later. Without root another one can be exec'd if it is lost (Popen execs through
vfork, so gRPC's fork handlers never run); with root given up its loss is the daemon's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.packets import PacketSocket, close_all
from sandboxd.wire.v1 import control_pb2

log = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0


class LauncherLost(StartError):  # noqa: N818 - a state of the world
    """There is no launcher any more; no zygote can be started."""


class LaunchedZygote:
    """A zygote's outer process: it can be killed, and its end awaited."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pidfd = -1
        self.pid = 0
        self.launched: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()

    def set_pidfd(self, pidfd: int) -> None:
        """Take the process's pidfd. Raises OSError, with nothing taken, without descriptors."""
        self.pid = pid_of(pidfd)
        self.pidfd = pidfd
        if not self.launched.done():
            self.launched.set_result(None)

    def set_exit(self, status: int) -> None:
        """Take the exit code, or minus the signal's number; idempotent."""
        if not self.launched.done():
            self.launched.set_result(None)
        if not self.exited.done():
            self.exited.set_result(status)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def kill(self) -> None:
        """Kill the zygote and with it all its children; idempotent."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Launcher:
    """One launcher process."""

    def __init__(self) -> None:
        self._control = PacketSocket(self._dispatch, self._lost)
        self._process: subprocess.Popen[bytes] | None = None
        self._zygotes: dict[int, LaunchedZygote] = {}
        self._next_id = 1

    @property
    def alive(self) -> bool:
        """True while it can be asked."""
        return self._control.is_open

    def start(self) -> None:
        """Exec it."""
        with self._control.theirs as theirs:
            # -P keeps the working directory out of the import path.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "sandboxd.runner.launcher"),
                    *("--control-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A signal to the daemon's process group (Ctrl-C) is for the daemon to act on.
                start_new_session=True,
                env=_clean_environment(),
                cwd="/",
            )

    def launch(
        self,
        control: socket.socket,
        namespaces: str,
        required: Sequence[str],
        cgroups: control_pb2.Cgroups,
    ) -> LaunchedZygote:
        """Ask for a zygote with this end of its control socket. Raises `LauncherLost`."""
        if not self._control.is_open:
            raise LauncherLost("the launcher is gone")
        zygote_id = self._next_id
        self._next_id += 1
        request = control_pb2.LaunchRequest(
            zygote_id=zygote_id,
            namespaces=namespaces,
            required_layers=required,
            cgroups=cgroups,
        )
        launched = LaunchedZygote()
        self._zygotes[zygote_id] = launched
        self._control.send(request.SerializeToString(), [os.dup(control.fileno())])
        return launched

    def _dispatch(self, packet: bytes, fds: list[int]) -> None:
        try:
            event = control_pb2.LauncherEvent.FromString(packet)
        except DecodeError:
            log.error("the launcher sent a packet that is not an event; giving it up")
            close_all(fds)
            self._control.close()
            self._lost()
            return
        match event.WhichOneof("event"):
            case "launched" if event.launched.zygote_id in self._zygotes and fds:
                pidfd = fds.pop()
                try:
                    self._zygotes[event.launched.zygote_id].set_pidfd(pidfd)
                except OSError as error:
                    log.error("a zygote cannot be looked after and is killed: %s", error.strerror)
                    kill_unwatched(pidfd)
            case "exited":
                zygote = self._zygotes.pop(event.exited.zygote_id, None)
                if zygote is not None:
                    zygote.set_exit(event.exited.status)
        close_all(fds)

    def _lost(self) -> None:
        for zygote in self._zygotes.values():
            zygote.set_exit(-signal.SIGKILL)
        self._zygotes.clear()

    async def stop(self) -> None:
        """Hang up: it ends, and all below it. Idempotent."""
        self._control.close()
        self._control.theirs.close()
        self._lost()
        if self._process is not None:
            # It ends by itself, after it has removed the cgroups of its children.
            try:
                await asyncio.to_thread(self._process.wait, END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)


def kill_unwatched(pidfd: int) -> None:
    """Kill a process that cannot be taken, and close its pidfd."""
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def pid_of(pidfd: int) -> int:
    """Return the process id in this process's namespace, or 0 if the process was reaped.

    Raises OSError if there are no descriptors left.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
    return 0


def _clean_environment() -> dict[str, str]:
    """The whole environment of all below: nothing of the supervisor's is in a runner's memory."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Runners are many and small: one arena and one I/O thread each.
        "MALLOC_ARENA_MAX": "1",
        "TOKIO_WORKER_THREADS": "1",
    }
    if site.ENABLE_USER_SITE and site.USER_BASE:
        environment["PYTHONUSERBASE"] = site.USER_BASE
    return environment
