"""Image resize against a bilinear reference in floating point, and refusals."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.guests.conftest import Guest, Reply

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
sides = st.integers(1, 9)


def request(width: int, height: int, to_width: int, to_height: int, pixels: bytes) -> bytes:
    return struct.pack("<4I", width, height, to_width, to_height) + pixels


def tap(target: int, target_side: int, source_side: int) -> tuple[int, int, float]:
    """The two source coordinates around a target's centre, and the weight of the second."""
    at = (target + 0.5) * source_side / target_side - 0.5
    at = min(max(at, 0.0), source_side - 1.0)
    low = math.floor(at)
    return low, min(low + 1, source_side - 1), at - low


def bilinear(width: int, height: int, to_width: int, to_height: int, px: bytes) -> list[float]:
    result = []
    for y in range(to_height):
        y0, y1, v = tap(y, to_height, height)
        for x in range(to_width):
            x0, x1, u = tap(x, to_width, width)
            for c in range(4):
                a, b = px[4 * (y0 * width + x0) + c], px[4 * (y0 * width + x1) + c]
                d, e = px[4 * (y1 * width + x0) + c], px[4 * (y1 * width + x1) + c]
                result.append((a * (1 - u) + b * u) * (1 - v) + (d * (1 - u) + e * u) * v)
    return result


@pytest.fixture
def resize(load: Callable[[str], Guest]) -> Callable[[bytes], Reply]:
    guest = load("resize")
    return lambda data: guest.call("resize", data, "packed")


@RELAXED
@given(sizes=st.tuples(sides, sides, sides, sides), data=st.data())
def test_every_channel_is_the_bilinear_mix_of_its_neighbours(
    resize: Callable[[bytes], Reply], sizes: tuple[int, int, int, int], data: st.DataObject
) -> None:
    width, height, to_width, to_height = sizes
    size = 4 * width * height
    pixels = data.draw(st.binary(min_size=size, max_size=size))
    output = resize(request(*sizes, pixels)).output
    expected = bilinear(*sizes, pixels)
    assert len(output) == len(expected) == 4 * to_width * to_height
    # Half a step of rounding, and positions that are cut to 16 bits on both axes.
    assert all(abs(a - b) <= 0.51 for a, b in zip(output, expected, strict=True))
    if (width, height) == (to_width, to_height):
        assert output == pixels


def test_the_classic_case_of_two_pixels_to_four(resize: Callable[[bytes], Reply]) -> None:
    pixels = bytes([0, 0, 0, 255, 200, 100, 40, 255])
    output = resize(request(2, 1, 4, 1, pixels)).output
    assert [tuple(output[i : i + 4]) for i in range(0, 16, 4)] == [
        (0, 0, 0, 255),
        (50, 25, 10, 255),
        (150, 75, 30, 255),
        (200, 100, 40, 255),
    ]


def test_the_longest_sides_are_accepted(resize: Callable[[bytes], Reply]) -> None:
    line = bytes(range(256)) * 256
    for data in (request(16384, 1, 1, 16384, line), request(1, 16384, 16384, 1, line)):
        reply = resize(data)
        assert len(reply.output) == len(line)
        assert reply.log == []


HUGE = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header is shorter than 16 bytes"),
        (request(1, 1, 1, 1, b"")[:15], "header is shorter than 16 bytes"),
        (request(0, 1, 1, 1, b""), "source size is out of range"),
        (request(1, 0, 1, 1, b""), "source size is out of range"),
        (request(HUGE, HUGE, 1, 1, b"1234"), "source size is out of range"),
        (request(0x10000, 0x10000, 1, 1, b""), "source size is out of range"),
        (request(0x8000, 0x8000, 1, 1, b""), "source size is out of range"),
        (request(16385, 1, 1, 1, b""), "source size is out of range"),
        (request(16384, 1025, 1, 1, b""), "source size is out of range"),
        (request(1, 1, 0, 1, b"1234"), "target size is out of range"),
        (request(1, 1, 1, 0, b"1234"), "target size is out of range"),
        (request(1, 1, HUGE, 2, b"1234"), "target size is out of range"),
        (request(1, 1, 0x10000, 0x10000, b"1234"), "target size is out of range"),
        (request(1, 1, 4097, 4096, b"1234"), "target size is out of range"),
        (request(1, 1, 1, 1, b""), "pixels do not match the source size"),
        (request(1, 1, 1, 1, b"123"), "pixels do not match the source size"),
        (request(1, 1, 1, 1, b"12345"), "pixels do not match the source size"),
        (request(4096, 4096, 1, 1, b"1234"), "pixels do not match the source size"),
    ],
)
def test_a_malformed_request_is_refused_with_an_empty_result_and_a_log(
    resize: Callable[[bytes], Reply], data: bytes, reason: str
) -> None:
    reply = resize(data)
    assert (reply.output, reply.log) == (b"", [reason.encode()])


def test_a_target_that_does_not_fit_into_memory_is_refused(load: Callable[[str], Guest]) -> None:
    data = request(1, 1, 4096, 4096, b"1234")
    reply = load("resize").call("resize", data, "packed", memory_bytes=1 << 20)
    assert (reply.output, reply.log) == (b"", [b"out of memory"])


numbers = st.integers(0, 4) | st.integers(0, HUGE)


@RELAXED
@given(header=st.tuples(numbers, numbers), to=st.tuples(sides, sides), pixels=st.binary())
def test_any_header_is_answered(
    resize: Callable[[bytes], Reply],
    header: tuple[int, int],
    to: tuple[int, int],
    pixels: bytes,
) -> None:
    reply = resize(request(*header, *to, pixels))
    fits = len(pixels) > 0 and header[0] * header[1] * 4 == len(pixels)
    assert len(reply.output) == (to[0] * to[1] * 4 if fits else 0)
    assert len(reply.log) == (0 if fits else 1)
