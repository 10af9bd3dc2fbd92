"""Hostile guests, as rows."""

from __future__ import annotations

import functools

import wasmtime
from tests.hostile.harness import Act, Bench, Row, word

from sandboxd.v1 import call_pb2, sandbox_pb2

WASI = '"wasi_snapshot_preview1"'
_LONG_MS = 150

# One module with a function for each thing a guest can do to itself.
CABINET = f"""
(module
  (import {WASI} "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import {WASI} "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import {WASI} "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import {WASI} "proc_exit" (func $exit (param i32)))
  (import {WASI} "random_get" (func $random (param i32 i32) (result i32)))
  (import {WASI} "sched_yield" (func $yield (result i32)))
  (import {WASI} "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import {WASI} "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  (import {WASI} "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import {WASI} "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import {WASI} "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
  (import "env" "log" (func $log (param i32 i32)))
  (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
  (type $void (func))
  (type $unary (func (param i32)))
  (memory (export "memory") 1)
  (table $table 8 8 funcref)
  (elem (i32.const 1) $void_one)
  (global $heap (mut i32) (i32.const 4096))
  (data (i32.const 100) "\\c8\\00\\00\\00\\07\\00\\00\\00")
  (data (i32.const 108) "\\2c\\01\\00\\00\\0f\\00\\00\\00")
  (data (i32.const 200) "before\\0a")
  (data (i32.const 300) "\\1b]0;x\\07\\00\\ff\\fe\\1b[2J\\0d\\0a")
  (data (i32.const 400) "../../../../etc/passwd")
  (data (i32.const 440) "/etc/passwd////")
  (data (i32.const 480) "\\00\\08\\00\\00\\00\\04\\00\\00")
  (data (i32.const 500) "\\06\\00\\00\\00\\1b\\00[\\002\\00")
  (func $void_one)
  (func $say (drop (call $write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 120))))
  (func (export "spin") (call $say) (loop $on (br $on)))
  (func (export "spin_quietly") (loop $on (br $on)))
  (func (export "fill") (loop $on
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br $on)))
  (func (export "fill_huge") (local $size i32)
    (drop (memory.grow (i32.const 4000)))
    (local.set $size (i32.shl (memory.size) (i32.const 16)))
    (loop $on (memory.fill (i32.const 0) (i32.const 1) (local.get $size)) (br $on)))
  (func (export "copy") (loop $on
    (memory.copy (i32.const 1) (i32.const 0) (i32.const 65535)) (br $on)))
  (func (export "fill_table") (loop $on
    (table.fill $table (i32.const 0) (ref.null func) (i32.const 8)) (br $on)))
  (func (export "sleep")
    (call $say)
    (i64.store (i32.const 1048) (i64.const 60000000000))
    (i32.store (i32.const 1040) (i32.const 1))
    (drop (call $poll (i32.const 1024) (i32.const 1504) (i32.const 1) (i32.const 1600))))
  (func (export "sleep_forever")
    (i64.store (i32.const 1048) (i64.const -1))
    (i32.store (i32.const 1040) (i32.const 1))
    (drop (call $poll (i32.const 1024) (i32.const 1504) (i32.const 1) (i32.const 1600))))
  (func (export "poll_stdin") (loop $on
    (i32.store8 (i32.const 1032) (i32.const 1))
    (i32.store (i32.const 1040) (i32.const 0))
    (drop (call $poll (i32.const 1024) (i32.const 1504) (i32.const 1) (i32.const 1600)))
    (br $on)))
  (func (export "poll_crooked")
    (drop (call $poll (i32.const 1024) (i32.const 1501) (i32.const 1) (i32.const 1600))))
  (func (export "read_stdin") (loop $on
    (drop (call $read (i32.const 0) (i32.const 480) (i32.const 1) (i32.const 120))) (br $on)))
  (func (export "flood_random") (loop $on
    (drop (call $random (i32.const 4096) (i32.const 60000))) (br $on)))
  (func (export "flood_yield") (loop $on (drop (call $yield)) (br $on)))
  (func (export "flood_stdout") (loop $on
    (drop (call $write (i32.const 1) (i32.const 480) (i32.const 1) (i32.const 120))) (br $on)))
  (func (export "flood_stderr") (loop $on
    (drop (call $write (i32.const 2) (i32.const 480) (i32.const 1) (i32.const 120))) (br $on)))
  (func (export "flood_log") (loop $on (call $log (i32.const 0) (i32.const 60000)) (br $on)))
  (func (export "flood_log_entries") (loop $on
    (call $log (i32.const 0) (i32.const 0)) (br $on)))
  (func (export "grow") (result i32) (local $got i32)
    (loop $on
      (local.set $got (memory.grow (i32.const 64)))
      (br_if $on (i32.ne (local.get $got) (i32.const -1))))
    (local.get $got))
  (func $down (export "recurse") (param i64) (result i64)
    (i64.add (call $down (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))
  (func (export "unreachable") (call $say) unreachable)
  (func (export "out_of_bounds") (result i32) (i32.load (i32.const -4)))
  (func (export "divide") (result i32) (i32.div_s (i32.const 1) (i32.const 0)))
  (func (export "overflow") (param i32) (result i32)
    (i32.div_s (i32.const 0x80000000) (local.get 0)))
  (func (export "convert") (param f64) (result i32) (i32.trunc_f64_s (local.get 0)))
  (func (export "call_null") (call_indirect (type $void) (i32.const 0)))
  (func (export "call_outside") (call_indirect (type $void) (i32.const 9)))
  (func (export "call_wrong") (call_indirect (type $unary) (i32.const 1) (i32.const 1)))
  (func (export "abort") (call $abort (i32.const 504) (i32.const 0) (i32.const 1) (i32.const 1)))
  (func (export "log_outside") (call $log (i32.const -16) (i32.const 1000)))
  (func (export "write_outside") (result i32)
    (call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 120)))
  (func (export "random_outside") (result i32)
    (call $random (i32.const -8) (i32.const 1000)))
  (func (export "wasi_exit") (param i32) (call $say) (call $exit (local.get 0)))
  (func (export "escapes") (drop
    (call $write (i32.const 1) (i32.const 108) (i32.const 1) (i32.const 120))))
  (func (export "climb") (result i32) (call $open (i32.const 3) (i32.const 1) (i32.const 400)
    (i32.const 22) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 700)))
  (func (export "absolute") (result i32) (call $open (i32.const 3) (i32.const 1) (i32.const 440)
    (i32.const 15) (i32.const 9) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 700)))
  (func (export "symlink") (result i32) (call $link (i32.const 440) (i32.const 11)
    (i32.const 3) (i32.const 400) (i32.const 22)))
  (func (export "unlink") (result i32) (call $unlink (i32.const 4) (i32.const 400) (i32.const 22)))
  (func (export "prestat") (result i32) (call $prestat (i32.const 3) (i32.const 700)))
  (func (export "accept") (result i32) (call $accept (i32.const 3) (i32.const 0) (i32.const 700)))
  (func (export "alloc") (param i32) (result i32) (global.get $heap))
  (func (export "echo") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
            (i64.extend_i32_u (local.get 1))))
  (func (export "liar") (param i32 i32) (result i64) (i64.const 0x7fffffff7fffffff))
  (func (export "edge_liar") (param i32 i32) (result i64) (i64.const 0x0000ffff00000002))
  (func (export "boaster") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 64))) (i64.const 0x0000000000300000))
  (func (export "unended") (param i32 i32) (result i32)
    (memory.fill (i32.const 32768) (i32.const 1) (i32.const 32768)) (i32.const 32768))
  (func (export "number") (param i32) (result i32) (local.get 0)))
"""

