"""A batch on the wire: items are cut out of it and results put together, and neither is parsed.

An item's bytes go where those of an Execute go, and a result is the bytes that Execute would have
answered with, so what is left of a batch are tags and lengths: read and written here, by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults
from sandboxd.supervisor.embedding import field_tag, number_tag, varint
from sandboxd.supervisor.frames import read_varint
from sandboxd.v1 import sandbox_pb2

MAX_ITEMS = 10_000
# What an item takes beside its bytes: where it begins and ends.
_ITEM_BYTES = 128

# Each of these is one byte: fields below 16.
(_REQUEST,) = field_tag(sandbox_pb2.ExecuteBatchRequest.REQUESTS_FIELD_NUMBER)
(_MAX_PARALLEL,) = number_tag(sandbox_pb2.ExecuteBatchRequest.MAX_PARALLEL_FIELD_NUMBER)
_RESULT = field_tag(sandbox_pb2.ExecuteBatchResponse.RESULTS_FIELD_NUMBER)
_INDEX = number_tag(sandbox_pb2.BatchResult.INDEX_FIELD_NUMBER)
_RESPONSE = field_tag(sandbox_pb2.BatchResult.RESPONSE_FIELD_NUMBER)
_ERROR = field_tag(sandbox_pb2.BatchResult.ERROR_FIELD_NUMBER)


@dataclass(frozen=True, slots=True)
class Batch:
    """The bytes of a batch, where in them its items are, and how many may be under way at once.

    `max_parallel` is what the client asked for, 0 if nothing.
    """

    raw: bytes
    items: list[slice]
    max_parallel: int

    @property
    def held_bytes(self) -> int:
        """Memory that it takes as long as it lives."""
        return len(self.raw) + _ITEM_BYTES * len(self.items)


def split(raw: bytes) -> Batch:
    """Find the items in an ExecuteBatchRequest. None of them is looked into.

    Raises `DecodeError` for anything that is not one, or that has a field it does not need, and
    `faults.InvalidRequest` for none or too many items: as soon as there is one too many.
    """
    items: list[slice] = []
    max_parallel: int | None = None
    at, size = 0, len(raw)
    try:
        while at < size:
            key = raw[at]
            number, at = read_varint(raw, at + 1)
            if key == _REQUEST:
                if number > size - at:
                    raise DecodeError("an item ends behind the message")
                if len(items) == MAX_ITEMS:
                    raise faults.InvalidRequest(
                        f"a batch has at most {MAX_ITEMS} requests", field="requests"
                    )
                items.append(slice(at, at + number))
                at += number
            elif key == _MAX_PARALLEL and max_parallel is None and number < 1 << 64:
                # As protobuf reads a number of 32 bits. Twice is a message that costs time only.
                max_parallel = number & 0xFFFFFFFF
            else:
                raise DecodeError("no field of a batch")
    except IndexError:
        raise DecodeError("the message ends in the middle") from None
    if not items:
        raise faults.InvalidRequest("a batch has at least one request", field="requests")
    return Batch(raw, items, max_parallel or 0)


def response_result(index: int, response: bytes) -> bytes:
    """Return a field of an ExecuteBatchResponse: what item `index` did, an ExecuteResponse."""
    return _result(index, _RESPONSE, response)


def error_result(index: int, status: bytes) -> bytes:
    """Return a field of an ExecuteBatchResponse: why item `index` has none, a google.rpc.Status."""
    return _result(index, _ERROR, status)


def _result(index: int, tag: bytes, body: bytes) -> bytes:
    head = _INDEX + varint(index) + tag + varint(len(body))
    return b"".join((_RESULT, varint(len(head) + len(body)), head, body))
