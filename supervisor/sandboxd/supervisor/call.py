"""A call on its way: what was asked, what applies, and how long each stage took."""

from __future__ import annotations

from typing import NamedTuple

from sandboxd.supervisor import frames
from sandboxd.supervisor.embedding import field_tag, varint
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.limits import CallLimits
from sandboxd.v1 import sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

_EXECUTE = field_tag(runner_pb2.RunnerCommand.EXECUTE_FIELD_NUMBER)
_REQUEST = field_tag(runner_pb2.Execute.REQUEST_FIELD_NUMBER)


class Received(NamedTuple):
    """A request of Execute, and the bytes that it was decoded from."""

    message: sandbox_pb2.ExecuteRequest
    raw: bytes

    @classmethod
    def decode(cls, raw: bytes) -> Received:
        """Decode a request. Raises `DecodeError`."""
        return cls(sandbox_pb2.ExecuteRequest.FromString(raw), raw)


class Call:
    """One call. Times ending in `_at` are of the event loop's clock, in seconds.

    `grpc_deadline_at` is None if the client set no deadline. The last six are filled in on the way.
    """

    __slots__ = (
        "arrived_at",
        "bind_s",
        "compile_s",
        "cpu_time_ns",
        "deadline_at",
        "grpc_deadline_at",
        "key",
        "limits",
        "peak_memory_bytes",
        "queue_s",
        "request",
        "run_s",
        "start_kind",
        "wall_time_ns",
    )

    def __init__(
        self,
        request: sandbox_pb2.ExecuteRequest,
        key: Key,
        limits: CallLimits,
        arrived_at: float,
        wall_s: float,
        grpc_deadline_at: float | None,
    ) -> None:
        self.request = request
        self.key = key
        self.limits = limits
        self.arrived_at = arrived_at
        self.deadline_at = arrived_at + wall_s
        self.wall_time_ns = int(wall_s * 1e9)
        self.grpc_deadline_at = grpc_deadline_at
        self.queue_s = self.compile_s = self.bind_s = self.run_s = 0.0
        self.cpu_time_ns = self.peak_memory_bytes = 0
        self.start_kind = sandbox_pb2.START_KIND_UNSPECIFIED


def job_frame(received: Received, limits: CallLimits) -> bytes:
    """Return the frame that hands a call to a runner: a RunnerCommand with `execute` set.

    The client's bytes go on as they came, so that a large input is copied once and never encoded
    again. Only a module that came with them is left out.
    """
    raw = received.raw
    if received.message.HasField("wasm"):
        without = sandbox_pb2.ExecuteRequest()
        without.CopyFrom(received.message)
        without.ClearField("wasm")
        raw = without.SerializeToString()
    request = _REQUEST + varint(len(raw))
    execute = _EXECUTE + varint(len(limits.job_fields) + len(request) + len(raw))
    length = len(execute) + len(limits.job_fields) + len(request) + len(raw)
    return b"".join((frames.header(length), execute, limits.job_fields, request, raw))
