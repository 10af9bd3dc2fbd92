"""Execute: every way of calling, every outcome that a guest can have, and the receipt."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.daemon.calls import Caller, bytes_call, i32, i64, refused, typed, wasi

from sandboxd.v1 import admin_pb2, call_pb2, sandbox_pb2

MIB = 1 << 20
LANGUAGES = ("c", "assemblyscript")
PACKED, POINTER_LENGTH, NUL_TERMINATED, FIXED = 1, 2, 3, 4

WASI_GUEST = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (func $emit (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  ;; Arguments and variables to standard output, as they lie in memory, NULs and all; standard input
  ;; to standard error; then the exit code is the first byte of standard input.
  (func (export "_start")
    (drop (call $args_sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 1024) (i32.const 65536)))
    (call $emit (i32.const 1) (i32.const 65536) (i32.load (i32.const 20)))
    (drop (call $env_sizes (i32.const 16) (i32.const 20)))
    (drop (call $env (i32.const 1024) (i32.const 65536)))
    (call $emit (i32.const 1) (i32.const 65536) (i32.load (i32.const 20)))
    (i32.store (i32.const 0) (i32.const 131072))
    (i32.store (i32.const 4) (i32.const 65536))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 24)))
    (call $emit (i32.const 2) (i32.const 131072) (i32.load (i32.const 24)))
    (if (i32.load (i32.const 24))
      (then (call $exit (i32.load8_u (i32.const 131072)))))))
"""  # noqa: E501


def values(response: Any) -> list[float]:
    assert response.WhichOneof("outcome") == "completed", response
    return [getattr(item, item.WhichOneof("kind")) for item in response.completed.results]


# --- typed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [(20, 22, 42), (-1, 1, 0), (2**31 - 1, 1, -(2**31)), (-(2**31), -(2**31), 0)],
)
def test_integers_are_twos_complement(
    caller: Caller, sink: str, a: int, b: int, total: int
) -> None:
    assert values(caller.execute(typed(sink, "add", i32(a), i32(b)))) == [total]


def test_all_types_go_in_and_several_come_out(caller: Caller, sink: str) -> None:
    args = [
        call_pb2.Value(i32=-7),
        call_pb2.Value(i64=-(2**63)),
        call_pb2.Value(f32=0.5),
        call_pb2.Value(f64=1e308),
    ]
    response = caller.execute(typed(sink, "swap", *args))
    assert list(response.completed.results) == args[::-1]
    special = [i32(0), i64(0), call_pb2.Value(f32=-math.inf), call_pb2.Value(f64=math.nan)]
    nan, infinity, *_ = values(caller.execute(typed(sink, "swap", *special)))
    assert math.isnan(nan)
    assert infinity == -math.inf


def test_a_function_without_results_completes_empty(caller: Caller, sink: str) -> None:
    assert values(caller.execute(typed(sink, "log_hello"))) == []


