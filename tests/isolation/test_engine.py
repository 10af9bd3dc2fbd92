"""The engine and the interpreter at work behind every wall."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.isolation.nursery_client import Nursery

Wasm = Callable[[str], bytes]

ARITHMETIC = """
(module
  (import "env" "log" (func $log (param i32)))
  (memory (export "memory") 1 100)
  (data (i32.const 8) "data for a copy-on-write image")
  (table (export "table") 4 funcref)
  (func (export "add") (param i32 i32) (result i32)
    (call $log (local.get 0))
    (i32.add (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "size") (result i32) (memory.size))
  (func $boom (export "boom") unreachable)
  (func (export "divide") (param i32 i32) (result i32)
    (i32.div_s (local.get 0) (local.get 1)))
  (func (export "outside") (result i32) (i32.load (i32.const 0x7ffffff0)))
  (func $deep (export "deep") (call $deep))
  (func (export "spin") (loop (br 0))))
"""
# Copies standard input to output, reads the clocks and random bytes, sleeps 2 ms, asks for
# what is not there, and exits with 3.
COMMAND = """
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_res_get" (func $resolution (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func $must (param i32) (if (local.get 0) (then unreachable)))
  (func (export "_start")
    (i32.store (i32.const 100) (i32.const 1024))
    (i32.store (i32.const 104) (i32.const 4096))
    (call $must (call $read (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 120)))
    (i32.store (i32.const 104) (i32.load (i32.const 120)))
    (call $must (call $write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 120)))
    (call $must (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 120)))
    (call $must (call $random (i32.const 300) (i32.const 16)))
    (call $must (call $clock (i32.const 0) (i64.const 1) (i32.const 400)))
    (call $must (call $clock (i32.const 1) (i64.const 1) (i32.const 400)))
    (call $must (call $resolution (i32.const 1) (i32.const 400)))
    (i64.store (i32.const 512) (i64.const 7))
    (i32.store (i32.const 528) (i32.const 1))
    (i64.store (i32.const 536) (i64.const 2000000))
    (call $must (call $poll (i32.const 512) (i32.const 600) (i32.const 1) (i32.const 120)))
    (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1)
        (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 120)))
      (then unreachable))
    (if (i32.eqz (call $prestat (i32.const 3) (i32.const 120))) (then unreachable))
    (call $must (call $stat (i32.const 1) (i32.const 704)))
    (call $must (call $env (i32.const 120) (i32.const 124)))
    (call $must (call $args (i32.const 120) (i32.const 124)))
    (call $must (call $yield))
    (call $exit (i32.const 3))))
"""


@pytest.fixture
def artifact(nursery: Nursery, wasm: Wasm) -> bytes:
    return bytes(nursery.run("compile_freely", wasm=wasm(ARITHMETIC)).value)


def test_typed_calls_work_in_fresh_instances(nursery: Nursery, artifact: bytes) -> None:
    answers = nursery.run(
        "call_export", artifact=artifact, export="add", arguments=[20, 22], times=3
    )
    assert answers.value == [42, 42, 42, 20, 20, 20]


@pytest.mark.parametrize(
    ("export", "arguments", "code", "function"),
    [
        ("boom", [], "UNREACHABLE", "boom"),
        ("divide", [1, 0], "INTEGER_DIVISION_BY_ZERO", None),
        ("outside", [], "MEMORY_OUT_OF_BOUNDS", None),
        ("deep", [], "STACK_OVERFLOW", "deep"),
    ],
)
def test_traps_are_caught_and_the_process_lives_on(
    nursery: Nursery,
    artifact: bytes,
    export: str,
    arguments: list[int],
    code: str,
    function: str | None,
) -> None:
    answers = nursery.run(
        "call_export", artifact=artifact, export=export, arguments=arguments, times=2
    ).value
    assert [answer[0] for answer in answers] == [code, code]
    assert function is None or answers[0][1][0] == function


def test_memory_grows_to_the_data_limit_and_no_further(nursery: Nursery, artifact: bytes) -> None:
    grown = nursery.run("call_export", artifact=artifact, export="grow", arguments=[50])
    assert grown.value == [1]


def test_memory_grow_past_the_data_limit_fails_cleanly(nursery: Nursery, wasm: Wasm) -> None:
    big = wasm(ARITHMETIC.replace('(memory (export "memory") 1 100)', "(memory 1)"))
    artifact = nursery.run("compile_freely", wasm=big).value
    grown = nursery.run("call_export", artifact=artifact, export="grow", arguments=[30000])
    assert grown.value == [-1]


@pytest.mark.parametrize("stdin", [b"", b"hello\n", bytes(range(256)) * 8])
def test_a_wasi_command_runs_twice(nursery: Nursery, wasm: Wasm, stdin: bytes) -> None:
    artifact = nursery.run("compile_freely", wasm=wasm(COMMAND)).value
    runs = nursery.run("run_command", artifact=artifact, stdin=stdin, times=2).value
    assert runs == [(stdin * 2, 3), (stdin * 2, 3)]


def test_a_thread_blocked_on_a_pipe_interrupts_a_spinning_guest(
    nursery: Nursery, artifact: bytes
) -> None:
    answer = nursery.run("interrupt_by_pipe", artifact=artifact, export="spin")
    assert answer.value == "INTERRUPT"


def test_a_module_that_came_in_as_a_descriptor_runs(nursery: Nursery, artifact: bytes) -> None:
    outcome = nursery.run("receive_module", artifact=artifact, export="size")
    assert outcome.value == 1


def test_a_locked_compiler_makes_what_a_locked_runner_runs(nursery: Nursery, wasm: Wasm) -> None:
    artifact = nursery.run("compile_locked", wasm=wasm(ARITHMETIC)).value
    assert artifact == nursery.run("compile_freely", wasm=wasm(ARITHMETIC)).value
    answers = nursery.run("call_export", artifact=artifact, export="add", arguments=[1, 2])
    assert answers.value == [3, 1]


def test_a_locked_compiler_reports_an_invalid_module(nursery: Nursery, wasm: Wasm) -> None:
    text = nursery.run("compile_error", wasm=wasm(ARITHMETIC)[:-3]).value
    assert "WasmtimeError" in text
    assert "offset" in text


def test_a_compiler_out_of_memory_aborts(nursery: Nursery, wasm: Wasm) -> None:
    functions = "".join(f"(func (result i32) (i32.const {n}))" for n in range(40000))
    outcome = nursery.run("compile_out_of_memory", wasm=wasm(f"(module {functions})"))
    assert outcome.killed_by == "SIGABRT"


def test_ordinary_python_works(nursery: Nursery) -> None:
    found = nursery.run("interpreter_at_work").value
    assert found.pop("late import") in {"ModuleNotFoundError", "PermissionError"}
    assert found == {
        "memory": 40 << 20,
        "traceback": "ValueError: xxxxxxxxxx",
        "threads": 300,
        "clocks": True,
        "repr": True,
        "random": 16,
        "deep": "RecursionError",
    }


@pytest.mark.parametrize(
    ("way", "status"),
    [
        ("exit", 7),
        ("abort", -6),
        ("crash", -11),
        ("free twice", -6),
        ("burn", -24),
    ],
)
def test_every_end_of_a_process_keeps_its_own_signal(
    nursery: Nursery, way: str, status: int
) -> None:
    assert nursery.run("end_by", way=way).status == status
