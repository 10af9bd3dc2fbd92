"""Waiting for packets and for children at once, in a process with one thread."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator

MAX_PACKET_BYTES = 64 * 1024
MAX_FDS = 3

Reaped = tuple[int, int, resource.struct_rusage]


class Switchboard:
    """A control socket to the supervisor, and the children of this process.

    `events()` yields what happens, one thing at a time, until the supervisor hangs up.
    """

    def __init__(self, control_fd: int) -> None:
        self.control = socket.socket(fileno=control_fd)
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def events(self) -> Iterator[Reaped | tuple[bytes, list[int]]]:
        """Yield (pid, status, usage) of a reaped child, or (packet, descriptors); end at EOF."""
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                yield from _reap()
            if self.control.fileno() in ready:
                try:
                    packet, fds, _, _ = socket.recv_fds(self.control, MAX_PACKET_BYTES, MAX_FDS)
                except ConnectionResetError:  # it died with events unread
                    return
                if not packet:
                    return
                yield packet, fds

    def send(self, packet: bytes, fd: int | None = None) -> None:
        """Send a packet. If the supervisor is gone, this process ends."""
        try:
            if fd is None:
                self.control.send(packet)
            else:
                socket.send_fds(self.control, [packet], [fd])
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _reap() -> Iterator[Reaped]:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status, usage


def forget_signals() -> None:
    """Undo in a forked child what a Switchboard set in its parent."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
