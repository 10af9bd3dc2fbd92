"""A child's end of its socket: frames in, frames out, blocking.

A frame is a 4-byte little-endian length and that many bytes. What the supervisor sends is trusted.
After the one message that carries a descriptor only read(2) and write(2) are used, so that the
second seccomp filter can take recvmsg away.
"""

from __future__ import annotations

import os
import socket

HEADER_BYTES = 4
_READ_BYTES = 256 * 1024


class Closed(Exception):  # noqa: N818 - a state
    """The supervisor is gone."""


class Channel:
    """Frames over the unix stream socket `fd`."""

    def __init__(self, fd: int) -> None:
        # Everything is said: a lock-down refuses the calls by which Python would find out.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self._fd = fd
        self._buffer = bytearray()

    def receive(self) -> bytes:
        """Wait for the next frame and return its payload. Raises `Closed`."""
        while (frame := self._cut()) is None:
            data = os.read(self._fd, _READ_BYTES)
            if not data:
                raise Closed
            self._buffer += data
        return frame

    def receive_with_descriptor(self) -> tuple[bytes, int]:
        """Wait for a frame with a descriptor beside it and return both. Raises `Closed`."""
        data, fds, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
        if not data or len(fds) != 1:
            raise Closed
        self._buffer += data
        return self.receive(), fds[0]

    def send(self, payload: bytes) -> None:
        """Send one frame whole."""
        view = memoryview(len(payload).to_bytes(HEADER_BYTES, "little") + payload)
        while view:
            view = view[os.write(self._fd, view) :]

    def _cut(self) -> bytes | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + int.from_bytes(self._buffer[:HEADER_BYTES], "little")
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return frame
