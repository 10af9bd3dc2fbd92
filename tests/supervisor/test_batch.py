"""The bytes of a batch, against protobuf's own reading of them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor import batch, faults
from sandboxd.v1 import sandbox_pb2


def _lookalike() -> Any:
    """ExecuteBatchRequest, but that its items are bytes: what a splitter has to see in it."""
    file = descriptor_pb2.FileDescriptorProto(name="lookalike.proto", syntax="proto3")
    fields = file.message_type.add(name="Lookalike").field
    kinds = descriptor_pb2.FieldDescriptorProto
    fields.add(name="requests", number=1, label=kinds.LABEL_REPEATED, type=kinds.TYPE_BYTES)
    fields.add(name="max_parallel", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_UINT32)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Lookalike"))


Lookalike = _lookalike()


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


items = st.lists(st.binary(max_size=300), min_size=1, max_size=8)
pieces = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"\x0a", b"\x10", b"\x0a\x00", b"\x10\x05", b"\x8a\x00", b"\x0b", b"\x0c"]),
    st.integers(0, 1 << 70).map(_varint),
    st.binary(max_size=200).map(lambda item: b"\x0a" + _varint(len(item)) + item),
)


def parts(found: batch.Batch) -> list[bytes]:
    return [found.raw[place] for place in found.items]


@given(items, st.integers(0, (1 << 32) - 1))
def test_what_protobuf_writes_is_split_into_what_was_written(
    written: list[bytes], max_parallel: int
) -> None:
    raw = Lookalike(requests=written, max_parallel=max_parallel).SerializeToString()
    found = batch.split(raw)
    assert parts(found) == written
    assert found.max_parallel == max_parallel


@given(st.lists(pieces, max_size=12).map(b"".join))
def test_whatever_is_accepted_protobuf_reads_likewise(raw: bytes) -> None:
    try:
        found = batch.split(raw)
    except (DecodeError, faults.InvalidRequest):
        return
    read = Lookalike.FromString(raw)
    assert parts(found) == list(read.requests)
    assert found.max_parallel == read.max_parallel


@given(items, st.data())
def test_a_message_that_is_cut_short_is_none_or_shorter(written: list[bytes], data: Any) -> None:
    raw = Lookalike(requests=written, max_parallel=7).SerializeToString()
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    try:
        found = batch.split(cut)
    except (DecodeError, faults.InvalidRequest):
        return
    assert parts(found) == written[: len(found.items)]


@given(items, st.data())
def test_a_changed_byte_never_raises_anything_else(written: list[bytes], data: Any) -> None:
    raw = bytearray(Lookalike(requests=written, max_parallel=300).SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = batch.split(bytes(raw))
    except (DecodeError, faults.InvalidRequest):
        return
    assert all(0 <= place.start <= place.stop <= len(raw) for place in found.items)


ITEM = b"\x0a\x01x"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a" + b"\xff" * 10 + b"\x01",
        ITEM + b"\x10",
        ITEM + b"\x10" + b"\xff" * 9 + b"\x7f",
        ITEM + b"\x10\x01\x10\x01",  # twice: it costs only time
        ITEM + b"\x12\x01\x01",  # max_parallel as bytes
        ITEM + b"\x08\x01",  # an item as a number
        ITEM + b"\x18\x01",  # no such field
        ITEM + b"\x0b\x0c",  # a group
        ITEM + b"\x00",
    ],
)
def test_what_is_no_batch_is_malformed(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        batch.split(raw)


@pytest.mark.parametrize("raw", [b"", b"\x10\x05"])
def test_a_batch_of_nothing_is_refused(raw: bytes) -> None:
    with pytest.raises(faults.InvalidRequest, match="at least one") as caught:
        batch.split(raw)
    assert caught.value.field == "requests"


def test_one_item_too_many_is_refused_before_what_follows_is_looked_at() -> None:
    assert len(batch.split(ITEM * batch.MAX_ITEMS).items) == batch.MAX_ITEMS
    with pytest.raises(faults.InvalidRequest, match="at most 10000") as caught:
        batch.split(ITEM * (batch.MAX_ITEMS + 1) + b"\xff" * 100)
    assert caught.value.field == "requests"


@given(st.lists(st.tuples(st.integers(0, 1 << 31), st.binary(max_size=300)), max_size=5))
def test_results_put_together_are_what_protobuf_reads(outputs: list[tuple[int, bytes]]) -> None:
    message = b""
    for index, output in outputs:
        response = sandbox_pb2.ExecuteResponse(stdout=output)
        status = status_pb2.Status(code=3, message=output.hex())
        message += batch.response_result(index, response.SerializeToString())
        message += batch.error_result(index, status.SerializeToString())
    read = sandbox_pb2.ExecuteBatchResponse.FromString(message)
    for (index, output), first, second in zip(
        outputs, read.results[::2], read.results[1::2], strict=True
    ):
        assert (first.index, second.index) == (index, index)
        assert first.response.stdout == output
        assert (second.error.code, second.error.message) == (3, output.hex())
