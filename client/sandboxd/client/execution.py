"""The answer to an Execute: outcome, output, logs, receipt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from sandboxd.client import errors, outcomes
from sandboxd.client.calls import Limits
from sandboxd.client.outcomes import Outcome
from sandboxd.client.values import Number, Value


class StartKind(StrEnum):
    """How warm the process was."""

    REUSED = "REUSED"
    """It had served this module before."""
    SPARE = "SPARE"
    """It was forked ahead of need."""
    COLD = "COLD"
    """It was forked for this call."""
    LOADED = "LOADED"
    """It had loaded this module ahead of need, and had run no guest."""
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class SelfReported:
    """Numbers that the runner told about itself; a guest that took it over can make them up."""

    linear_memory_bytes: int
    fuel_consumed: int | None
    run_time_ns: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a call used, measured by the daemon. Times in nanoseconds, sizes in bytes."""

    module_digest: str
    queue_time_ns: int
    compile_time_ns: int
    bind_time_ns: int
    run_time_ns: int
    cpu_time_ns: int
    peak_memory_bytes: int
    bytes_in: int
    bytes_out: int
    start_kind: StartKind
    engine_version: str
    limits: Limits
    """The limits that applied."""
    self_reported: SelfReported | None
    isolation_layers: tuple[str, ...]
    """Layers of isolation that were active around the guest."""
    isolation_profile: str
    """The preset of required layers that the daemon was started with."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What the guest did, what it wrote and what it used.

    `stdout`, `stderr` and `logs` are there whatever the outcome. They are the guest's bytes:
    escape them before writing them to a terminal.
    """

    outcome: Outcome
    stdout: bytes
    stderr: bytes
    logs: tuple[Value | bytes, ...]
    """Numbers and byte strings that the guest logged, oldest first."""
    receipt: Receipt

    def check(self) -> Self:
        """Return self if the guest completed or exited with 0, else raise its `GuestError`."""
        match self.outcome:
            case outcomes.Completed() | outcomes.Exited(code=0):
                return self
        raise _ERRORS.get(type(self.outcome), errors.GuestError)(self)

    @property
    def values(self) -> tuple[Number, ...]:
        """Results of a typed call as plain numbers. Raises `GuestError` if it did not complete."""
        return tuple(value.number for value in self._completed().results)

    @property
    def value(self) -> Number:
        """The only result of a typed call.

        Raises `GuestError` if the call did not complete, ValueError unless it has one result.
        """
        (number,) = self.values
        return number

    @property
    def output(self) -> bytes:
        """Result of a bytes call. Raises `GuestError` if it did not complete."""
        return self._completed().output

    def _completed(self) -> outcomes.Completed:
        outcome = self.check().outcome
        if isinstance(outcome, outcomes.Completed):
            return outcome
        raise ValueError("a WASI command has an exit code and output, but no result")


_ERRORS: dict[type[object], type[errors.GuestError[Outcome]]] = {
    outcomes.Exited: errors.GuestExited,
    outcomes.Trapped: errors.GuestTrapped,
    outcomes.DeadlineExceeded: errors.GuestDeadlineExceeded,
    outcomes.Cancelled: errors.GuestCancelled,
    outcomes.CpuTimeExceeded: errors.GuestCpuTimeExceeded,
    outcomes.LimitExceeded: errors.GuestLimitExceeded,
    outcomes.HostError: errors.GuestHostError,
    outcomes.LinkError: errors.GuestLinkError,
    outcomes.Crashed: errors.GuestCrashed,
    outcomes.SandboxViolation: errors.GuestSandboxViolation,
    outcomes.ProtocolViolation: errors.GuestProtocolViolation,
}
