"""Looks at arguments before anything is sent, and names the one that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, SupportsIndex

from sandboxd.client import codec
from sandboxd.client.calls import BytesCall, Limits, TypedCall, WasiCommand
from sandboxd.client.modules import check_digest
from sandboxd.client.values import Value

# 31 years: gRPC cannot tell deadlines that lie further ahead by a few times from those gone by.
PATIENCE_MAX_S = 1e9
_LIMITS = tuple(field.name for field in fields(Limits))


def patience(timeout: Any) -> float | None:
    """Return how many seconds to wait; None, infinity and more than gRPC can count: for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, Real):
        raise TypeError(f"timeout is a number of seconds or None, not {_kind(timeout)}")
    seconds: Any = timeout
    if not seconds > 0:
        raise ValueError(f"timeout is a number of seconds above 0, or None, not {timeout}")
    return float(seconds) if seconds < PATIENCE_MAX_S else None


def check_parallel(count: object) -> None:
    """Raise unless `count` can be a batch's `max_parallel`."""
    _check_integer(count, 32, "max_parallel")


def check_module(module: object) -> None:
    """Raise ValueError for a text that is no digest; other kinds are told by who takes them."""
    if isinstance(module, str):
        check_digest(module)


def check_execution(call: object, limits: object, require_layers: object) -> None:
    """Raise unless these can be arguments of `execute`."""
    match call:
        case TypedCall():
            _check_typed(call)
        case BytesCall():
            _check_text(call.export, "export")
            _check_bytes(call.input, "input")
        case WasiCommand():
            _check_wasi(call)
        case _:
            raise TypeError(f"call is a TypedCall, BytesCall or WasiCommand, not {_kind(call)}")
    if limits is not None:
        _check_limits(limits)
    _check_layers(require_layers)


def _check_typed(call: TypedCall) -> None:
    _check_text(call.export, "export")
    # An iterator would be read to its end here.
    if isinstance(call.args, str | bytes) or not isinstance(call.args, Collection):
        raise TypeError(f"args is a sequence of numbers, not {_kind(call.args)}")
    for arg in call.args:
        if type(arg) is not Value and not isinstance(arg, Value | Real):
            raise TypeError(f"args takes numbers, not {_kind(arg)}")


def _check_wasi(call: WasiCommand) -> None:
    if not isinstance(call.args, Collection):
        raise TypeError(f"args is a sequence of texts, not {_kind(call.args)}")
    if not isinstance(call.env, Mapping):
        raise TypeError(f"env is a mapping, not {_kind(call.env)}")
    for arg in call.args:
        _check_text(arg, "each of args")
    for name, text in call.env.items():
        _check_text(name, "each name in env")
        _check_text(text, "each value in env")
    _check_bytes(call.stdin, "stdin")


def _check_limits(limits: object) -> None:
    if not isinstance(limits, Limits):
        raise TypeError(f"limits is a Limits or None, not {_kind(limits)}")
    for name in _LIMITS:
        number = getattr(limits, name)
        if number is not None:
            _check_integer(number, 64, "limits." + name)


def _check_layers(layers: object) -> None:
    if layers is not None and not isinstance(layers, Iterable):
        raise TypeError(f"require_layers takes names of layers, not {_kind(layers)}")
    if isinstance(layers, Collection):  # Another iterable may be read only once.
        codec.layer_names(layers)


def _check_integer(number: object, bits: int, name: str) -> None:
    if type(number) is not int:
        if isinstance(number, bool) or not isinstance(number, SupportsIndex):
            raise TypeError(f"{name} is an integer, not {_kind(number)}")
        number = number.__index__()
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} is an integer from 0 to 2^{bits} - 1, not {number}")


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is a str, not {_kind(text)}")


def _check_bytes(data: object, name: str) -> None:
    if not isinstance(data, bytes):
        raise TypeError(f"{name} is bytes, not {_kind(data)}")


def _kind(thing: object) -> str:
    return type(thing).__name__
