"""Frames: however the bytes arrive, the same frames come out, and never too much is held."""

from __future__ import annotations

import itertools

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor.frames import (
    HEADER_BYTES,
    MAX_FRAMES_PER_READ,
    FrameFlood,
    FrameReader,
    FrameTooLong,
    encode,
    more_fields_than,
)
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

LIMIT = 64
REPLY = runner_pb2.CompilerReply.DESCRIPTOR
LOGS = call_pb2.Logs.DESCRIPTOR
payloads = st.lists(st.binary(min_size=1, max_size=LIMIT), max_size=MAX_FRAMES_PER_READ)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@given(payloads, st.lists(st.integers(0, 10_000), max_size=10))
def test_any_chunking_of_any_frames_yields_the_same_frames(
    sent: list[bytes], cuts: list[int]
) -> None:
    reader = FrameReader(LIMIT)
    got: list[bytes] = []
    for chunk in chunks(b"".join(map(encode, sent)), cuts):
        got += reader.feed(chunk)
        assert reader.pending_bytes < HEADER_BYTES + LIMIT
    assert got == sent
    assert reader.pending_bytes == 0


@given(payloads, st.binary(min_size=1, max_size=LIMIT), st.data())
def test_an_unfinished_frame_is_pending_and_not_delivered(
    sent: list[bytes], last: bytes, data: st.DataObject
) -> None:
    frame = encode(last)
    kept = data.draw(st.integers(0, len(frame) - 1))
    reader = FrameReader(LIMIT)
    assert reader.feed(b"".join(map(encode, sent)) + frame[:kept]) == sent
    assert reader.pending_bytes == kept
    assert reader.feed(frame[kept:]) == [last]


@given(st.integers(LIMIT + 1, 2**32 - 1), st.integers(0, HEADER_BYTES - 1), st.binary(max_size=8))
def test_a_frame_that_is_too_long_is_refused_by_its_header_alone(
    length: int, cut: int, rest: bytes
) -> None:
    header = length.to_bytes(HEADER_BYTES, "little")
    reader = FrameReader(LIMIT)
    assert reader.feed(header[:cut]) == []
    with pytest.raises(FrameTooLong) as caught:
        reader.feed(header[cut:] + rest)
    assert (caught.value.length_bytes, caught.value.limit_bytes) == (length, LIMIT)


def test_a_whole_frame_in_one_read_is_held_to_the_limit_too() -> None:
    reader = FrameReader(LIMIT)
    assert reader.feed(encode(bytes(LIMIT))) == [bytes(LIMIT)]
    with pytest.raises(FrameTooLong):
        reader.feed(encode(bytes(LIMIT + 1)))


def test_the_limit_can_be_changed_between_frames() -> None:
    reader = FrameReader(1)
    reader.feed(encode(b"a"))
    reader.limit_bytes = 2
    assert reader.feed(encode(b"ab")) == [b"ab"]


@pytest.mark.parametrize("flood", [encode(b""), encode(b"x") * (MAX_FRAMES_PER_READ + 1)])
def test_empty_frames_and_too_many_at_once_are_refused(flood: bytes) -> None:
    with pytest.raises(FrameFlood):
        FrameReader(LIMIT).feed(flood)


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(1, 25))
def test_fields_are_counted_without_parsing(messages: list[bytes], maximum: int) -> None:
    logs = call_pb2.Logs(entries=[call_pb2.LogEntry(message=message) for message in messages])
    counted = more_fields_than(logs.SerializeToString(), maximum, LOGS)
    assert counted == (len(messages) > maximum)


def test_fields_are_counted_as_deep_as_they_multiply() -> None:
    compiled = runner_pb2.Compiled(
        exports=[call_pb2.Extern(name="f", params=[call_pb2.VALUE_TYPE_I32] * 99)] * 10
    )
    payload = runner_pb2.CompilerReply(compiled=compiled).SerializeToString()
    # The reply's one field, and ten exports; what an export holds costs no more than it is long.
    assert not more_fields_than(payload, 11, REPLY)
    assert more_fields_than(payload, 10, REPLY)


@pytest.mark.parametrize(
    "alien",
    [
        b"\xfa\x01\x01\x80",  # an unknown field whose content is no message
        b"\xf8\x01\x00",  # an unknown number
        b"\x1b\x1c",  # a group
        b"\x18\x00",  # a known field of another wire type
        b"\x1a\x7f",  # longer than what is there
        b"\x1a",  # no length
        b"\xff" * 11,  # a number without end
        b"\x00\x00",
    ],
)
def test_what_the_count_cannot_follow_is_refused_before_it_is_parsed(alien: bytes) -> None:
    compiled = runner_pb2.Compiled(exports=[call_pb2.Extern(name="f")]).SerializeToString()
    for payload in (
        runner_pb2.CompilerReply(compiled=runner_pb2.Compiled()).SerializeToString() + alien,
        b"\x1a" + bytes([len(compiled) + len(alien)]) + compiled + alien,
    ):
        assert more_fields_than(payload, 100, REPLY)


@pytest.mark.parametrize("kind", [runner_pb2.RunnerReply.DESCRIPTOR, REPLY, LOGS])
@given(garbage=st.binary(max_size=60))
def test_counting_fields_of_garbage_never_fails(kind: Descriptor, garbage: bytes) -> None:
    more_fields_than(garbage, 3, kind)