@pytest.mark.parametrize(
    ("request_of", "reason", "field"),
    [
        (lambda d: typed(d, "nothing"), "EXPORT_NOT_FOUND", "typed.export"),
        (lambda d: typed(d, "memory"), "EXPORT_NOT_FOUND", "typed.export"),
        (lambda d: typed(d, "add", i32(1)), "ARGUMENT_MISMATCH", "typed.args"),
        (lambda d: typed(d, "add", i32(1), i64(1)), "ARGUMENT_MISMATCH", "typed.args[1]"),
        (lambda d: typed(d, ""), "INVALID_REQUEST", "typed.export"),
        (lambda d: typed("sha256:XY", "add"), "INVALID_REQUEST", "digest"),
        (lambda d: bytes_call(d, "add", b""), "ARGUMENT_MISMATCH", "bytes.export"),
        (lambda d: bytes_call(d, "echo", b"", FIXED, 4), "ARGUMENT_MISMATCH", "bytes.export"),
        (lambda d: typed(d, "add", wall_time_ms=0), "INVALID_REQUEST", "limits.wall_time_ms"),
        (lambda d: typed(d, "add", cpu_time_ms=0), "INVALID_REQUEST", "limits.cpu_time_ms"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused_with_reason_and_field(
    caller: Caller, sink: str, request_of: Callable[[str], Any], reason: str, field: str
) -> None:
    found = refused(caller.execute, request_of(sink))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (found.reason, found.field) == (reason, field)
    assert found.retry_after_ms is None


@pytest.mark.parametrize("char", ["\x01", "%", "\U0010ffff", "é"])
def test_a_refusal_that_quotes_a_long_name_still_reaches_the_client(
    caller: Caller, sink: str, char: str
) -> None:
    name = char * (1024 // len(char.encode()))
    for _ in range(5):  # a peer refuses overlong trailing metadata at random
        assert refused(caller.execute, typed(sink, name)).reason == "EXPORT_NOT_FOUND"


def test_a_module_that_is_not_stored_is_not_found(caller: Caller) -> None:
    digest = "sha256:" + "0" * 64
    found = refused(caller.execute, typed(digest, "add"))
    assert found.code is grpc.StatusCode.NOT_FOUND
    assert found.reason == "MODULE_NOT_FOUND"
    assert found.metadata == {"digest": digest}


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_bytes_go_in_and_come_out(caller: Caller, guests: Path, size: int) -> None:
    wasm = (guests / "assemblyscript" / "uppercase.wasm").read_bytes()
    data = os.urandom(size).replace(b"a", b"b")
    response = caller.execute(bytes_call(wasm, "uppercase", data))
    assert response.completed.output == data.upper()
    assert response.receipt.bytes_in == size
    assert response.receipt.bytes_out == size


def test_a_hostile_pointer_is_a_host_error(caller: Caller, sink: str) -> None:
    response = caller.execute(bytes_call(sink, "liar", b"x"))
    assert response.WhichOneof("outcome") == "host_error"
    assert response.host_error.message


@pytest.fixture(scope="module")
def daemon(start_daemon: Any) -> Iterator[Any]:
    """A daemon with so much grace that a busy machine does not turn an interrupt into a kill."""
    with start_daemon("--grace", "2s") as running:
        yield running


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run_guest(caller: Caller, path: Path, export: str, data: bytes, *how: int) -> bytes:
    response = caller.execute(bytes_call(path.read_bytes(), export, data, *how))
    assert response.WhichOneof("outcome") == "completed", response
    return response.completed.output


def test_the_example_guests_answer_bytes_calls(caller: Caller, guests: Path, language: str) -> None:
    folder = guests / language
    data = os.urandom(10_000)
    digest = run_guest(caller, folder / "sha256.wasm", "sha256", data, FIXED, 32)
    assert digest == hashlib.sha256(data).digest()
    document = {"a": [1, {}, "é"], "b": None}
    raw = json.dumps(document, ensure_ascii=False).encode()
    printed = run_guest(caller, folder / "json.wasm", "format", raw)
    assert json.loads(printed) == document
    assert printed.count(b"\n") > 3
    address = b"first.last@example.org"
    verdict = run_guest(caller, folder / "email.wasm", "validate", address, NUL_TERMINATED)
    assert verdict == b"valid"
    convention = POINTER_LENGTH if language == "c" else PACKED
    upper = run_guest(caller, folder / "uppercase.wasm", "uppercase", b"abcXYZ", convention)
    assert upper == b"ABCXYZ"
    header = b"".join(side.to_bytes(4, "little") for side in (2, 2, 1, 1))
    pixel = run_guest(caller, folder / "resize.wasm", "resize", header + b"\x10\x20\x30\xff" * 4)
    assert pixel == b"\x10\x20\x30\xff"


# --- WASI -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wasi_guest(wat: Callable[[str], bytes]) -> bytes:
    return wat(WASI_GUEST)


def test_a_command_gets_exactly_its_arguments_environment_and_input(
    caller: Caller, wasi_guest: bytes
) -> None:
    stdin = b"\0rest of input\xff"
    response = caller.execute(
        wasi(wasi_guest, "prog", "", "ä b", env={"A": "1", "B": "x=y"}, stdin=stdin)
    )
    assert response.WhichOneof("outcome") == "exited"
    assert response.exited.code == 0
    assert response.stdout == "prog\0\0ä b\0A=1\0B=x=y\0".encode()
    assert response.stderr == stdin
    receipt = response.receipt
    assert receipt.bytes_in == len("prog") + len("ä b".encode()) + 1 + 1 + 1 + 3 + len(stdin)
    assert receipt.bytes_out == len(response.stdout) + len(response.stderr)


def test_a_command_without_anything_gets_nothing(caller: Caller, wasi_guest: bytes) -> None:
    response = caller.execute(wasi(wasi_guest))
    assert (response.exited.code, response.stdout, response.stderr) == (0, b"", b"")


@pytest.mark.parametrize("code", [1, 2, 125, 126, 127, 128, 255])
def test_exit_codes_are_kept(caller: Caller, wasi_guest: bytes, code: int) -> None:
    response = caller.execute(wasi(wasi_guest, stdin=bytes([code])))
    assert response.exited.code == code


@pytest.mark.parametrize("code", [-1, 256, 2**31 - 1])
def test_exit_codes_beyond_a_byte_are_an_outcome_too(caller: Caller, sink: str, code: int) -> None:
    response = caller.execute(typed(sink, "exit", i32(code)))
    assert response.WhichOneof("outcome") == "exited"
    assert response.exited.code == code


def test_the_example_commands_run(caller: Caller, guests: Path, language: str) -> None:
    wasm = (guests / language / "word_count.wasm").read_bytes()
    response = caller.execute(wasi(wasm, "wc", stdin=b"two words\nand three more\n"))
    assert response.exited.code == 0
    assert response.stdout.split() == [b"2", b"5", b"25"]


def test_the_example_that_sleeps_sleeps(caller: Caller, guests: Path) -> None:
    wasm = (guests / "c" / "sleep.wasm").read_bytes()
    response = caller.execute(wasi(wasm, "sleep", "0"))
    assert response.exited.code == 0
    response = caller.execute(wasi(wasm, "sleep", "soon"))
    assert response.exited.code == 2


def test_the_example_that_never_ends_is_interrupted_with_its_name(
    caller: Caller, guests: Path, language: str
) -> None:
    wasm = (guests / language / "endless_loop.wasm").read_bytes()
    response = caller.execute(typed(wasm, "spin", wall_time_ms=1500))
    stop = response.deadline_exceeded.stop
    assert stop.method == sandbox_pb2.STOP_METHOD_INTERRUPTED, response
    assert any("spin" in frame.function_name for frame in stop.frames)


def test_only_a_command_is_run_as_one(caller: Caller, wat: Callable[[str], bytes]) -> None:
    found = refused(caller.execute, wasi(wat('(module (memory (export "memory") 1))')))
    assert (found.reason, found.field) == ("EXPORT_NOT_FOUND", "wasi")


# --- logs, traps and other ends -------------------------------------------------------------------

LOGGER = """
(module
  (import "env" "log" (func $i32 (param i32)))
  (import "env" "log" (func $i64 (param i64)))
  (import "env" "log" (func $f32 (param f32)))
  (import "env" "log" (func $f64 (param f64)))
  (import "env" "log" (func $bytes (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 8) "\\00\\ffhello\\1b[31m")
  (func (export "all")
    (call $i32 (i32.const -1)) (call $i64 (i64.const 1))
    (call $f32 (f32.const 0.5)) (call $f64 (f64.const 1e300))
    (call $bytes (i32.const 8) (i32.const 12)) (call $bytes (i32.const 0) (i32.const 0)))
  (func (export "outside") (call $bytes (i32.const 65536) (i32.const 1)))
  (func (export "flood") (loop $l (call $i32 (i32.const 0)) (br $l))))
"""

ABORTER = """
(module
  (import "env" "abort" (func $plain))
  (import "env" "abort" (func $full (param i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 4) "\\04\\00\\00\\00o\\00h\\00")
  (func (export "plain") (call $plain))
  (func (export "full")
    (call $full (i32.const 8) (i32.const 0) (i32.const 12) (i32.const 34))))
"""


def test_what_is_logged_comes_back_in_order(caller: Caller, wat: Callable[[str], bytes]) -> None:
    logger = wat(LOGGER)
    entries = caller.execute(typed(logger, "all")).logs.entries
    assert [entry.number for entry in entries[:4]] == [
        i32(-1), i64(1), call_pb2.Value(f32=0.5), call_pb2.Value(f64=1e300),
    ]  # fmt: skip
    assert [entry.message for entry in entries[4:]] == [b"\0\xffhello\x1b[31m"[:12], b""]
    assert caller.execute(typed(logger, "outside")).WhichOneof("outcome") == "host_error"
    flooded = caller.execute(typed(logger, "flood"))
    assert flooded.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT
    assert 0 < len(flooded.logs.entries) <= 1024


@pytest.mark.parametrize(("export", "words"), [("plain", "abort"), ("full", "abort: oh")])
def test_abort_is_a_trap_with_the_guests_message(
    caller: Caller, wat: Callable[[str], bytes], export: str, words: str
) -> None:
    response = caller.execute(typed(wat(ABORTER), export))
    assert response.trapped.code == call_pb2.TRAP_CODE_ABORT, response
    assert words in response.trapped.message


def test_a_trap_tells_its_code_and_where_it_was(caller: Caller, sink: str) -> None:
    trapped = caller.execute(typed(sink, "divide", i32(1), i32(0))).trapped
    assert trapped.code == call_pb2.TRAP_CODE_INTEGER_DIVISION_BY_ZERO
    assert trapped.frames[0].module_offset_bytes > 0
    response = caller.execute(typed(sink, "trap"))
    assert response.trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
    assert response.stdout == b"before\n"


def test_a_missing_import_is_a_link_error_that_names_it(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat('(module (import "host" "magic" (func)) (func (export "f")))')
    error = caller.execute(typed(wasm, "f")).link_error
    assert (error.module, error.name) == ("host", "magic")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("(memory 16384)", call_pb2.LIMIT_KIND_MEMORY),
        ("(table 10000000 funcref)", call_pb2.LIMIT_KIND_TABLE_ELEMENTS),
    ],
)
def test_what_a_module_declares_beyond_its_limits_is_limit_exceeded(
    caller: Caller, wat: Callable[[str], bytes], body: str, kind: int
) -> None:
    response = caller.execute(typed(wat(f'(module {body} (func (export "f")))'), "f"))
    assert response.limit_exceeded.kind == kind


def test_growing_beyond_the_limit_returns_minus_one(caller: Caller, sink: str) -> None:
    assert values(caller.execute(typed(sink, "grow", i32(9), memory_bytes=10 * 65536))) == [1]
    assert values(caller.execute(typed(sink, "grow", i32(10), memory_bytes=10 * 65536))) == [-1]


def test_a_flood_returns_what_the_limit_allows(caller: Caller, sink: str) -> None:
    response = caller.execute(typed(sink, "flood", output_bytes=10_000))
    assert response.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT
    assert 9_000 < len(response.stdout) <= 10_000


# --- processes ------------------------------------------------------------------------------------


def pids(daemon: Any, digest: str) -> set[int]:
    """Process ids of the runners of a module, those that are on their way out aside."""
    return {
        one.pid
        for one in daemon.status().runners
        if one.module_digest == digest and one.state != admin_pb2.RUNNER_STATE_DYING
    }


def test_a_process_is_reused_and_the_instance_is_not(
    daemon: Any, caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat("""(module (global $g (mut i32) (i32.const 0)) (memory (export "memory") 1)
      (func (export "remember") (param i32) (result i32)
        (i32.add (global.get $g) (i32.load (i32.const 0)))
        (global.set $g (local.get 0)) (i32.store (i32.const 0) (local.get 0))))""")
    digest = daemon.push(wasm)
    kinds = []
    for _ in range(5):
        response = caller.execute(typed(digest, "remember", i32(7)))
        assert values(response) == [0]
        kinds.append(response.receipt.start_kind)
    assert kinds[0] in (sandbox_pb2.START_KIND_SPARE, sandbox_pb2.START_KIND_COLD)
    assert kinds[1:] == [sandbox_pb2.START_KIND_REUSED] * 4
    assert len(pids(daemon, digest)) == 1


def test_inline_bytes_and_the_pushed_module_share_a_process(
    daemon: Any, caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat('(module (func (export "seven") (result i32) (i32.const 7)))')
    assert values(caller.execute(typed(wasm, "seven"))) == [7]
    found = refused(caller.execute, typed("sha256:" + hashlib.sha256(wasm).hexdigest(), "seven"))
    assert found.reason == "MODULE_NOT_FOUND", "inline bytes are not stored"
    response = caller.execute(typed(daemon.push(wasm), "seven"))
    assert response.receipt.start_kind == sandbox_pb2.START_KIND_REUSED


def test_a_fresh_call_gets_a_process_of_its_own_each_time(
    daemon: Any, caller: Caller, sink: str
) -> None:
    caller.execute(typed(sink, "add", i32(1), i32(1)))
    before = daemon.status().pool.started_total
    used = {one.pid for one in daemon.status().runners if one.executions}
    for _ in range(6):
        response = caller.execute(typed(sink, "add", i32(1), i32(1), fresh=True))
        assert values(response) == [2]
        assert response.receipt.start_kind in (
            sandbox_pb2.START_KIND_SPARE,
            sandbox_pb2.START_KIND_COLD,
            sandbox_pb2.START_KIND_LOADED,
        )
    status = daemon.wait_status(
        lambda status: status.pool.spare == 4 and status.pool.busy == status.pool.loading == 0
    )
    assert status.pool.started_total >= before + 6
    left = {one.pid for one in status.runners if one.executions}
    assert left <= used, "none of them was kept"


@pytest.mark.parametrize(
    "request_of",
    [
        lambda d: typed(d, "trap"),
        lambda d: bytes_call(d, "liar", b"x"),
        lambda d: typed(d, "flood", output_bytes=1000),
    ],
)
def test_a_process_that_did_not_end_clean_is_not_reused(
    daemon: Any, caller: Caller, sink: str, request_of: Callable[[str], Any]
) -> None:
    caller.execute(typed(sink, "add", i32(1), i32(1)))
    used = pids(daemon, sink)
    caller.execute(request_of(sink))
    daemon.wait_status(lambda status: used - {one.pid for one in status.runners})


# --- the receipt ----------------------------------------------------------------------------------


def test_the_receipt_adds_up(caller: Caller, sink: str) -> None:
    response = caller.execute(
        typed(sink, "spin", wall_time_ms=1000, fuel=20_000_000, cpu_time_ms=100_000)
    )
    assert response.limit_exceeded.kind == call_pb2.LIMIT_KIND_FUEL, response
    receipt = response.receipt
    assert receipt.module_digest == sink
    assert receipt.engine_version
    # The clock that the kernel accounts by ticks in steps.
    slack_ns = 20_000_000
    processors = os.cpu_count() or 1
    elapsed_ns = receipt.bind_time_ns + receipt.run_time_ns
    assert 0 < receipt.cpu_time_ns <= elapsed_ns * processors + slack_ns
    # What was measured on both sides of a busy machine agrees only as a whole.
    assert receipt.self_reported.run_time_ns <= elapsed_ns + slack_ns
    assert receipt.self_reported.fuel_consumed == 20_000_000
    assert receipt.self_reported.linear_memory_bytes == 65536
    assert receipt.peak_memory_bytes > MIB


def test_the_first_metered_call_compiles_a_variant_and_the_next_does_not(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat("""(module (func (export "count") (param i32)
      (loop $l (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))""")
    plain = caller.execute(typed(wasm, "count", i32(10))).receipt
    first = caller.execute(typed(wasm, "count", i32(10), fuel=1000)).receipt
    second = caller.execute(typed(wasm, "count", i32(20), fuel=1000)).receipt
    assert plain.compile_time_ns > 0
    assert first.compile_time_ns > 0
    assert second.compile_time_ns == 0
    assert second.bind_time_ns == 0
    assert not plain.self_reported.HasField("fuel_consumed")
    assert 0 < first.self_reported.fuel_consumed < second.self_reported.fuel_consumed < 1000


def test_peak_memory_grows_with_what_the_guest_touches(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat("""(module (memory (export "memory") 1) (func (export "touch") (param $pages i32)
      (drop (memory.grow (local.get $pages)))
      (memory.fill (i32.const 65536) (i32.const 1)
        (i32.mul (local.get $pages) (i32.const 65536)))))""")
    small = caller.execute(typed(wasm, "touch", i32(1), fresh=True)).receipt
    large = caller.execute(typed(wasm, "touch", i32(1000), fresh=True)).receipt
    assert large.peak_memory_bytes - small.peak_memory_bytes > 40 * MIB
    assert large.self_reported.linear_memory_bytes == 1001 * 65536


def test_limits_are_lowered_to_the_servers_maxima_and_told(caller: Caller, sink: str) -> None:
    most = 2**63
    request = typed(sink, "add", i32(1), i32(1))
    for name in ("wall_time_ms", "cpu_time_ms", "memory_bytes", "table_elements", "output_bytes"):
        setattr(request.limits, name, most)
    told = caller.execute(request).receipt.limits
    assert told.wall_time_ms == told.cpu_time_ms == 300_000
    assert told.memory_bytes == 512 * MIB
    assert told.table_elements == 1_000_000
    assert told.output_bytes == 2 * MIB
    assert not told.HasField("fuel")
    default = caller.execute(typed(sink, "add", i32(1), i32(1))).receipt.limits
    assert default.wall_time_ms == 10_000
    assert default.memory_bytes == 256 * MIB


def test_status_counts_what_was_answered(daemon: Any, caller: Caller, sink: str) -> None:
    def counts() -> dict[str, int]:
        return {entry.name: entry.count for entry in daemon.status().outcomes}

    before = counts()
    caller.execute(typed(sink, "add", i32(1), i32(1)))
    caller.execute(typed(sink, "trap"))
    refused(caller.execute, typed(sink, "nothing"))
    after = counts()
    for name in ("completed", "trapped", "EXPORT_NOT_FOUND"):
        assert after[name] == before.get(name, 0) + 1
    latency = daemon.status().latency
    assert 0 < latency.p50_ns <= latency.p90_ns <= latency.p99_ns <= latency.max_ns
    outcomes = sum(entry.count for entry in daemon.status().outcomes if not entry.fault)
    assert latency.count == outcomes


def test_every_layer_of_isolation_is_listed_and_told(daemon: Any) -> None:
    layers = {layer.name: layer for layer in daemon.status().layers}
    assert {"seccomp", "landlock", "rlimits", "no-new-privs", "namespaces"} <= set(layers)
    assert all(layer.detail for layer in layers.values())
