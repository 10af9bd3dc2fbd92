"""Messages put together from parts that are serialized already.

A field of a message type is a tag, a length and that many bytes, and a message is its fields in any
order: what does not change from call to call need not be serialized for each. No field is written
twice: decoders differ in whether they merge such a field's parts or take the last.
"""

from __future__ import annotations

_LENGTH_DELIMITED = 2


def field_tag(number: int) -> bytes:
    """Return what a field of this number and of a message type begins with."""
    return varint(number << 3 | _LENGTH_DELIMITED)


def varint(number: int) -> bytes:
    """Return a number of 0 or more as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return _ONE_BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_ONE_BYTE = tuple(bytes((number,)) for number in range(0x80))
