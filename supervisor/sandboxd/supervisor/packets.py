"""Packets with descriptors, to and from a process of ours, over a SOCK_SEQPACKET pair."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

MAX_PACKET_BYTES = 64 * 1024


class PacketSocket:
    """One end. `on_packet(packet, fds)` owns the descriptors; `on_end()` is called once, at EOF.

    Sending never blocks: what the other side does not take yet is kept, in order. `theirs` is the
    other end, for the caller to pass on and close.
    """

    def __init__(
        self, on_packet: Callable[[bytes, list[int]], None], on_end: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_packet = on_packet
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._sock: socket.socket | None = ours
        self._loop.add_reader(ours.fileno(), self._on_readable)

    @property
    def is_open(self) -> bool:
        """True until the other side hung up, or `close`."""
        return self._sock is not None

    def send(self, packet: bytes, fds: list[int]) -> None:
        """Send a packet; the descriptors are closed once they are on their way, or lost."""
        if self._sock is None:
            close_all(fds)
            return
        self._unsent.append((packet, fds))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        sock = self._sock
        assert sock is not None, "the writer is removed when the socket is closed"
        while self._unsent:
            packet, fds = self._unsent[0]
            try:
                socket.send_fds(sock, [packet], fds)
            except BlockingIOError:
                self._loop.add_writer(sock.fileno(), self._flush)
                return
            except OSError:
                return  # EOF is on its way to _on_readable, which cleans up
            self._unsent.popleft()
            close_all(fds)
        self._loop.remove_writer(sock.fileno())

    def _on_readable(self) -> None:
        while self._sock is not None:
            try:
                packet, fds, _, _ = socket.recv_fds(self._sock, MAX_PACKET_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                self.close()
                self._on_end()
                return
            self._on_packet(packet, fds)

    def close(self) -> None:
        """Hang up and drop what was not sent; idempotent. `on_end` is not called."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        sock.close()
        while self._unsent:
            close_all(self._unsent.popleft()[1])


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
