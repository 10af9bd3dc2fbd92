"""What a guest can be asked to do (docs/abi.md), and within which limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from sandboxd.client.values import Number, Value


class Convention(StrEnum):
    """How a bytes call's export hands its result back."""

    PACKED = "packed"
    """One i64: pointer in the high 32 bits, length in the low 32 bits."""
    POINTER_LENGTH = "pointer-length"
    """Two i32: pointer, then length."""
    NUL = "nul"
    """One i32: pointer to bytes that end before the first NUL."""
    FIXED = "fixed"
    """One i32: pointer to exactly `BytesCall.result_length` bytes."""


@dataclass(frozen=True, slots=True)
class TypedCall:
    """Call an export with numbers.

    A bare number takes its type from the export's signature, which the client looks up once per
    digest; for a module given inline (bytes or a path) every number needs its type: `i32(7)`.
    """

    export: str
    args: Sequence[Number | Value] = ()


@dataclass(frozen=True, slots=True)
class BytesCall:
    """Call an export with bytes, through the guest's `alloc`."""

    export: str
    input: bytes = b""
    convention: Convention = Convention.PACKED
    result_length: int | None = None
    """Length of the result in bytes; needed for, and only for, `Convention.FIXED`."""

    def __post_init__(self) -> None:
        if (self.convention is Convention.FIXED) != (self.result_length is not None):
            raise ValueError("result_length goes with Convention.FIXED, and only with it")


@dataclass(frozen=True, slots=True)
class WasiCommand:
    """Run `_start` of a WASI preview 1 command."""

    args: Sequence[str] = ()
    """All of argv: the first is by convention the program's own name; nothing is added."""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    """What the guest reads from standard input, followed by end of file."""

    def __post_init__(self) -> None:
        if isinstance(self.args, str):
            raise TypeError("args is a sequence of strings, not one string")


Call: TypeAlias = TypedCall | BytesCall | WasiCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one call. None takes the daemon's default; its maximum applies in any case."""

    wall_time_ms: int | None = None
    """Wall-clock time in milliseconds, from the arrival of the request to its answer."""
    cpu_time_ms: int | None = None
    """CPU time in milliseconds."""
    memory_bytes: int | None = None
    """Linear memory in bytes."""
    table_elements: int | None = None
    """Elements in all tables together."""
    output_bytes: int | None = None
    """Bytes of standard output, standard error, log and result together."""
    fuel: int | None = None
    """About one unit per WebAssembly instruction; None: not metered."""
