"""Turns a gRPC error into a `Fault`.

The daemon packs a `google.rpc.Status` into trailing metadata; the transport's own errors carry
only a code and a text. Both ends degrade: details that do not parse are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sandboxd.client import errors
from sandboxd.client.errors import Fault, FieldViolation

_DETAILS = "grpc-status-details-bin"
_DOMAIN = "sandboxd"

_BY_REASON: dict[str, type[Fault]] = {
    "INVALID_REQUEST": errors.InvalidRequest,
    "MALFORMED_MESSAGE": errors.InvalidRequest,
    "INVALID_MODULE": errors.InvalidModule,
    "MODULE_TOO_COMPLEX": errors.ModuleTooComplex,
    "MODULE_TOO_LARGE": errors.ModuleTooLarge,
    "DIGEST_MISMATCH": errors.DigestMismatch,
    "EXPORT_NOT_FOUND": errors.ExportNotFound,
    "ARGUMENT_MISMATCH": errors.ArgumentMismatch,
    "LAYER_NOT_ACTIVE": errors.LayerNotActive,
    "MODULE_NOT_FOUND": errors.ModuleNotFound,
    "MODULE_DAMAGED": errors.ModuleDamaged,
    "QUEUE_FULL": errors.QueueFull,
    "STORE_FULL": errors.StoreFull,
    "RUNNER_LOST": errors.RunnerLost,
    "ZYGOTE_LOST": errors.ZygoteLost,
    "COMPILER_LOST": errors.CompilerLost,
    "SHUTTING_DOWN": errors.ShuttingDown,
    "CUT_OFF": errors.CutOff,
    "OVERLOADED": errors.Overloaded,
    "DEADLINE_EXCEEDED": errors.DeadlineFault,
}

# A status with a reason that this version does not know.
_BY_CODE: dict[str, type[Fault]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "UNAUTHENTICATED": errors.AccessDenied,
    "PERMISSION_DENIED": errors.AccessDenied,
    "UNAVAILABLE": errors.Unavailable,
    "DEADLINE_EXCEEDED": errors.DeadlineFault,
    "CANCELLED": errors.CallCancelled,
    "UNIMPLEMENTED": errors.Unsupported,
    "INTERNAL": errors.InternalFault,
    "UNKNOWN": errors.InternalFault,
}


class FailedCall(Protocol):
    """What sync and asyncio gRPC errors have in common."""

    def code(self) -> Any:
        """Return a grpc.StatusCode."""

    def details(self) -> str | None:
        """Return the status message."""

    def trailing_metadata(self) -> Any:
        """Return pairs of key and value, or None."""


def fault_of(call: FailedCall) -> Fault:
    """Build the `Fault` for a failed RPC."""
    code: str = call.code().name
    return _fault(code, call.details() or code, _status(call.trailing_metadata() or ()))


def fault_of_status(status: Status) -> Fault:
    """Build the `Fault` for a `google.rpc.Status` that came in a message."""
    # The numbers are gRPC's; one that is newer than this package is no better known there.
    numbers: Any = Code
    code = numbers.Name(status.code) if status.code in numbers.values() else "UNKNOWN"
    return _fault(code, status.message or code, status)


def _fault(code: str, text: str, status: Status) -> Fault:
    info, violations, retry_after = ErrorInfo(), BadRequest(), None
    for detail in status.details:
        if _unpack(detail, info) or _unpack(detail, violations):
            continue
        retry = RetryInfo()
        if _unpack(detail, retry):
            retry_after = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
    return _kind(code, text, info)(
        text,
        code=code,
        reason=info.reason or None,
        metadata=dict(info.metadata),
        field_violations=[
            FieldViolation(v.field, v.description) for v in violations.field_violations
        ],
        retry_after=retry_after,
    )


def _kind(code: str, text: str, info: ErrorInfo) -> type[Fault]:
    if info.domain == _DOMAIN and info.reason in _BY_REASON:
        return _BY_REASON[info.reason]
    if not info.reason:
        # The transport speaks: these texts are gRPC core's and grpc.aio's.
        if code == "UNAVAILABLE":
            return errors.DaemonUnreachable
        if code == "RESOURCE_EXHAUSTED":
            too_large = "message larger than max" in text
            return errors.MessageTooLarge if too_large else errors.Overloaded
    return _BY_CODE.get(code, Fault)


def _status(metadata: Iterable[tuple[str, str | bytes]]) -> Status:
    for key, packed in metadata:
        if key == _DETAILS and isinstance(packed, bytes):
            try:
                return Status.FromString(packed)
            except DecodeError:
                break
    return Status()


def _unpack(detail: Any, into: Message) -> bool:
    try:
        return bool(detail.Unpack(into))
    except DecodeError:
        return False