SPIN_AT_START = '(module (func $s (loop $on (br $on))) (start $s) (func (export "f")))'
EXIT_AT_START = f"""(module (import {WASI} "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (func $s (call $exit (i32.const 9))) (start $s)
  (func (export "f")))"""
COMMAND = f"""(module (import {WASI} "proc_exit" (func $exit (param i32)))
  (import {WASI} "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (call $exit (CODE))))"""
TABLES = "(module " + "(table 1 funcref)" * 17 + '(func (export "f")))'
BAD_ALLOC = """(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) ANSWER)
  (func (export "f") (param i32 i32) (result i64) (i64.const 0)))"""
WRONG_IMPORT = f"""(module (import {WASI} "fd_write" (func (param f64))) (func (export "f")))"""


@functools.cache
def assembled(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def typed(
    export: str, *args: call_pb2.Value, wat: str = CABINET, says: str = "", **limits: int
) -> Act:
    """Call an export; `says` must be the output of whoever gets so far."""
    call = call_pb2.TypedCall(export=export, args=args)
    return _execute(wat, sandbox_pb2.ExecuteRequest(typed=call), limits, says.encode("latin-1"))


def bytes_call(export: str, data: bytes, wat: str = CABINET, convention: int = 0) -> Act:
    call = call_pb2.BytesCall(export=export, input=data, result_convention=convention)  # type: ignore[arg-type]
    return _execute(wat, sandbox_pb2.ExecuteRequest(bytes=call), {}, b"")


def command(wat: str) -> Act:
    return _execute(wat, sandbox_pb2.ExecuteRequest(wasi=call_pb2.WasiCommand()), {}, b"")


def _execute(
    wat: str, request: sandbox_pb2.ExecuteRequest, limits: dict[str, int], says: bytes
) -> Act:
    async def act(bench: Bench) -> str:
        request.digest = await bench.stored(assembled(wat))
        if limits:
            request.limits.CopyFrom(sandbox_pb2.Limits(**limits))
        response = await bench.execute(request)
        said = word(response)
        if said == "completed" and response.completed.results:
            said += f":{response.completed.results[0].i32}"
        if not response.stdout.startswith(says):
            said += " without its output"
        return said

    return act


def without_method(act: Act) -> Act:
    """For a guest that can be interrupted only between two long steps: either way is right."""

    async def acted(bench: Bench) -> str:
        return (await act(bench)).partition(":")[0]

    return acted


def i32(number: int) -> call_pb2.Value:
    return call_pb2.Value(i32=number)


def f64(number: float) -> call_pb2.Value:
    return call_pb2.Value(f64=number)


def _hung(export: str, says: str = "", wat: str = CABINET) -> Act:
    return typed(export, wat=wat, says=says, wall_time_ms=_LONG_MS)


INTERRUPTED, KILLED = "deadline:INTERRUPTED", "deadline:KILLED"
BAD_DESCRIPTOR = "completed:8"  # WASI's EBADF
NUL_TERMINATED = call_pb2.RESULT_CONVENTION_NUL_TERMINATED

HUNG = [
    Row("loop", INTERRUPTED, _hung("spin", "before\n")),
    Row("loop in the start function", INTERRUPTED, _hung("f", wat=SPIN_AT_START)),
    Row("memory.fill of 64 KiB, again and again", INTERRUPTED, _hung("fill")),
    Row("memory.fill of 250 MiB, again and again", "deadline", without_method(_hung("fill_huge"))),
    Row("memory.copy over itself", INTERRUPTED, _hung("copy")),
    Row("table.fill, again and again", INTERRUPTED, _hung("fill_table")),
    Row("poll_oneoff for a minute", KILLED, _hung("sleep", "before\n")),
    Row("poll_oneoff for 584 years", KILLED, _hung("sleep_forever")),
    Row("poll_oneoff on stdin, again and again", INTERRUPTED, _hung("poll_stdin")),
    Row("fd_read of stdin past its end, again and again", INTERRUPTED, _hung("read_stdin")),
    Row("random_get flood", INTERRUPTED, _hung("flood_random")),
    Row("sched_yield flood", INTERRUPTED, _hung("flood_yield")),
    Row("loop, with 40 ms of CPU", "cpu_time_exceeded:INTERRUPTED",
        typed("spin_quietly", cpu_time_ms=40)),
    Row("loop, with fuel for 10,000 steps", "limit:FUEL", typed("spin_quietly", fuel=10_000)),
    Row("loop, without a deadline", INTERRUPTED, typed("spin_quietly")),
    Row("loop, with a deadline in 292 million years", INTERRUPTED,
        typed("spin_quietly", wall_time_ms=2**63 - 1)),
]  # fmt: skip

MEMORY = [
    Row("memory.grow to the cap", "completed:-1", typed("grow")),
    Row("memory.grow, with 1 byte of memory limit", "limit:MEMORY", typed("grow", memory_bytes=1)),
    Row("4 GiB declared", "limit:MEMORY",
        typed("f", wat='(module (memory 65536) (func (export "f")))')),
    Row("17 tables", "limit:INSTANCE_COUNT", typed("f", wat=TABLES)),
    Row("10 million table elements", "limit:TABLE_ELEMENTS",
        typed("f", wat='(module (table 10000000 funcref) (func (export "f")))')),
]  # fmt: skip

TRAPS = [
    Row("endless recursion", "trapped:STACK_OVERFLOW", typed("recurse", call_pb2.Value(i64=0))),
    Row("unreachable", "trapped:UNREACHABLE", typed("unreachable", says="before\n")),
    Row("load outside memory", "trapped:MEMORY_OUT_OF_BOUNDS", typed("out_of_bounds")),
    Row("division by zero", "trapped:INTEGER_DIVISION_BY_ZERO", typed("divide")),
    Row("division that overflows", "trapped:INTEGER_OVERFLOW", typed("overflow", i32(-1))),
    Row("conversion of NaN", "trapped:BAD_CONVERSION_TO_INTEGER",
        typed("convert", f64(float("nan")))),
    Row("call of a null entry", "trapped:INDIRECT_CALL_TO_NULL", typed("call_null")),
    Row("call outside the table", "trapped:TABLE_OUT_OF_BOUNDS", typed("call_outside")),
    Row("call of another type", "trapped:BAD_SIGNATURE", typed("call_wrong")),
    Row("abort with a terminal escape", "trapped:ABORT", typed("abort")),
    Row("segment outside memory", "trapped:MEMORY_OUT_OF_BOUNDS", typed("f", wat=(
        '(module (memory 1) (data (i32.const 65535) "xx") (func (export "f")))'))),
]  # fmt: skip

ABI = [
    Row("import that is not there", "link_error:env.missing",
        typed("f", wat='(module (import "env" "missing" (func)) (func (export "f")))')),
    Row("import of another type", "link_error:wasi_snapshot_preview1.fd_write",
        typed("f", wat=WRONG_IMPORT)),
    Row("export that is not there", "INVALID_ARGUMENT/EXPORT_NOT_FOUND", typed("absent")),
    Row("export that is a memory", "INVALID_ARGUMENT/EXPORT_NOT_FOUND", typed("memory")),
    Row("too few arguments", "INVALID_ARGUMENT/ARGUMENT_MISMATCH", typed("number")),
    Row("arguments of another type", "INVALID_ARGUMENT/ARGUMENT_MISMATCH",
        typed("number", f64(1.0))),
    Row("result far outside memory", "host_error", bytes_call("liar", b"x")),
    Row("result across memory's end", "host_error", bytes_call("edge_liar", b"x")),
    Row("result larger than the output limit", "limit:OUTPUT", bytes_call("boaster", b"x")),
    Row("result without its NUL", "host_error", bytes_call("unended", b"x", CABINET,
                                                           NUL_TERMINATED)),
    Row("alloc returns 0", "host_error",
        bytes_call("f", b"x", BAD_ALLOC.replace("ANSWER", "(i32.const 0)"))),
    Row("alloc returns what is outside", "host_error",
        bytes_call("f", b"x", BAD_ALLOC.replace("ANSWER", "(i32.const -1)"))),
    Row("alloc traps", "trapped:UNREACHABLE",
        bytes_call("f", b"x", BAD_ALLOC.replace("ANSWER", "unreachable"))),
    Row("input larger than memory", "host_error", bytes_call("echo", b"x" * 100_000)),
    Row("log of what is outside", "host_error", typed("log_outside")),
    Row("fd_write of what is outside", "host_error", typed("write_outside")),
    Row("poll_oneoff to what is not aligned", "host_error", typed("poll_crooked")),
    Row("random_get to what is outside", "host_error", typed("random_outside")),
]  # fmt: skip

OUTPUT = [
    Row("stdout flood", "limit:OUTPUT", typed("flood_stdout", output_bytes=100_000)),
    Row("stderr flood", "limit:OUTPUT", typed("flood_stderr", output_bytes=100_000)),
    Row("log flood", "limit:OUTPUT", typed("flood_log")),
    Row("flood of empty log entries", "limit:OUTPUT", typed("flood_log_entries")),
    Row("output, with none allowed", "limit:OUTPUT", typed("unreachable", output_bytes=0)),
    Row("terminal escapes, NUL and bad UTF-8", "completed",
        typed("escapes", says="\x1b]0;x\x07\0\xff\xfe\x1b[2J\r\n")),
]  # fmt: skip

WASI_ROWS = [
    *(
        Row(f"proc_exit({code})", f"exited:{code}",
            command(COMMAND.replace("CODE", f"i32.const {code}")))
        for code in (0, 1, 125, 126, 255, 256, -1, 2**31 - 1)
    ),
    Row("proc_exit in a typed call", "exited:7", typed("wasi_exit", i32(7), says="before\n")),
    Row("proc_exit in the start function", "exited:9", typed("f", wat=EXIT_AT_START)),
    Row("path_open ../../../../etc/passwd", BAD_DESCRIPTOR, typed("climb")),
    Row("path_open /etc/passwd//// to create and truncate", BAD_DESCRIPTOR, typed("absolute")),
    Row("path_symlink", BAD_DESCRIPTOR, typed("symlink")),
    Row("path_unlink_file", BAD_DESCRIPTOR, typed("unlink")),
    Row("fd_prestat_get of the first preopen", BAD_DESCRIPTOR, typed("prestat")),
    Row("sock_accept", BAD_DESCRIPTOR, typed("accept")),
]  # fmt: skip

ROWS = [*HUNG, *MEMORY, *TRAPS, *ABI, *OUTPUT, *WASI_ROWS]
