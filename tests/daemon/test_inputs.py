"""What goes in: inputs of every length, and requests that are not what they seem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.daemon.calls import Caller, bytes_call, i32, refused, typed

from sandboxd.v1 import call_pb2, sandbox_pb2

EXECUTE = "/sandboxd.v1.SandboxService/Execute"
MIB = 1 << 20
POINTER_LENGTH, FIXED = 2, 4
# Longer inputs than this go another way into the runner, longer results than this out of it.
IN, OUT = 32 * 1024, 16 * 1024

READS_STDIN = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8)
  (func (export "alloc") (param i32) (result i32) (i32.const 65536))
  (func (export "read") (param i32 i32) (result i32)
    (i32.store (i32.const 0) (i32.const 256))
    (i32.store (i32.const 4) (i32.const 1000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
    (i32.const 16)))
"""


@pytest.mark.parametrize("size", [0, 1, OUT, OUT + 1, IN, IN + 1, MIB])
def test_any_size_goes_in_and_comes_out(caller: Caller, guests: Path, size: int) -> None:
    upper = (guests / "c" / "uppercase.wasm").read_bytes()
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    for _ in range(2):
        response = caller.execute(bytes_call(upper, "uppercase", data, POINTER_LENGTH))
        assert response.completed.output == data.upper()
        assert response.receipt.bytes_in == response.receipt.bytes_out == size


def test_as_much_goes_in_as_a_message_holds(caller: Caller, guests: Path) -> None:
    data = bytes(range(251)) * 15_600
    sha256 = (guests / "c" / "sha256.wasm").read_bytes()
    response = caller.execute(bytes_call(sha256, "sha256", data, FIXED, 32))
    assert response.completed.output == hashlib.sha256(data).digest()


def test_a_shorter_input_shows_nothing_of_the_longer_one_before(
    caller: Caller, guests: Path
) -> None:
    upper = (guests / "c" / "uppercase.wasm").read_bytes()
    for data in (b"a" * MIB, b"b" * (IN + 1), b"c", b"", b"d" * (2 * IN)):
        response = caller.execute(bytes_call(upper, "uppercase", data, POINTER_LENGTH))
        assert response.completed.output == data.upper()


@pytest.mark.parametrize("size", [10, IN + 1, 300_000])
def test_the_input_of_a_bytes_call_is_not_its_standard_input(
    caller: Caller, wat: Callable[[str], bytes], size: int
) -> None:
    response = caller.execute(bytes_call(wat(READS_STDIN), "read", b"A" * size, FIXED, 4))
    assert response.completed.output == bytes(4), response


def test_a_call_of_a_million_fields_that_another_replaces_is_refused(
    caller: Caller, sink_wasm: bytes
) -> None:
    """What a later member of a oneof replaces is parsed, too, and stays in memory."""
    env = bytes([call_pb2.WasiCommand.ENV_FIELD_NUMBER << 3 | 2, 0]) * 1_000_000
    size, varint = len(env), bytearray()
    while size >= 0x80:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    key = sandbox_pb2.ExecuteRequest.WASI_FIELD_NUMBER << 3 | 2
    last = typed(sink_wasm, "add", i32(1), i32(2)).SerializeToString()
    call: Any = caller.channel.unary_unary(EXECUTE)
    found = refused(call, bytes([key, *varint, size]) + env + last)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("depth", [97, 98, 99, 100, 101])
def test_unknown_fields_however_deep_cost_no_violation(
    caller: Caller, sink_wasm: bytes, depth: int
) -> None:
    """A runner decodes a request two messages deeper than the supervisor, by the same rules."""
    digest = caller.push(sink_wasm).module.digest
    raw = typed(digest, "add", i32(1), i32(2)).SerializeToString()
    raw += b"\xa3\x06" * depth + b"\xa4\x06" * depth
    call: Any = caller.channel.unary_unary(
        EXECUTE, response_deserializer=sandbox_pb2.ExecuteResponse.FromString
    )
    if depth <= 98:
        assert call(raw, timeout=20).completed.results[0].i32 == 3
    else:
        assert refused(call, raw).code is grpc.StatusCode.INVALID_ARGUMENT
