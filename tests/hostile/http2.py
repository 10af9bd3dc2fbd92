"""HTTP/2 by hand: what a proper client library would refuse to send."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = struct.pack(">I", 8)
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(
        ">I", stream
    ) + payload  # fmt: skip


def header(key: bytes, value: bytes) -> bytes:
    """A literal header that is not indexed and not compressed."""
    return b"\0" + _integer(len(key)) + key + _integer(len(value)) + value


def _integer(number: int) -> bytes:
    # HPACK: seven bits, then as LEB128.
    if number < 127:
        return bytes([number])
    encoded = bytearray([127])
    number -= 127
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def execute_headers(*extra: bytes) -> bytes:
    return call_headers(b"/sandboxd.v1.SandboxService/Execute", *extra)


def call_headers(path: bytes, *extra: bytes) -> bytes:
    return b"".join(
        [
            header(b":method", b"POST"),
            header(b":scheme", b"http"),
            header(b":path", path),
            header(b":authority", b"localhost"),
            header(b"te", b"trailers"),
            header(b"content-type", b"application/grpc"),
            *extra,
        ]
    )


class Connection:
    """A raw connection to a unix socket; everything that comes back is kept in `received`."""

    def __init__(self, path: str, preface: bool = True, window: int | None = None) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(5)
        self._sock.connect(path)
        self.received = bytearray()
        self.closed = False
        if preface:
            settings = b""
            if window is not None:
                settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def send(self, data: bytes) -> bool:
        """Send all; False if the server hung up."""
        if self.closed:
            return False
        self._sock.settimeout(5)
        try:
            self._sock.sendall(data)
        except OSError:
            self.closed = True
        return not self.closed

    def drain(self) -> None:
        """Take what has come, without waiting."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._take()
        self._sock.settimeout(5)

    def wait_closed(self, timeout_s: float) -> bool:
        """Read until the server hangs up; False if it does not in time."""
        end = time.monotonic() + timeout_s
        while not self.closed and (left := end - time.monotonic()) > 0:
            self._sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self._take()
        return self.closed

    def _take(self) -> None:
        while not self.closed:
            try:
                data = self._sock.recv(65536)
            except ConnectionError:
                data = b""
            self.received += data
            self.closed = not data

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """What was received, as (kind, flags, stream, payload)."""
        found = []
        at = 0
        while at + 9 <= len(self.received):
            length = int.from_bytes(self.received[at : at + 3], "big")
            kind, flags = self.received[at + 3], self.received[at + 4]
            stream = int.from_bytes(self.received[at + 5 : at + 9], "big")
            found.append((kind, flags, stream, bytes(self.received[at + 9 : at + 9 + length])))
            at += 9 + length
        return found

    def goaway(self) -> str:
        """The debug text of the server's GOAWAY; empty if there was none."""
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                return payload[8:].decode("latin-1") or f"error {payload[7]}"
        return ""


def reset_flood(path: str, seconds: float) -> int:
    """Open streams and reset them at once ("rapid reset"); return how many."""
    block = execute_headers()
    count = 0
    stream = 1
    with Connection(path) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            burst = bytearray()
            for _ in range(50):
                burst += frame(HEADERS, END_HEADERS, stream, block)
                burst += frame(RST_STREAM, 0, stream, CANCEL)
                stream += 2
            if not connection.send(bytes(burst)):
                break
            count += 50
            connection.drain()
            connection.received.clear()
    return count


def ping_flood(path: str, seconds: float) -> str:
    """Send pings without a call; return the text of the server's goodbye."""
    with Connection(path) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end and connection.send(frame(PING, 0, 0, os.urandom(8))):
            time.sleep(0.001)
            connection.drain()
        connection.wait_closed(1.0)
        return connection.goaway()


def settings_flood(path: str, seconds: float) -> bool:
    """Send settings, each of which wants an answer; True if the connection outlived it."""
    with Connection(path) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end and connection.send(frame(SETTINGS, 0, 0) * 50):
            connection.drain()
        return not connection.closed


def continuation_flood(path: str, timeout_s: float) -> bool:
    """Send headers that never end; True if they were refused in time."""
    burst = frame(CONTINUATION, 0, 1, header(b"x-junk", b"j" * 15_000)) * 16
    with Connection(path) as connection:
        connection.send(frame(HEADERS, 0, 1, execute_headers()))
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and connection.send(burst):
            connection.drain()
            if any(kind in (GOAWAY, RST_STREAM) for kind, *_ in connection.frames()):
                return True
        return connection.closed
