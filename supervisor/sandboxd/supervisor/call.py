"""A call on its way: what was asked, what applies, and how long each stage took."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from sandboxd.supervisor import frames
from sandboxd.supervisor.embedding import field_tag, number_tag, varint
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.layers import NOTHING_HELD
from sandboxd.supervisor.limits import CallLimits
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.requests import Kind
from sandboxd.v1 import sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

_decode = sandbox_pb2.ExecuteRequest.FromString
_EXECUTE = field_tag(runner_pb2.RunnerCommand.EXECUTE_FIELD_NUMBER)
_REQUEST = field_tag(runner_pb2.Execute.REQUEST_FIELD_NUMBER)
_INBOX_BYTES = number_tag(runner_pb2.Execute.INBOX_BYTES_FIELD_NUMBER)
# Longer requests leave their input in the inbox: a socket takes about 200 KiB at once, and the
# runner copies what it reads from one several times.
MAX_INLINE_BYTES = 32 * 1024


Received = tuple[sandbox_pb2.ExecuteRequest, bytes]
"""A request of Execute, and the bytes that it was decoded from."""


# Fields of a request: 4,096 arguments and as many variables of two texts, and what is beside them.
MAX_FIELDS = 20_000
# Below this there are too few bytes to count fields in; above, what a field may take beside them.
_UNCOUNTED_BYTES = 4096
_FIELD_BYTES = 64


def decode(raw: bytes) -> Received:
    """Decode a request. Raises `DecodeError`, also for one with more fields than any needs.

    A field costs two bytes on the wire and dozens in memory, and a message keeps even those that
    a later one of the same `oneof` has replaced.
    """
    if len(raw) > _UNCOUNTED_BYTES and frames.more_fields_than(
        raw, MAX_FIELDS, sandbox_pb2.ExecuteRequest.DESCRIPTOR
    ):
        raise DecodeError("too many fields")
    return _decode(raw), raw


def held_memory(raw: bytes) -> int:
    """Return what a decoded request can take in memory, its own bytes included."""
    return 2 * len(raw) + _FIELD_BYTES * min(MAX_FIELDS, len(raw) // 2)


class Call:
    """One call. Times ending in `_at` are of the event loop's clock, in seconds.

    `grpc_deadline_at` is None if the client set no deadline. What follows is filled in on the way:
    `layers` are those that hold for its runner.
    """

    __slots__ = (
        "arrived_at",
        "bind_s",
        "compile_s",
        "cpu_time_ns",
        "deadline_at",
        "grpc_deadline_at",
        "key",
        "kind",
        "layers",
        "limits",
        "peak_memory_bytes",
        "queue_s",
        "received",
        "request",
        "run_s",
        "start_kind",
        "wall_time_ns",
    )

    def __init__(
        self,
        received: Received,
        kind: Kind,
        key: Key,
        limits: CallLimits,
        arrived_at: float,
        wall_s: float,
        grpc_deadline_at: float | None,
    ) -> None:
        self.received = received
        self.request = received[0]
        self.kind = kind
        self.key = key
        self.limits = limits
        self.arrived_at = arrived_at
        self.deadline_at = arrived_at + wall_s
        self.wall_time_ns = int(wall_s * 1e9)
        self.grpc_deadline_at = grpc_deadline_at
        self.queue_s = self.compile_s = self.bind_s = self.run_s = 0.0
        self.cpu_time_ns = self.peak_memory_bytes = 0
        self.layers = NOTHING_HELD
        self.start_kind = sandbox_pb2.START_KIND_UNSPECIFIED


def job_frame(call: Call, outbox: Outbox) -> bytes:
    """Return the frame that hands a call to a runner: a RunnerCommand with `execute` set.

    The client's bytes go on as they came. Only a module that came with them is left out, and a long
    input, which goes through the inbox.
    """
    request, raw = call.received
    inbox = b""
    if len(raw) > MAX_INLINE_BYTES or request.HasField("wasm"):
        raw, inbox_bytes = _shortened(call, outbox)
        inbox = _INBOX_BYTES + varint(inbox_bytes)
    fields_and_tag = call.limits.job_fields + inbox + _REQUEST + varint(len(raw))
    length = len(fields_and_tag) + len(raw)
    execute = _EXECUTE + varint(length)
    return b"".join((frames.header(len(execute) + length), execute, fields_and_tag, raw))


def _shortened(call: Call, outbox: Outbox) -> tuple[bytes, int]:
    """Put a long input into the inbox; return what is left of the request, and how long it was."""
    short = sandbox_pb2.ExecuteRequest()
    request = call.request
    data = b""
    if call.kind == "bytes":
        data = request.bytes.input
        short.bytes.export = request.bytes.export
        short.bytes.result_convention = request.bytes.result_convention
        short.bytes.result_length_bytes = request.bytes.result_length_bytes
    elif call.kind == "wasi":
        data = request.wasi.stdin
        short.wasi.args.extend(request.wasi.args)
        short.wasi.env.extend(request.wasi.env)
    else:
        short.typed.CopyFrom(request.typed)
    if MAX_INLINE_BYTES < len(data) <= outbox.inbox_bytes:
        outbox.put(data)
        return short.SerializeToString(), len(data)
    if call.kind == "bytes":
        short.bytes.input = data
    elif call.kind == "wasi":
        short.wasi.stdin = data
    return short.SerializeToString(), 0
