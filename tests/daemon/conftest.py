"""Guests of the daemon's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.daemon.calls import Caller, calling

SINK = """
(module
  (import "env" "log" (func $log (param i32 i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (global $heap (mut i32) (i32.const 4096))
  (data (i32.const 100) "\\c8\\00\\00\\00\\07\\00\\00\\00")
  (data (i32.const 200) "before\\0a")
  (data (i32.const 300) "\\00\\08\\00\\00\\00\\04\\00\\00")
  (func $say (drop (call $fd_write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 120))))
  (func (export "add") (param i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 1)))
  (func (export "swap") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    local.get 3 local.get 2 local.get 1 local.get 0)
  (func (export "spin") (call $say) (loop $again (br $again)))
  (func (export "spin_quietly") (loop $again (br $again)))
  (func (export "trap") (call $say) unreachable)
  (func (export "divide") (param i32 i32) (result i32)
    (i32.div_s (local.get 0) (local.get 1)))
  (func (export "sleep") (param i64)
    (call $say)
    (i64.store (i32.const 24) (i64.mul (local.get 0) (i64.const 1000000)))
    (i32.store (i32.const 16) (i32.const 1))
    (drop (call $poll (i32.const 0) (i32.const 512) (i32.const 1) (i32.const 600))))
  (func (export "flood")
    (loop $again
      (drop (call $fd_write (i32.const 1) (i32.const 300) (i32.const 1) (i32.const 120)))
      (br $again)))
  (func (export "exit") (param i32) (call $say) (call $exit (local.get 0)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "fill") (param i32)
    (loop $again
      (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))
      (br $again)))
  (func (export "log_hello") (call $log (i32.const 200) (i32.const 6)))
  (func (export "alloc") (param i32) (result i32)
    (global.get $heap)
    (global.set $heap (i32.add (global.get $heap) (local.get 0))))
  (func (export "echo") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
            (i64.extend_i32_u (local.get 1))))
  (func (export "liar") (param i32 i32) (result i64) (i64.const 0x7fffffff7fffffff))
  (func (export "remember") (param i32) (result i32)
    (i32.load (i32.const 2048))
    (i32.store (i32.const 2048) (local.get 0)))
  (func (export "_start") (call $say)))
"""


@pytest.fixture(scope="session")
def sink_wasm(wat: Callable[[str], bytes]) -> bytes:
    """One module with a function for each thing that a guest can do."""
    return wat(SINK)


@pytest.fixture(scope="module")
def sink(daemon: Any, sink_wasm: bytes) -> str:
    """The digest of that module, pushed to the module's daemon."""
    return str(daemon.push(sink_wasm))


@pytest.fixture(scope="module")
def caller(daemon: Any) -> Iterator[Caller]:
    """Blocking calls of the module's daemon."""
    with calling(daemon) as connected:
        yield connected


def _leb128(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def _section(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _leb128(len(body)) + body


@pytest.fixture(scope="session")
def many_functions() -> Callable[[int], bytes]:
    """Make a module of so many tiny functions: compiling takes about 25 us and 1 KB for each."""

    def make(count: int, additions: int = 0) -> bytes:
        # no locals, local.get 0, so many times (i32.const 1, i32.add), end
        body = b"\0\x20\0" + b"\x41\x01\x6a" * additions + b"\x0b"
        function = _leb128(len(body)) + body
        return (
            b"\0asm\x01\0\0\0"
            + _section(1, b"\x01\x60\x01\x7f\x01\x7f")  # one type: (i32) -> i32
            + _section(3, _leb128(count) + b"\0" * count)
            + _section(7, b"\x01\x01f\0\0")  # the first one is exported as f
            + _section(10, _leb128(count) + function * count)
        )

    return make


@pytest.fixture(scope="session")
def slow_wasm(many_functions: Callable[..., bytes]) -> bytes:
    """A module that compiles for some seconds, and is not too large for one message.

    Just under the most functions that a module may have.
    """
    return many_functions(99_000, 8)
