"""One process that the zygote forked, as the supervisor holds it: socket, pidfd, clock, end.

The supervisor is not its parent, so it cannot wait for it. Three things tell it of the end:
the pidfd becomes readable (the kernel's word that the process is gone), the zygote reports the
exit status (it alone can reap), and the socket reads EOF (proves nothing: a process may close it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.supervisor.launcher import pid_of

# A dead process is normally reaped within a millisecond. If the zygote is itself stopped or gone,
# nobody waits longer than this for an exit status.
REAP_TIMEOUT_S = 2.0
# More than the longest frame, and little enough for the allocator to have at hand.
READ_BYTES = 64 * 1024 + 64


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended. `status` is the exit code, or minus the signal's number.

    `known` is False when nobody could reap it (the zygote was lost): the numbers are then 0.
    `out_of_memory`: the kernel killed it because its cgroup had no memory left.
    """

    status: int
    cpu_time_ns: int
    peak_rss_bytes: int
    known: bool = True
    out_of_memory: bool = False

    @property
    def may_be_our_kill(self) -> bool:
        """False if it ended for another reason than a SIGKILL from here, which came too late."""
        return not self.known or (self.status == -signal.SIGKILL and not self.out_of_memory)


UNKNOWN_EXIT = ExitStatus(0, 0, 0, known=False)


class Child:
    """A runner or compiler process. Created by `Zygote.spawn`; owned by one Runner or Compilation.

    `on_data(bytes)` is called for every read of the socket and `on_hangup()` once at its end; both
    may be set after creation, before `listen`.
    """

    def __init__(self, child_id: int, sock: socket.socket, uid: int) -> None:
        self.child_id = child_id
        self.uid = uid
        self.pid = 0
        self.pidfd = -1
        self.sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self.forked: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.reaped: asyncio.Future[ExitStatus] = self._loop.create_future()
        self.on_data: Callable[[bytes], None] | None = None
        self.on_hangup: Callable[[], None] | None = None
        self._unsent: bytearray | None = None
        self._status_fd = -1
        self._listening = False
        self.killed = False

    # --- birth, told by the zygote -------------------------------------------------------------

    def set_pidfd(self, pidfd: int) -> None:
        """Take the process's pidfd; from now on it can be killed and its end is noticed.

        Raises OSError, with nothing taken, if there are no descriptors left.
        """
        self.pid = pid_of(pidfd)
        self.pidfd = pidfd
        with contextlib.suppress(OSError):
            self._status_fd = os.open(f"/proc/{self.pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._loop.add_reader(pidfd, self._on_gone)
        if self.killed:
            self.kill()
        if not self.forked.done():
            self.forked.set_result(None)

    def set_exit(self, exit_status: ExitStatus) -> None:
        """Take the exit status; idempotent."""
        if not self.forked.done():
            self.forked.set_result(None)
        if not self.reaped.done():
            self.reaped.set_result(exit_status)
        if self.pidfd < 0 and not self.gone.done():
            self.gone.set_result(None)

    def _on_gone(self) -> None:
        self._loop.remove_reader(self.pidfd)
        # Its last words may be longer than one read, or in the socket still: they count. There is
        # no more of them than a socket holds.
        while self._listening and self._read():
            pass
        if not self.gone.done():
            self.gone.set_result(None)

    async def wait_exit(self) -> ExitStatus:
        """Wait until the process is gone and return how it ended."""
        await asyncio.shield(self.gone)
        try:
            return await asyncio.wait_for(asyncio.shield(self.reaped), REAP_TIMEOUT_S)
        except TimeoutError:
            return UNKNOWN_EXIT

    # --- talking to it ---------------------------------------------------------------------------

    def listen(self) -> None:
        """Start to deliver what the process sends."""
        self._listening = True
        self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Deliver what is there; False if nothing is."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            if self.on_data is not None:
                self.on_data(data)
            return True
        self.deafen()
        if self.on_hangup is not None:
            self.on_hangup()
        return False

    def deafen(self) -> None:
        """Deliver nothing any more, EOF included. Idempotent.

        What it still sends stays in its socket, which is full soon.
        """
        self._listening = False
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were sent here and that the process did not take yet."""
        return len(self._unsent) if self._unsent is not None else 0

    def send(self, frame: bytes, fd: int | None = None) -> None:
        """Send a frame, with a descriptor beside its first byte if `fd` is given. Never blocks.

        What the process does not take is kept and sent when it reads on. A process that hung up is
        not an error here: its end is noticed elsewhere.
        """
        if self._unsent is not None:
            assert fd is None, "a descriptor goes only with a child's first frame"
            self._unsent += frame
            return
        try:
            if fd is None:
                sent = os.write(self._fd, frame)
            else:
                sent = socket.send_fds(self.sock, [frame], [fd])
        except BlockingIOError:
            assert fd is None, "the first frame finds an empty socket"
            sent = 0
        except OSError:
            return
        if sent < len(frame):
            self._unsent = bytearray(memoryview(frame)[sent:])
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        assert self._unsent is not None
        try:
            sent = os.write(self._fd, self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._unsent = None
            self._loop.remove_writer(self._fd)

    # --- ending and measuring it -----------------------------------------------------------------

    def kill(self) -> None:
        """Send SIGKILL; idempotent. A process not yet forked is killed when its pidfd arrives."""
        self.killed = True
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def cpu_time_ns(self) -> int:
        """CPU time used so far, from the kernel; 0 before its fork and after it was reaped."""
        if self.pid == 0:
            return 0
        try:
            # The kernel's clock id of another process's CPU time: see clock_getcpuclockid(3).
            return time.clock_gettime_ns((~self.pid << 3) | 2)
        except OSError:
            return 0

    def peak_rss_bytes(self) -> int:
        """Highest resident set size so far, from the kernel; 0 if it cannot be read."""
        try:
            text = os.pread(self._status_fd, 4096, 0)
            # The process chooses its name, which comes first, but has no line break in it.
            at = text.index(b"\nVmHWM:\t") + 8
            return int(text[at : text.index(b"kB", at)]) * 1024
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        """Release descriptors and callbacks. The process must be gone or killed. Idempotent."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        if self.pidfd >= 0:
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        if self._status_fd >= 0:
            os.close(self._status_fd)
            self._status_fd = -1
        self.on_data = self.on_hangup = None
        self.sock.close()
        self._fd = -1
