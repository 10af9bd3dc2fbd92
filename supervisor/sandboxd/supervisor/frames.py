"""Frames on a child's socket: a 4-byte little-endian length and that many bytes.

The child is hostile once it has loaded guest code, so `FrameReader` caps the length before it
buffers anything, never holds more than one frame and one read, and spends on what it reads no more
than honest frames cost: frames come whole or in large pieces, and few at a time.
"""

from __future__ import annotations

import functools

from google.protobuf.descriptor import Descriptor, FieldDescriptor

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


def more_fields_than(payload: bytes, limit: int, kind: Descriptor) -> bool:
    """Return True if a message of this kind has more than `limit` fields, or is none of the kind.

    To be asked before it is parsed: a repeated field costs two bytes an element on the wire and
    some hundred in memory. What is inside a field counts if the kind says that it is a message that
    repeats something itself. True, too, is a field that the kind does not have, a group, and
    anything malformed: the parser may well accept what this count cannot follow.
    """
    try:
        return _count_fields(memoryview(payload), limit, _fields_of(kind)) > limit
    except IndexError:
        return True


# What may follow a key (a field's number and wire type), and what to count inside; None: nothing.
_Fields = dict[int, "_Fields | None"]

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES = {
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64), _FIXED64),
    FieldDescriptor.TYPE_SFIXED64: _FIXED64,
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32), _FIXED32),
    FieldDescriptor.TYPE_SFIXED32: _FIXED32,
    **dict.fromkeys((FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES), _DELIMITED),
    FieldDescriptor.TYPE_MESSAGE: _DELIMITED,
}


@functools.cache
def _fields_of(kind: Descriptor) -> _Fields:
    fields: _Fields = {}
    for field in kind.fields:
        wire_type = _WIRE_TYPES.get(field.type, _VARINT)
        holds_many = field.message_type is not None and _holds_many(field.message_type)
        inside = _fields_of(field.message_type) if holds_many else None
        fields[field.number << 3 | wire_type] = inside
        if field.is_repeated and wire_type != _DELIMITED:
            fields[field.number << 3 | _DELIMITED] = None  # packed
    return fields


def _holds_many(kind: Descriptor) -> bool:
    """Return False for a message of numbers and single texts: on the wire it costs no less."""
    return any(
        (field.is_repeated and _WIRE_TYPES.get(field.type) == _DELIMITED)
        or (field.message_type is not None and _holds_many(field.message_type))
        for field in kind.fields
    )


def _count_fields(data: memoryview, limit: int, fields: _Fields) -> int:
    """Count, but not far beyond `limit`. Raises IndexError for what is not such a message."""
    count = at = 0
    while at < len(data) and count <= limit:
        key, at = read_varint(data, at)
        if key not in fields:
            raise IndexError
        match key & 7:
            case 0:
                _, at = read_varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = read_varint(data, at)
                inside = fields[key]
                if inside is not None:
                    count += _count_fields(data[at : at + size], limit - count, inside)
                at += size
            case _:
                at += 4
        count += 1
    if at > len(data):
        raise IndexError
    return count


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends.

    Raises IndexError if it does not end, or is longer than the longest (10 bytes).
    """
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
