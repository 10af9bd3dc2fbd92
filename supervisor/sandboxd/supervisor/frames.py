"""Frames on a child's socket: a 4-byte little-endian length and that many bytes.

The child is hostile once it has loaded guest code, so `FrameReader` caps the length before it
buffers anything, never holds more than one frame and one read, and spends on what it reads no more
than honest frames cost: frames come whole or in large pieces, and few at a time.
"""

from __future__ import annotations

HEADER_BYTES = 4
# An honest child has at most two frames under way (bound and result).
MAX_FRAMES_PER_READ = 4
# An honest child writes a frame at once: it comes in a few pieces, each as large as what the socket
# has room for. A frame in crumbs would cost the supervisor a read for each.
FREE_PIECES = 16
MIN_PIECE_BYTES = 512


class FrameBreach(Exception):  # noqa: N818 - a verdict about the child
    """What a child sent is not how frames are sent; nothing more can be read from it."""


class FrameTooLong(FrameBreach):
    """A child announced a frame longer than its state allows.

    Attributes: length_bytes, limit_bytes.
    """

    def __init__(self, length_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"frame of {length_bytes} bytes; at most {limit_bytes} are allowed here")
        self.length_bytes = length_bytes
        self.limit_bytes = limit_bytes


class FrameFlood(FrameBreach):
    """A child sent more frames at once, or one frame in more pieces, than any honest one does."""


def encode(payload: bytes) -> bytes:
    """Return `payload` as one frame."""
    return header(len(payload)) + payload


def header(payload_bytes: int) -> bytes:
    """Return what a frame with a payload of this length begins with."""
    return payload_bytes.to_bytes(HEADER_BYTES, "little")


class FrameReader:
    """Cuts a byte stream into frames.

    `limit_bytes` is the longest payload accepted; the owner changes it with the child's state.
    """

    __slots__ = ("_buffer", "_pieces", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._pieces = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order. Raises `FrameBreach`.

        After that the reader is empty and must not be fed any more.
        """
        if not self._buffer and len(data) >= HEADER_BYTES:
            # The common case, without a copy into the buffer: exactly one whole frame.
            length = int.from_bytes(data[:HEADER_BYTES], "little")
            if length == len(data) - HEADER_BYTES and 0 < length <= self.limit_bytes:
                return [data[HEADER_BYTES:]]
        self._buffer += data
        try:
            return self._cut()
        except FrameBreach:
            self._buffer.clear()
            raise

    def _cut(self) -> list[bytes]:
        frames: list[bytes] = []
        while len(self._buffer) >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[:HEADER_BYTES], "little")
            self._check(length)
            end = HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            if len(frames) == MAX_FRAMES_PER_READ:
                raise FrameFlood(f"more than {MAX_FRAMES_PER_READ} frames at once")
            frames.append(bytes(self._buffer[HEADER_BYTES:end]))
            del self._buffer[:end]
            self._pieces = 0
        if self._buffer:
            self._pieces += 1
            if self._pieces > FREE_PIECES + len(self._buffer) // MIN_PIECE_BYTES:
                raise FrameFlood(f"{len(self._buffer)} bytes of a frame in {self._pieces} pieces")
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def _check(self, length: int) -> None:
        if length == 0:
            raise FrameFlood("an empty frame")
        if length > self.limit_bytes:
            raise FrameTooLong(length, self.limit_bytes)


def more_fields_than(payload: bytes, limit: int, levels: int) -> bool:
    """Return True if a protobuf message has more than `limit` fields, down to `levels` deep.

    To be asked before it is parsed: a repeated field costs two bytes an element on the wire and
    some hundred in memory. It is True for groups, too, which nobody sends and which could hide
    fields from this count. What is malformed is left to the parser.
    """
    try:
        return _count_fields(memoryview(payload), limit, levels) > limit
    except IndexError:
        return False


def _count_fields(data: memoryview, limit: int, levels: int) -> int:
    count = at = 0
    while at < len(data) and count <= limit:
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                if levels > 1:
                    count += _count_fields(data[at : at + size], limit - count, levels - 1)
                at += size
            case 5:
                at += 4
            case _:
                return limit + 1
        count += 1
    return count


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise IndexError
