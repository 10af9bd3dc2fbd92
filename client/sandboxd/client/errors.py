"""Everything that this package raises.

Two families that never mix (docs/errors.md)::

    SandboxdError
    ├── Fault                        the request or the daemon did this: a gRPC status
    │   ├── InvalidRequest           INVALID_REQUEST, MALFORMED_MESSAGE
    │   │   ├── InvalidModule        INVALID_MODULE
    │   │   │   ├── ModuleTooComplex MODULE_TOO_COMPLEX
    │   │   │   └── ModuleTooLarge   MODULE_TOO_LARGE
    │   │   ├── DigestMismatch       DIGEST_MISMATCH
    │   │   ├── ExportNotFound       EXPORT_NOT_FOUND
    │   │   ├── ArgumentMismatch     ARGUMENT_MISMATCH
    │   │   └── MessageTooLarge      the transport's own limit on one message
    │   ├── ModuleNotFound           MODULE_NOT_FOUND
    │   ├── ModuleDamaged            MODULE_DAMAGED
    │   ├── LayerNotActive           LAYER_NOT_ACTIVE
    │   ├── StoreFull                STORE_FULL
    │   ├── AccessDenied             UNAUTHENTICATED, PERMISSION_DENIED
    │   ├── Unavailable              the daemon cannot answer now; a repeat may succeed
    │   │   ├── Overloaded           OVERLOADED; refused before anything ran
    │   │   │   └── QueueFull        QUEUE_FULL
    │   │   ├── ShuttingDown         SHUTTING_DOWN; refused before anything ran
    │   │   ├── CutOff               CUT_OFF: the daemon stopped; the guest may have run
    │   │   ├── RunnerLost           RUNNER_LOST
    │   │   ├── ZygoteLost           ZYGOTE_LOST
    │   │   ├── CompilerLost         COMPILER_LOST
    │   │   └── DaemonUnreachable    nobody answers at the address, or the connection broke
    │   ├── DeadlineFault            no answer in time, not even a deadline outcome
    │   ├── CallCancelled            the transport reports the call as cancelled
    │   ├── Unsupported              this daemon does not know the method
    │   └── InternalFault            the daemon broke its promise; report it
    └── GuestError                   the guest did this: raised only by Execution.check()
        ├── GuestExited              with a code other than 0
        ├── GuestTrapped, GuestDeadlineExceeded, GuestCancelled, GuestCpuTimeExceeded,
        └── GuestLimitExceeded, GuestHostError, GuestLinkError, GuestCrashed,
            GuestSandboxViolation, GuestProtocolViolation

A reason that this version does not know becomes the class of its gRPC status, a
status that it does not know a plain `Fault`; `reason`, `code` and `metadata` always
carry what the daemon sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from sandboxd.client.text import printable

if TYPE_CHECKING:
    from sandboxd.client import outcomes
    from sandboxd.client.execution import Execution


class SandboxdError(Exception):
    """Base of everything that this package raises on its own account."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the daemon did not accept."""

    field: str
    """Path of the field, for example `limits.wall_time_ms`."""
    description: str
    """What is wrong with it, for people."""


class Fault(SandboxdError):  # noqa: N818 - the family's name in the design
    """The request or the daemon is at fault; the guest is not.

    `str(fault)` is safe to print. `message` is as the daemon sent it, and may quote names that
    a guest chose.
    """

    retryable: ClassVar[bool] = False
    """Whether the same request can succeed later without a change."""
    refused: ClassVar[bool] = False
    """Whether it is certain that no guest ran, so that a repeat runs it at most once."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(printable(message))
        self.message = message
        self.code = code
        """Name of the gRPC status, for example `NOT_FOUND`."""
        self.reason = reason
        """`ErrorInfo.reason`, for example `MODULE_NOT_FOUND`; None from the transport itself."""
        self.metadata = MappingProxyType(dict(metadata or {}))
        """`ErrorInfo.metadata`."""
        self.field_violations = tuple(field_violations)
        """Fields that were not accepted; may be empty."""
        self.retry_after = retry_after
        """Seconds to wait before trying again; None if the daemon named no time."""

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when the exception crosses a process boundary."""
        fields = {
            "code": self.code,
            "reason": self.reason,
            "metadata": dict(self.metadata),
            "field_violations": self.field_violations,
            "retry_after": self.retry_after,
        }
        return _rebuild_fault, (type(self), self.message, fields)


def _rebuild_fault(kind: type[Fault], message: str, fields: dict[str, object]) -> Fault:
    return kind(message, **fields)  # type: ignore[arg-type]


class InvalidRequest(Fault):
    """The request is malformed; `field_violations` says where."""


