"""Reads the ARGS of `sandboxctl call`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from sandboxd.client import Signature, Value, ValueType, f32, f64, i32, i64

_PREFIXED = re.compile(r"(i32|i64|f32|f64):(.*)", re.DOTALL)


def all_typed(args: Sequence[str]) -> bool:
    """Whether every argument names its type, so that no signature is needed."""
    return all(_PREFIXED.fullmatch(arg) for arg in args)


def parse(args: Sequence[str], signature: Signature | None, export: str) -> list[Value]:
    """Turn texts into values; without a signature every one must name its type.

    Raises click.UsageError for a wrong count, a wrong type or a number that does not fit.
    """
    if signature is not None and len(args) != len(signature.params):
        raise click.UsageError(
            f"{export!r} takes {len(signature.params)} arguments {signature}, not {len(args)}"
        )
    wanted = signature.params if signature is not None else [None] * len(args)
    return [
        _value(text, want, position)
        for position, (text, want) in enumerate(zip(args, wanted, strict=True), start=1)
    ]


def _value(text: str, want: ValueType | None, position: int) -> Value:
    match = _PREFIXED.fullmatch(text)
    kind = ValueType(match[1]) if match else want
    number = match[2] if match else text
    if kind is None:
        raise click.UsageError(f"argument {position} needs its type: i32:{text}")
    if want is not None and kind is not want:
        raise click.UsageError(f"argument {position} is {want}, not {kind}")
    try:
        match kind:
            case ValueType.I32:
                return i32(int(number, 0))
            case ValueType.I64:
                return i64(int(number, 0))
            case ValueType.F32:
                return f32(float(number))
            case ValueType.F64:
                return f64(float(number))
    except ValueError:
        raise click.UsageError(f"argument {position}: {number!r} is not an {kind}") from None
    raise click.UsageError(f"argument {position} has type {kind}, which cannot be passed")
