"""Frames on a child's socket: a 4-byte little-endian length and that many bytes.

The child is hostile once it has loaded guest code, so `FrameReader` caps the length before it
buffers anything, and never holds more than one frame and one read.
"""

from __future__ import annotations

HEADER_BYTES = 4
# Nobody has more than this to say at once: a runner that is bound and answers in one go says two
# things.
MAX_FRAMES_AT_ONCE = 4


class FrameTooLong(Exception):  # noqa: N818 - a verdict about the child
    """A child announced a frame longer than its state allows.

    Attributes: length_bytes, limit_bytes.
    """

    def __init__(self, length_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"frame of {length_bytes} bytes; at most {limit_bytes} are allowed here")
        self.length_bytes = length_bytes
        self.limit_bytes = limit_bytes


class FrameFlood(Exception):  # noqa: N818 - a verdict about the child
    """A child sent empty frames, or more frames at once than any state has use for."""


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
        """Return the payloads that `data` completes, in order.

        Raises `FrameTooLong` or `FrameFlood`; the reader is of no use afterwards.
        """
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
            if len(frames) > MAX_FRAMES_AT_ONCE:
                raise FrameFlood("too many frames at once")
            del self._buffer[:end]
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


def has_few_fields(message: bytes, maximum: int) -> bool:
    """Return whether a serialized message has at most `maximum` fields at its top level.

    Parsing allocates for every field, however small; this looks at no more than `maximum` of them.
    Numbers of fixed width are not used by our messages and count as too many, as does garbage.
    """
    at = 0
    for _ in range(maximum):
        if at >= len(message):
            return True
        tag, at = _varint(message, at)
        number, at = _varint(message, at)
        if tag < 0 or number < 0:
            return False
        match tag & 0x07:
            case 0:
                pass
            case 2:
                at += number
            case _:
                return False
    return at >= len(message)


def only_field(message: bytes) -> bytes | None:
    """Return the content of the length-delimited field that is all of a message, or None."""
    tag, at = _varint(message, 0)
    length, at = _varint(message, at)
    if tag & 0x07 != 2 or length < 0 or at + length != len(message):
        return None
    return message[at:]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a varint and the offset after it; -1 if it is cut short or too long."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            return -1, at
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, at
