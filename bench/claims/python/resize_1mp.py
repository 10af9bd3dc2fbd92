"""Bilinear resize of an RGBA image in plain Python: the integers of examples/guests/c/resize.c.

The standard library has nothing that resizes, so there is no `builtin`.
"""

from __future__ import annotations

import struct

_HEADER_BYTES = 16
_ONE = 1 << 16


def _taps(target_side: int, source_side: int, step: int) -> list[tuple[int, int, int]]:
    """For each target coordinate: offsets of the two source coordinates, weight of the second."""
    taps = []
    for target in range(target_side):
        at = (2 * target + 1) * source_side * _ONE // (2 * target_side) - _ONE // 2
        at = min(max(at, 0), (source_side - 1) * _ONE)
        low = at // _ONE
        taps.append((low * step, min(low + 1, source_side - 1) * step, at % _ONE))
    return taps


def plain(request: bytes) -> bytes:
    """Return the target's pixels."""
    source_width, source_height, width, height = struct.unpack_from("<4I", request)
    pixels = memoryview(request)[_HEADER_BYTES:]
    columns = _taps(width, source_width, 4)
    output = bytearray()
    for upper_at, lower_at, v in _taps(height, source_height, 4 * source_width):
        upper = pixels[upper_at : upper_at + 4 * source_width]
        lower = pixels[lower_at : lower_at + 4 * source_width]
        w = _ONE - v
        for left, right, u in columns:
            t = _ONE - u
            for c in range(4):
                top = upper[left + c] * t + upper[right + c] * u
                bottom = lower[left + c] * t + lower[right + c] * u
                output.append(top * w + bottom * v + (1 << 31) >> 32)
    return bytes(output)
