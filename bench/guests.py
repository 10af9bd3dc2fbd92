"""Guests made for measuring: as little work as possible, or a module of a given size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import wasmtime

PAGE_BYTES = 65_536
Make = Callable[[int], bytes]
_MAGIC = b"\0asm\x01\0\0\0"

# `alloc` hands out memory upwards and grows it as need be; nothing is ever freed, as every call has
# an instance of its own. `sleep` waits in a host call for so many milliseconds.
_ALLOC = """
  (memory (export "memory") 1)
  (global $heap (mut i32) (i32.const 4096))
  (func (export "alloc") (param $length i32) (result i32)
    (local $end i32)
    (local.set $end (i32.add (global.get $heap) (local.get $length)))
    (if (i32.gt_u (local.get $end) (i32.mul (memory.size) (i32.const 65536)))
      (then (drop (memory.grow (i32.add (i32.const 1)
        (i32.shr_u (i32.sub (local.get $end) (i32.mul (memory.size) (i32.const 65536)))
                   (i32.const 16)))))))
    (global.get $heap)
    (global.set $heap (local.get $end)))
  (func (export "echo") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
            (i64.extend_i32_u (local.get 1))))
  (func (export "spin") (loop $again (br $again)))
"""
_SLEEP = """
  (func (export "sleep") (param i64)
    (i64.store (i32.const 24) (i64.mul (local.get 0) (i64.const 1000000)))
    (i32.store (i32.const 16) (i32.const 1))
    (drop (call $poll (i32.const 0) (i32.const 512) (i32.const 1) (i32.const 600))))
"""
_IMPORT_POLL = """
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
"""
_EXTISM_ECHO = """
(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "input_length" (func $length (result i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (memory (export "memory") 1)
  (func (export "echo") (result i32)
    (call $output (call $input) (call $length))
    (i32.const 0)))
"""


@functools.cache
def echo() -> bytes:
    """Answers its input (`echo`), or never (`spin`)."""
    return bytes(wasmtime.wat2wasm(f"(module {_ALLOC})"))


@functools.cache
def sleeper() -> bytes:
    """As `echo`, and sleeps in a host call."""
    return bytes(wasmtime.wat2wasm(f"(module {_IMPORT_POLL} {_ALLOC} {_SLEEP})"))


@functools.cache
def extism_echo() -> bytes:
    """Answers its input, by Extism's convention."""
    return bytes(wasmtime.wat2wasm(_EXTISM_ECHO))


def variant(wasm: bytes, number: int) -> bytes:
    """Return the same module with another digest: it has one more custom section."""
    return wasm + _section(0, _name(b"variant") + number.to_bytes(8, "little"))


# --- modules of a given size ----------------------------------------------------------------------

_BODY_BYTES = 1000
# local.get 0, i32.const, i32.mul, local.set 0, local.get 0, i32.const, i32.xor, local.set 0
_TAIL = b"\x20\0\x0b"


def code_module(size_bytes: int) -> bytes:
    """Make a module of about this size that is all code; it exports `f`, of type (i32) -> i32.

    Functions of about 1 KB that compilers cannot fold; `f` is as long as the others.
    """
    bodies: list[bytes] = []
    total = 0
    while total < size_bytes or not bodies:
        bodies.append(_body(len(bodies), min(_BODY_BYTES, max(20, size_bytes - total))))
        total += len(bodies[-1])
    return _module(bodies)


def data_module(size_bytes: int) -> bytes:
    """Make a module of about this size that is nearly all initial memory; it exports `f`."""
    # No zeroes: the engine would leave pages of them out.
    pattern = bytes(1 + (at * 7 + at // 251) % 255 for at in range(PAGE_BYTES))
    return _module([_body(0, 100)], (pattern * (size_bytes // PAGE_BYTES + 1))[:size_bytes])


def _body(number: int, size_bytes: int) -> bytes:
    code = b"\0"  # no locals
    step = 0
    while len(code) + len(_TAIL) < size_bytes:
        seed = (number * 7919 + step * 104_729) & 0xFFFFFF | 1
        code += b"\x20\0\x41" + _signed(seed) + b"\x6c\x21\0"
        code += b"\x20\0\x41" + _signed(seed ^ 0x5A5A5A) + b"\x73\x21\0"
        step += 1
    code += _TAIL
    return _unsigned(len(code)) + code


def _module(bodies: list[bytes], data: bytes = b"") -> bytes:
    memory = contents = b""
    if data:
        pages = len(data) // PAGE_BYTES + 1
        memory = _section(5, b"\x01\0" + _unsigned(pages))
        contents = _section(11, b"\x01\0\x41\0\x0b" + _unsigned(len(data)) + data)
    return (
        _MAGIC
        + _section(1, b"\x01\x60\x01\x7f\x01\x7f")  # one type: (i32) -> i32
        + _section(3, _unsigned(len(bodies)) + b"\0" * len(bodies))
        + memory
        + _section(7, b"\x01" + _name(b"f") + b"\0\0")
        + _section(10, _unsigned(len(bodies)) + b"".join(bodies))
        + contents
    )


def _section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _unsigned(len(body)) + body


def _name(name: bytes) -> bytes:
    return _unsigned(len(name)) + name


def _unsigned(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def _signed(number: int) -> bytes:
    encoded = b""
    while not -0x40 <= number <= 0x3F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number & 0x7F])
