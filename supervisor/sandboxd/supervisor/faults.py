"""Faults: what the request or the daemon did wrong, as gRPC statuses with google.rpc details.

Outcomes (what the guest did) are values in `ExecuteResponse` and never appear here. Every fault
has one stable reason, sent as `ErrorInfo.reason` in the domain "sandboxd"; docs/errors.md lists
them for users.

    Fault
    ├── InvalidRequest        INVALID_ARGUMENT   a field is missing or malformed
    ├── MalformedMessage      INVALID_ARGUMENT   not a protobuf message of the method's type
    ├── InvalidModule         INVALID_ARGUMENT   not valid WebAssembly, or not enabled
    ├── ModuleTooComplex      INVALID_ARGUMENT   a limit of the compiler was reached
    ├── ModuleTooLarge        INVALID_ARGUMENT   larger than the store accepts
    ├── DigestMismatch        INVALID_ARGUMENT   the bytes have another digest
    ├── ExportNotFound        INVALID_ARGUMENT   the module has no such function
    ├── ArgumentMismatch      INVALID_ARGUMENT   arguments do not fit the signature
    ├── ModuleNotFound        NOT_FOUND
    ├── ModuleDamaged         DATA_LOSS          the stored bytes are not those that were pushed
    ├── LayerNotActive        FAILED_PRECONDITION a required layer of isolation is not active
    ├── QueueFull             RESOURCE_EXHAUSTED retryable
    ├── Overloaded            RESOURCE_EXHAUSTED retryable
    ├── StoreFull             RESOURCE_EXHAUSTED the disk, or what a setting allows, is used up
    ├── RunnerLost            UNAVAILABLE        retryable: the process was killed from outside
    ├── ZygoteLost            UNAVAILABLE        retryable
    ├── CompilerLost          UNAVAILABLE        retryable
    ├── ShuttingDown          UNAVAILABLE        retryable, elsewhere or later: nothing ran
    ├── CutOff                UNAVAILABLE        the daemon stopped; the guest may have run
    └── DeadlineFault         DEADLINE_EXCEEDED  a push or a batch did not finish in its time
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "sandboxd"
DETAILS_KEY = "grpc-status-details-bin"
# Beyond 8 KiB of trailing metadata, gRPC's soft limit, a peer refuses answers; and everything in a
# fault may quote what a client or a module named. The message goes out three times, once
# percent-encoded (three bytes for one) and twice in base64 (four for three), the rest once.
MAX_MESSAGE_BYTES = 1024
MAX_FIELD_BYTES = 256
MAX_VALUES_BYTES = 768


class Fault(Exception):  # noqa: N818 - the field's word for this family
    """Base of all faults.

    Attributes: message (for people), metadata (`ErrorInfo.metadata`), field (path in the request,
    or empty), retry_after_s (seconds, or None if a retry cannot help).
    """

    status: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.message = _clip(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.field = _clip(field, MAX_FIELD_BYTES)
        self.retry_after_s = retry_after_s
        self.metadata = _clip_values(metadata or {})

    def details(self) -> bytes:
        """Return the serialized `google.rpc.Status` for the trailing metadata."""
        code: int = self.status.value[0]
        status = status_pb2.Status(code=code, message=self.message)
        _pack(
            status,
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata),
        )
        if self.status is grpc.StatusCode.INVALID_ARGUMENT:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            _pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(self.retry_after_s * 1000))
            _pack(status, retry)
        payload: bytes = status.SerializeToString()
        return payload


def _clip(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - 3].decode(errors="ignore") + "..."


def _clip_values(metadata: dict[str, str]) -> dict[str, str]:
    """Clip the values so that, together, they are not too long; their names are the daemon's."""
    room = MAX_VALUES_BYTES
    clipped = {}
    for name, value in metadata.items():
        clipped[name] = _clip(value, max(3, room))
        room -= len(clipped[name].encode())
    return clipped


def _pack(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


class InvalidRequest(Fault):
    """A field of the request is missing or malformed."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class MalformedMessage(Fault):
    """The bytes are not a protobuf message of the method's type."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MALFORMED_MESSAGE"


class InvalidModule(Fault):
    """The bytes are not a valid module, or need what is not enabled. Metadata: offset_bytes."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_MODULE"


class ModuleTooComplex(Fault):
    """The compiler reached one of its limits. Metadata: limit."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MODULE_TOO_COMPLEX"


class ModuleTooLarge(Fault):
    """The module has more bytes than the store accepts. Metadata: limit_bytes."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MODULE_TOO_LARGE"


class DigestMismatch(Fault):
    """The pushed bytes have another digest, or another length, than was claimed."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "DIGEST_MISMATCH"


class ExportNotFound(Fault):
    """The module exports no function of that name."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "EXPORT_NOT_FOUND"


class ArgumentMismatch(Fault):
    """The arguments do not fit the export's signature."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "ARGUMENT_MISMATCH"


class ModuleNotFound(Fault):
    """No module of that digest is stored."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "MODULE_NOT_FOUND"


class ModuleDamaged(Fault):
    """A module's bytes are not those of its digest; it is not served until it is pushed again.

    Metadata: digest.
    """

    status = grpc.StatusCode.DATA_LOSS
    reason = "MODULE_DAMAGED"


class LayerNotActive(Fault):
    """A layer of isolation that the request requires is not active. Metadata: layers."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "LAYER_NOT_ACTIVE"


class QueueFull(Fault):
    """Too many calls are waiting already."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class Overloaded(Fault):
    """The daemon is out of descriptors or memory, or too many streams are open."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class StoreFull(Fault):
    """There is no room for the module: on the disk, or within a setting.

    Metadata, if it is a setting: setting, maximum.
    """

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"


class RunnerLost(Fault):
    """The runner's process was killed from outside during the call."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "RUNNER_LOST"


class ZygoteLost(Fault):
    """The process that forks runners is gone; another one is being started."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "ZYGOTE_LOST"


class CompilerLost(Fault):
    """The compiler's process was killed from outside, or was not fit to be used."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "COMPILER_LOST"


class ShuttingDown(Fault):
    """The daemon is stopping and takes no new work."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class CutOff(Fault):
    """The daemon stopped and its drain was over: the guest may have run in part."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "CUT_OFF"


class DeadlineFault(Fault):
    """A push was not received in the daemon's time for it, or not stored in its gRPC deadline.

    Likewise a batch that did not end in its gRPC deadline, or whose client does not read.
    """

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
