"""WebAssembly numbers, their types, and the signatures that they must fit."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from sandboxd.client.errors import ArgumentMismatch

Number: TypeAlias = int | float


class ValueType(StrEnum):
    """A WebAssembly value type, spelled as in the text format."""

    I32 = "i32"
    I64 = "i64"
    F32 = "f32"
    F64 = "f64"
    V128 = "v128"
    """Only in signatures; cannot be passed or returned."""
    FUNCREF = "funcref"
    """Only in signatures; cannot be passed or returned."""
    EXTERNREF = "externref"
    """Only in signatures; cannot be passed or returned."""
    UNKNOWN = "unknown"
    """A type that this version of the client does not know."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its WebAssembly type; make one with `i32`, `i64`, `f32` or `f64`.

    Integers are signed (two's complement).
    """

    type: ValueType
    number: Number

    def __str__(self) -> str:
        return str(self.number)


def i32(number: int) -> Value:
    """Make a 32-bit integer from -2^31 … 2^32-1; 2^31 and above mean their negative counterpart.

    Raises ValueError outside that range.
    """
    return Value(ValueType.I32, _wrap(number, 32))


def i64(number: int) -> Value:
    """Make a 64-bit integer from -2^63 … 2^64-1; 2^63 and above mean their negative counterpart.

    Raises ValueError outside that range.
    """
    return Value(ValueType.I64, _wrap(number, 64))


def f32(number: float) -> Value:
    """Make a 32-bit float, rounded to the nearest one.

    Raises ValueError for a finite number that is too large for one.
    """
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        raise ValueError(f"{number!r} does not fit in f32") from None
    return Value(ValueType.F32, rounded)


def f64(number: float) -> Value:
    """Make a 64-bit float."""
    return Value(ValueType.F64, float(number))


def _wrap(number: int, bits: int) -> int:
    if not isinstance(number, int):
        raise TypeError(f"an integer is needed, not {type(number).__name__}")
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise ValueError(f"{number} does not fit in i{bits}")
    return number - (1 << bits) if number >> bits - 1 > 0 else number


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameter and result types of a function."""

    params: tuple[ValueType, ...]
    results: tuple[ValueType, ...]

    def __str__(self) -> str:
        results = ", ".join(self.results)
        if len(self.results) != 1:
            results = f"({results})"
        return f"({', '.join(self.params)}) -> {results}"


def fit(args: Sequence[Number | Value], signature: Signature, export: str) -> tuple[Value, ...]:
    """Give bare numbers the types that `signature` asks for; check those that have one.

    Raises `ArgumentMismatch`, as the daemon would, for a wrong count, a wrong type, a number
    out of range, or a parameter type that cannot be passed.
    """
    if len(args) != len(signature.params):
        raise _mismatch(
            f"{export} takes {len(signature.params)} arguments {signature}, not {len(args)}"
        )
    return tuple(
        _fit_one(arg, want, f"argument {position} of {export}")
        for position, (arg, want) in enumerate(zip(args, signature.params, strict=True), start=1)
    )


def _fit_one(arg: Number | Value, want: ValueType, where: str) -> Value:
    if isinstance(arg, Value):
        if arg.type is not want:
            raise _mismatch(f"{where} is {want}, not {arg.type}")
        return arg
    try:
        match want:
            case ValueType.I32 | ValueType.I64:
                if isinstance(arg, float) and math.isfinite(arg) and arg.is_integer():
                    arg = int(arg)
                if isinstance(arg, float):
                    raise _mismatch(f"{where} is {want}, and {arg!r} is not an integer")
                return i32(arg) if want is ValueType.I32 else i64(arg)
            case ValueType.F32:
                return f32(arg)
            case ValueType.F64:
                return f64(arg)
    except (ValueError, OverflowError) as error:
        raise _mismatch(f"{where}: {error}") from None
    raise _mismatch(f"{where} has type {want}, which cannot be passed")


def _mismatch(message: str) -> ArgumentMismatch:
    return ArgumentMismatch(message, code="INVALID_ARGUMENT", reason="ARGUMENT_MISMATCH")
