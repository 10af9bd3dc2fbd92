"""Frames on a child's socket: a 4-byte little-endian length and that many bytes.

The child is hostile once it has loaded guest code, so `FrameReader` caps the length before it
buffers anything, and never holds more than one frame and one read.
"""

from __future__ import annotations

HEADER_BYTES = 4


class FrameTooLong(Exception):  # noqa: N818 - a verdict about the child
    """A child announced a frame longer than its state allows.

    Attributes: length_bytes, limit_bytes.
    """

    def __init__(self, length_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"frame of {length_bytes} bytes; at most {limit_bytes} are allowed here")
        self.length_bytes = length_bytes
        self.limit_bytes = limit_bytes


def encode(payload: bytes) -> bytes:
    """Return `payload` as one frame."""
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


class FrameReader:
    """Cuts a byte stream into frames.

    `limit_bytes` is the longest payload accepted; the owner changes it with the child's state.
    """

    __slots__ = ("_buffer", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order. Raises `FrameTooLong`."""
        if not self._buffer and len(data) >= HEADER_BYTES:
            # The common case, without a copy into the buffer: exactly one whole frame.
            length = int.from_bytes(data[:HEADER_BYTES], "little")
            if length == len(data) - HEADER_BYTES:
                self._check(length)
                return [data[HEADER_BYTES:]]
        self._buffer += data
        frames: list[bytes] = []
        while len(self._buffer) >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[:HEADER_BYTES], "little")
            self._check(length)
            end = HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[HEADER_BYTES:end]))
            del self._buffer[:end]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def _check(self, length: int) -> None:
        if length > self.limit_bytes:
            raise FrameTooLong(length, self.limit_bytes)
