"""From an exception to what a client is told instead of an answer."""

from __future__ import annotations

import errno
import logging

import grpc
from google.rpc import status_pb2

from sandboxd.supervisor import faults
from sandboxd.supervisor.stats import Stats

log = logging.getLogger(__name__)

# What an OSError says when the daemon, not the request, is at its limits.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_BAD_BYTES = (
    "the bytes are not a protobuf message of this method's request type, or have more or other "
    "fields than it needs"
)
INTERNAL_MESSAGE = "internal error; see the daemon's log"
_INTERNAL: bytes = status_pb2.Status(
    code=grpc.StatusCode.INTERNAL.value[0], message=INTERNAL_MESSAGE
).SerializeToString()


def malformed() -> faults.MalformedMessage:
    """The refusal of bytes that are no message of the method's type."""
    return faults.MalformedMessage(_BAD_BYTES)


def fault_of(error: Exception, stats: Stats) -> faults.Fault | None:
    """Count an error, and return the fault that it is; None for a bug, which is logged here."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        log.error("out of resources: %s", error.strerror)
        error = faults.Overloaded("the daemon is out of resources; retry", retry_after_s=1.0)
    if isinstance(error, faults.Fault):
        stats.fault(error.reason)
        return error
    log.error("a bug, answered with INTERNAL", exc_info=error)
    stats.fault("INTERNAL")
    return None


def status_of(error: Exception, stats: Stats) -> bytes:
    """Count an error, and return the serialized `google.rpc.Status` that tells of it."""
    fault = fault_of(error, stats)
    return _INTERNAL if fault is None else fault.details()
