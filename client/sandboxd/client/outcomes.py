"""What a guest did: one frozen class per outcome of an Execute.

Match on the class. Names and messages inside were chosen by the guest, or by the engine for
people: escape them before writing them to a terminal. `describe()` gives one escaped line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias

from sandboxd.client.text import printable
from sandboxd.client.values import Value


class TrapCode(StrEnum):
    """Stable reason of a trap: the names of `sandboxd.v1.TrapCode` without their prefix."""

    STACK_OVERFLOW = "STACK_OVERFLOW"
    MEMORY_OUT_OF_BOUNDS = "MEMORY_OUT_OF_BOUNDS"
    HEAP_MISALIGNED = "HEAP_MISALIGNED"
    TABLE_OUT_OF_BOUNDS = "TABLE_OUT_OF_BOUNDS"
    INDIRECT_CALL_TO_NULL = "INDIRECT_CALL_TO_NULL"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    INTEGER_OVERFLOW = "INTEGER_OVERFLOW"
    INTEGER_DIVISION_BY_ZERO = "INTEGER_DIVISION_BY_ZERO"
    BAD_CONVERSION_TO_INTEGER = "BAD_CONVERSION_TO_INTEGER"
    UNREACHABLE = "UNREACHABLE"
    INTERRUPT = "INTERRUPT"
    ABORT = "ABORT"
    NULL_REFERENCE = "NULL_REFERENCE"
    OTHER = "OTHER"
    """Another trap of the engine; the message names it."""
    UNKNOWN = "UNKNOWN"
    """A code that this version of the client does not know."""


class LimitKind(StrEnum):
    """Which limit was reached: the names of `sandboxd.v1.LimitKind` without their prefix."""

    MEMORY = "MEMORY"
    TABLE_ELEMENTS = "TABLE_ELEMENTS"
    FUEL = "FUEL"
    OUTPUT = "OUTPUT"
    CPU_TIME = "CPU_TIME"
    INSTANCE_COUNT = "INSTANCE_COUNT"
    UNKNOWN = "UNKNOWN"


class Stage(StrEnum):
    """A part of a call's way through the daemon."""

    QUEUE = "QUEUE"
    COMPILE = "COMPILE"
    BIND = "BIND"
    RUN = "RUN"
    UNKNOWN = "UNKNOWN"


class StopMethod(StrEnum):
    """What ended a call that had to be stopped."""

    NOT_STARTED = "NOT_STARTED"
    INTERRUPTED = "INTERRUPTED"
    KILLED = "KILLED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a guest's backtrace."""

    function_index: int
    function_name: str
    """From the module's name section; empty if unknown."""
    module_offset_bytes: int
    function_offset_bytes: int


@dataclass(frozen=True, slots=True)
class Stop:
    """How a call that had to be stopped was ended."""

    stage: Stage
    method: StopMethod
    overshoot_ns: int
    """From the moment at which the call was due to stop until it had stopped."""
    frames: tuple[Frame, ...] = ()
    """Where the guest was, innermost first; only when it was interrupted."""

    def describe(self) -> str:
        """Tell it in a few words."""
        method = self.method.lower().replace("_", " ")
        return f"{method} in {self.stage.lower()}"


@dataclass(frozen=True, slots=True)
class Completed:
    """The call returned."""

    name: ClassVar[str] = "completed"
    results: tuple[Value, ...] = ()
    """Results of a typed call."""
    output: bytes = b""
    """Result of a bytes call."""

    def describe(self) -> str:
        """Tell it in one line."""
        return "completed"


@dataclass(frozen=True, slots=True)
class Exited:
    """A WASI command ended."""

    name: ClassVar[str] = "exited"
    code: int

    def describe(self) -> str:
        """Tell it in one line."""
        return f"guest exited with code {self.code}"


@dataclass(frozen=True, slots=True)
class Trapped:
    """The guest ended in a trap."""

    name: ClassVar[str] = "trapped"
    code: TrapCode
    message: str = ""
    frames: tuple[Frame, ...] = ()
    """Backtrace, innermost first."""

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail(f"guest trapped: {self.code}", self.message)


@dataclass(frozen=True, slots=True)
class DeadlineExceeded:
    """Wall-clock time was up."""

    name: ClassVar[str] = "deadline_exceeded"
    stop: Stop
    wall_time_ns: int
    """The limit that applied."""

    def describe(self) -> str:
        """Tell it in one line."""
        return f"deadline of {self.wall_time_ns / 1e9:g} s exceeded ({self.stop.describe()})"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The call was cancelled."""

    name: ClassVar[str] = "cancelled"
    stop: Stop

    def describe(self) -> str:
        """Tell it in one line."""
        return f"call cancelled ({self.stop.describe()})"


@dataclass(frozen=True, slots=True)
class CpuTimeExceeded:
    """CPU time was used up."""

    name: ClassVar[str] = "cpu_time_exceeded"
    stop: Stop
    cpu_time_ns: int
    """The limit that applied."""

    def describe(self) -> str:
        """Tell it in one line."""
        return f"CPU time of {self.cpu_time_ns / 1e9:g} s used up ({self.stop.describe()})"


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """The guest ran into one of its other limits."""

    name: ClassVar[str] = "limit_exceeded"
    kind: LimitKind
    message: str = ""
    frames: tuple[Frame, ...] = ()

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail(f"limit exceeded: {self.kind}", self.message)


@dataclass(frozen=True, slots=True)
class HostError:
    """The guest broke the ABI."""

    name: ClassVar[str] = "host_error"
    message: str

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail("guest broke the ABI", self.message)


@dataclass(frozen=True, slots=True)
class LinkError:
    """The module imports something that the host does not provide."""

    name: ClassVar[str] = "link_error"
    module: str
    import_name: str
    message: str = ""

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail(
            f"module imports {self.module}.{self.import_name}, which the host does not provide",
            self.message,
        )


@dataclass(frozen=True, slots=True)
class Crashed:
    """The guest's process died of a signal."""

    name: ClassVar[str] = "crashed"
    signal: int
    signal_name: str = ""

    def describe(self) -> str:
        """Tell it in one line."""
        return printable(f"guest's process died of signal {self.signal_name or self.signal}")


@dataclass(frozen=True, slots=True)
class SandboxViolation:
    """The guest's process made a system call that no guest needs, and was killed for it."""

    name: ClassVar[str] = "sandbox_violation"
    message: str = ""

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail("guest's process made a forbidden system call", self.message)


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """The guest's process broke its protocol with the daemon, or ended without an answer."""

    name: ClassVar[str] = "protocol_violation"
    message: str = ""

    def describe(self) -> str:
        """Tell it in one line."""
        return _with_detail("guest's process broke the protocol with the daemon", self.message)


@dataclass(frozen=True, slots=True)
class UnknownOutcome:
    """An outcome that this version of the client does not know."""

    name: ClassVar[str] = "unknown"

    def describe(self) -> str:
        """Tell it in one line."""
        return "outcome unknown to this client; upgrade it"


def _with_detail(text: str, detail: str) -> str:
    return printable(f"{text} ({detail})" if detail else text)


Outcome: TypeAlias = (
    Completed
    | Exited
    | Trapped
    | DeadlineExceeded
    | Cancelled
    | CpuTimeExceeded
    | LimitExceeded
    | HostError
    | LinkError
    | Crashed
    | SandboxViolation
    | ProtocolViolation
    | UnknownOutcome
)
