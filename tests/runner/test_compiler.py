import os
import resource
from collections.abc import Callable, Iterator

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.runner.compiler import MAX_REASON_BYTES, compile_module
from sandboxd.runner.engine import Engines
from sandboxd.runner.signatures import MAX_EXTERNS, MAX_NAME_BYTES
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

EMPTY = b"\0asm\x01\0\0\0"
Compile = Callable[..., runner_pb2.CompilerReply]


@pytest.fixture(scope="module")
def compile_(engines: Engines) -> Iterator[Compile]:
    fd = os.memfd_create("artifact")

    def run(wasm: bytes | str, max_bytes: int = 1 << 26) -> runner_pb2.CompilerReply:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        binary = bytes(wasmtime.wat2wasm(wasm)) if isinstance(wasm, str) else wasm
        reply = compile_module(engines.plain, binary, fd, max_bytes)
        written = os.fstat(fd).st_size
        assert written == (reply.compiled.artifact_size_bytes if reply.HasField("compiled") else 0)
        return runner_pb2.CompilerReply.FromString(reply.SerializeToString())

    yield run
    os.close(fd)


def test_imports_and_exports_are_described(compile_: Compile) -> None:
    compiled = compile_("""
      (module
        (import "env" "log" (func (param i32 f64)))
        (import "js" "global" (global v128))
        (import "js" "memory" (memory 1 2))
        (import "js" "\u00fc" (table 3 externref))
        (func (export "all") (param i32 i64 f32 f64 v128 funcref externref) (result v128 i32)
          (local.get 4) (local.get 0))
        (export "memory" (memory 0))
        (table (export "table") 5 9 funcref))
    """).compiled
    log, js_global, memory, table = compiled.imports
    assert (log.module, log.name, log.kind) == ("env", "log", call_pb2.EXTERN_KIND_FUNCTION)
    assert list(log.params) == [call_pb2.VALUE_TYPE_I32, call_pb2.VALUE_TYPE_F64]
    assert js_global.kind == call_pb2.EXTERN_KIND_GLOBAL
    assert (memory.kind, memory.minimum, memory.maximum) == (call_pb2.EXTERN_KIND_MEMORY, 1, 2)
    assert (table.name, table.kind, table.minimum) == ("ü", call_pb2.EXTERN_KIND_TABLE, 3)
    assert not table.HasField("maximum")
    function, exported_memory, exported_table = compiled.exports
    assert list(function.params) == [
        call_pb2.VALUE_TYPE_I32,
        call_pb2.VALUE_TYPE_I64,
        call_pb2.VALUE_TYPE_F32,
        call_pb2.VALUE_TYPE_F64,
        call_pb2.VALUE_TYPE_V128,
        call_pb2.VALUE_TYPE_FUNCREF,
        call_pb2.VALUE_TYPE_EXTERNREF,
    ]
    assert list(function.results) == [call_pb2.VALUE_TYPE_V128, call_pb2.VALUE_TYPE_I32]
    assert exported_memory.maximum == 2
    assert (exported_table.minimum, exported_table.maximum) == (5, 9)


def test_compiling_twice_gives_the_same_artifact(engines: Engines) -> None:
    artifacts = []
    for _ in range(2):
        fd = os.memfd_create("artifact")
        compile_module(engines.plain, bytes(wasmtime.wat2wasm("(module (memory 1))")), fd, 1 << 20)
        artifacts.append(os.pread(fd, 1 << 20, 0))
        os.close(fd)
    assert artifacts[0] == artifacts[1]


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "empty"),
        (b"\0", "does not begin"),
        (b"\0asm", "ends after 4 bytes, in its header: magic and version"),
        (b"\0asm\x02\0\0\0", "version"),
        (b"\0asm\x0d\0\x01\0" + b"\0" * 100, "components are not supported"),
        (b"(module)", "text"),
        (b"\n\t ;; comment\n(module)", "text"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "gzip"),
        (b"PK\x03\x04" + b"\0" * 20, "zip"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 60, "cwasm"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 20, "zstd"),
        (b"#!/bin/sh\n", "does not begin"),
        (b"\xff" * 100, "does not begin"),
    ],
)
def test_what_is_not_a_core_module_is_invalid_with_a_hint(
    compile_: Compile, data: bytes, hint: str
) -> None:
    invalid = compile_(data).invalid
    assert hint in invalid.message
    assert invalid.offset_bytes == 0


def test_a_compiled_artifact_is_not_a_module(engines: Engines, compile_: Compile) -> None:
    artifact = bytes(wasmtime.Module(engines.plain, EMPTY).serialize())
    assert "cwasm" in compile_(artifact).invalid.message


@pytest.mark.parametrize(
    ("wat", "named"),
    [
        ("(module (memory i64 1))", "memory64"),
        ("(module (memory 1 1 shared))", "threads"),
        ("(module (memory 1) (memory 1))", "multiple memories"),
        ("(module (type (struct)))", "gc"),
        ("(module (tag))", "exceptions"),
        ("(module (func (param (ref func))))", "function references"),
        ("(module (type $f (func)) (type (cont $f)))", "stack switching"),
        (
            "(module (func (param v128)"
            " (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0)))))",
            "relaxed SIMD",
        ),
        (
            "(module (func (param i64)"
            " (drop (drop (i64.mul_wide_u (local.get 0) (local.get 0))))))",
            "wide arithmetic",
        ),
        ("(module (memory 1 (pagesize 1)))", "custom page sizes"),
    ],
)
def test_what_is_not_enabled_is_invalid_and_named(compile_: Compile, wat: str, named: str) -> None:
    invalid = compile_(wat).invalid
    assert named.lower().replace("-", " ") in invalid.message.lower().replace("-", " ")
    assert invalid.offset_bytes > 8