class InvalidModule(InvalidRequest):
    """The bytes are not a valid module, or use a feature that is not enabled."""

    @property
    def offset_bytes(self) -> int | None:
        """Where in the module the problem is, in bytes from its start; None if unknown."""
        text = self.metadata.get("offset_bytes", "")
        return int(text) if text.isascii() and text.isdigit() else None


class ModuleTooComplex(InvalidModule):
    """Compiling the module would take more time or memory than the daemon allows."""


class ModuleTooLarge(InvalidModule):
    """The module has more bytes than the daemon stores."""


class DigestMismatch(InvalidRequest):
    """The bytes have another digest than the one that was promised."""


class ExportNotFound(InvalidRequest):
    """The module has no such function among its exports."""


class ArgumentMismatch(InvalidRequest):
    """Number or types of the arguments do not match the export's signature."""


class MessageTooLarge(InvalidRequest):
    """A request or response is larger than one gRPC message may be."""


class ModuleNotFound(Fault):
    """No module of this digest is stored for this tenant."""


class ModuleDamaged(Fault):
    """The daemon no longer has the bytes that were pushed; pushing them again repairs it."""


class LayerNotActive(Fault):
    """A layer of isolation that the call requires is not active on the daemon's host."""


class StoreFull(Fault):
    """The daemon's disk, or its settings, have no room for another module; delete some."""


class AccessDenied(Fault):
    """The daemon does not know the caller, or does not let it do this."""


class Unavailable(Fault):
    """The daemon cannot answer now."""

    retryable = True


class Overloaded(Unavailable):
    """The daemon refused the request unseen; `retry_after` tells when to come back."""

    refused = True


class QueueFull(Overloaded):
    """Every runner is busy and the queue for them is full."""


class ShuttingDown(Unavailable):
    """The daemon is draining and takes no new work; this call never reached a guest."""

    refused = True


class CutOff(Unavailable):
    """The daemon stopped before the call ended; the guest may have run."""


class RunnerLost(Unavailable):
    """The runner went away for a reason that is not the guest's; the guest may have run."""


class ZygoteLost(Unavailable):
    """All runners went away together and are being replaced; the guest may have run."""


class CompilerLost(Unavailable):
    """The compiler went away for a reason that is not the module's."""


class DaemonUnreachable(Unavailable):
    """Nobody answers at the address, or the connection broke; the guest may have run."""


class DeadlineFault(Fault):
    """No answer arrived in time, not even one that says so."""


class CallCancelled(Fault):
    """The call was cancelled."""


class Unsupported(Fault):
    """The daemon does not know the method: it is older than this client."""


class InternalFault(Fault):
    """The daemon failed in a way that it promises never to fail in."""


OutcomeT_co = TypeVar("OutcomeT_co", bound="outcomes.Outcome", covariant=True)


class GuestError(SandboxdError, Generic[OutcomeT_co]):
    """The guest did not complete. Raised by `Execution.check()` and what builds on it.

    `str(error)` is safe to print; the texts in `outcome` are the guest's own.
    """

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution.outcome.describe())
        self.execution = execution
        """The whole answer: output, logs and receipt included."""

    @property
    def outcome(self) -> OutcomeT_co:
        """What the guest did."""
        return self.execution.outcome  # type: ignore[return-value]

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the execution when the exception crosses a process boundary."""
        return type(self), (self.execution,)


class GuestExited(GuestError["outcomes.Exited"]):
    """The command ended with a code other than 0."""


class GuestTrapped(GuestError["outcomes.Trapped"]):
    """The guest trapped."""


class GuestDeadlineExceeded(GuestError["outcomes.DeadlineExceeded"]):
    """The call's wall-clock time was up."""


class GuestCancelled(GuestError["outcomes.Cancelled"]):
    """The call was cancelled."""


class GuestCpuTimeExceeded(GuestError["outcomes.CpuTimeExceeded"]):
    """The call used up its CPU time."""


class GuestLimitExceeded(GuestError["outcomes.LimitExceeded"]):
    """The guest ran into its memory, table, fuel or output limit."""


class GuestHostError(GuestError["outcomes.HostError"]):
    """The guest broke the ABI (docs/abi.md)."""


class GuestLinkError(GuestError["outcomes.LinkError"]):
    """The module imports something that the host does not provide."""


class GuestCrashed(GuestError["outcomes.Crashed"]):
    """The guest's process died of a signal."""


class GuestSandboxViolation(GuestError["outcomes.SandboxViolation"]):
    """The guest's process made a forbidden system call."""


class GuestProtocolViolation(GuestError["outcomes.ProtocolViolation"]):
    """The guest's process broke the protocol with the daemon, or died without an answer."""