@pytest.mark.parametrize(
    "wat",
    [
        "(module (func (result i32 i64) (i32.const 1) (i64.const 2)))",
        "(module (memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1))))",
        "(module (table 1 externref) (func (drop (ref.null extern))))",
        "(module (func (param v128) (drop (i8x16.add (local.get 0) (local.get 0)))))",
        "(module (func $f (return_call $f)))",
        "(module (func (drop (i32.extend8_s (i32.const 1)))))",
        "(module (func (drop (i32.trunc_sat_f32_s (f32.const 1)))))",
        '(module (global (export "g") (mut i32) (i32.const 1)))',
        "(module (global i32 (i32.add (i32.const 1) (i32.const 2))))",
    ],
)
def test_what_is_enabled_compiles(compile_: Compile, wat: str) -> None:
    assert compile_(wat).WhichOneof("reply") == "compiled"


def test_a_type_error_is_invalid_with_the_offset_in_the_module(compile_: Compile) -> None:
    wasm = bytes(wasmtime.wat2wasm("(module (func (result i32) (i64.const 1)))"))
    invalid = compile_(wasm).invalid
    assert "type mismatch" in invalid.message
    assert "offset" not in invalid.message
    assert "\n" not in invalid.message
    assert 0 < invalid.offset_bytes <= len(wasm)


@pytest.mark.parametrize(
    "section",
    [
        b"\x01\xff",
        b"\x01\xff\xff\xff\xff\x0f",
        b"\x0a\x01\x05",
        b"\x02\x05\x01\x02\xff\xfe\x00",
        b"\x07\x80\x80\x80\x80\x80\x80",
        b"\xff\x00",
    ],
)
def test_lying_sections_are_invalid_with_an_offset(compile_: Compile, section: bytes) -> None:
    invalid = compile_(EMPTY + section).invalid
    assert invalid.message
    assert 8 <= invalid.offset_bytes <= 8 + len(section)


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=200))
def test_any_bytes_after_the_header_get_a_verdict(compile_: Compile, tail: bytes) -> None:
    reply = compile_(EMPTY + tail)
    assert reply.WhichOneof("reply") in ("compiled", "invalid", "too_complex")
    assert len(reply.invalid.message.encode()) <= MAX_REASON_BYTES


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_damage_to_a_module_gets_a_verdict(
    compile_: Compile, position: int, value: int
) -> None:
    wasm = bytearray(
        wasmtime.wat2wasm(
            '(module (import "env" "log" (func (param i32))) (memory (export "memory") 1)'
            '(table 2 funcref) (elem (i32.const 0) 0) (data (i32.const 0) "abc")'
            '(func $f (export "f") (param i32 v128) (result i32)'
            " (block (br_table 0 0 (local.get 0))) (call 0 (i32.const 1)) (local.get 0)))"
        )
    )
    wasm[position % len(wasm)] = value
    reply = compile_(bytes(wasm))
    assert reply.WhichOneof("reply") in ("compiled", "invalid", "too_complex")


def test_a_hostile_name_in_a_reason_is_cut(compile_: Compile) -> None:
    name = "\\1b[2J" * (MAX_NAME_BYTES // 4)
    invalid = compile_(f'(module (func (export "{name}")) (func (export "{name}")))').invalid
    assert "duplicate" in invalid.message
    assert "\x1b" not in invalid.message
    assert len(invalid.message.encode()) <= MAX_REASON_BYTES


def test_too_many_exports_are_too_complex_and_counted(compile_: Compile) -> None:
    exports = "".join(f'(export "{i}" (func 0))' for i in range(MAX_EXTERNS))
    assert compile_(f"(module (func) {exports})").HasField("compiled")
    message = compile_(f'(module (func) {exports} (export "x" (func 0)))').too_complex.message
    assert str(MAX_EXTERNS + 1) in message
    assert str(MAX_EXTERNS) in message


def test_too_many_imports_are_too_complex(compile_: Compile) -> None:
    imports = '(import "" "" (func))' * (MAX_EXTERNS + 1)
    assert "imports" in compile_(f"(module {imports})").too_complex.message


def test_a_name_that_is_too_long_is_too_complex(compile_: Compile) -> None:
    fits = "n" * MAX_NAME_BYTES
    assert compile_(f'(module (func (export "{fits}")))').HasField("compiled")
    for module in (
        f'(module (func (export "{fits}n")))',
        f'(module (import "{fits}n" "" (func)))',
        f'(module (import "" "{fits}n" (func)))',
    ):
        assert str(MAX_NAME_BYTES) in compile_(module).too_complex.message


def test_a_description_that_is_too_long_is_too_complex(compile_: Compile) -> None:
    exports = "".join(f'(export "{i:01000}" (func 0))' for i in range(1100))
    reply = compile_(f"(module (func) {exports})")
    assert "imports and exports" in reply.too_complex.message, reply


def test_an_artifact_above_its_limit_is_too_complex(compile_: Compile) -> None:
    message = compile_("(module)", max_bytes=100).too_complex.message
    assert "100" in message


def test_a_file_that_cannot_grow_is_too_complex(engines: Engines, tmp_path: object) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.memfd_create("artifact")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        reply = compile_module(engines.plain, EMPTY, fd, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
    assert "room" in reply.too_complex.message


def test_another_error_while_writing_is_raised(engines: Engines) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            compile_module(engines.plain, EMPTY, reading, 1 << 20)
    finally:
        os.close(reading)
