import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runner.conftest import Bind, Bound, numbers

from sandboxd.runner.call import MAX_LOG_ENTRIES
from sandboxd.v1 import call_pb2

OUTPUT = call_pb2.LIMIT_KIND_OUTPUT
u32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 4, 65532, 65535, 65536, 2**31, 2**32 - 1])

LOG_BYTES = """
(module
  (import "env" "log" (func $log (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "hello\\00\\ff\\1b[2J")
  (func (export "log") (param i32 i32) (call $log (local.get 0) (local.get 1)))
  (func (export "flood") (param i32) (loop (call $log (i32.const 0) (local.get 0)) (br 0))))
"""

ABORT = """
(module
  (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 12) "\\0c\\00\\00\\00h\\00i\\00 \\00\\3d\\d8\\00\\deX\\00")
  (data (i32.const 44) "\\08\\00\\00\\00a\\00.\\00t\\00s\\00")
  (data (i32.const 60) "\\02\\00\\00\\00\\00\\d8")
  (data (i32.const 68) "\\ff\\ff\\ff\\ff")
  (data (i32.const 65532) "\\01\\00\\00\\00")
  (func $f (export "abort") (param i32 i32 i32 i32)
    (call $abort (local.get 0) (local.get 1) (local.get 2) (local.get 3))))
"""


@pytest.fixture(scope="module")
def log_bytes(bind: Bind) -> Bound:
    return bind(LOG_BYTES)


@pytest.fixture(scope="module")
def aborting(bind: Bind) -> Bound:
    return bind(ABORT)


@pytest.mark.parametrize(
    ("type_", "constant", "number"),
    [
        ("i32", "0x80000000", -(2**31)),
        ("i64", "-1", -1),
        ("f32", "0.5", 0.5),
        ("f64", "-inf", -math.inf),
    ],
)
def test_log_of_a_number_keeps_its_type(
    bind: Bind, type_: str, constant: str, number: float
) -> None:
    module = bind(f"""
      (module (import "env" "log" (func $log (param {type_})))
        (func (export "f") (call $log ({type_}.const {constant}))))
    """)
    assert numbers(module.typed("f")) == []
    (entry,) = module.logs
    assert entry.number.WhichOneof("kind") == type_
    assert getattr(entry.number, type_) == number


def test_log_of_bytes_keeps_them_as_they_are(log_bytes: Bound) -> None:
    log_bytes.typed("log", ("i32", 0), ("i32", 11))
    assert [entry.message for entry in log_bytes.logs] == [b"hello\0\xff\x1b[2J"]


def test_one_module_may_import_log_in_several_forms(bind: Bind) -> None:
    module = bind("""
      (module
        (import "env" "log" (func $int (param i32)))
        (import "env" "log" (func $float (param f64)))
        (import "env" "log" (func $again (param i32)))
        (import "env" "log" (func $bytes (param i32 i32)))
        (import "env" "abort" (func $abort))
        (memory (export "memory") 1)
        (data (i32.const 8) "abc")
        (func (export "f")
          (call $int (i32.const 1)) (call $float (f64.const 2)) (call $again (i32.const 3))
          (call $bytes (i32.const 8) (i32.const 3)) (call $abort)))
    """)
    for _ in range(2):
        assert module.typed("f").trapped.code == call_pb2.TRAP_CODE_ABORT
        one, two, three, text = module.logs
        assert (one.number.i32, two.number.f64, three.number.i32) == (1, 2, 3)
        assert text.message == b"abc"


@settings(max_examples=100, deadline=None)
@given(pointer=u32, length=u32)
def test_any_pointer_and_length_logs_bytes_or_is_one_typed_failure(
    log_bytes: Bound, pointer: int, length: int
) -> None:
    signed = struct.unpack("<2i", struct.pack("<2I", pointer, length))
    result = log_bytes.typed("log", ("i32", signed[0]), ("i32", signed[1]))
    if length == 0 or pointer + length <= 65536:
        assert numbers(result) == []
        assert len(log_bytes.logs[0].message) == length
    else:
        assert "outside" in result.host_error.message
        assert log_bytes.logs == []


def test_bytes_cannot_be_logged_without_an_exported_memory(bind: Bind) -> None:
    module = bind("""
      (module (import "env" "log" (func $log (param i32 i32))) (memory 1)
        (func (export "f") (call $log (i32.const 0) (i32.const 1)))
        (global (export "memory") i32 (i32.const 0)))
    """)
    assert "memory" in module.typed("f").host_error.message


def test_log_works_in_the_start_function(bind: Bind) -> None:
    module = bind("""
      (module (import "env" "log" (func $log (param i32 i32))) (memory (export "memory") 1)
        (data (i32.const 0) "start")
        (func $s (call $log (i32.const 0) (i32.const 5))) (start $s) (func (export "f")))
    """)
    assert numbers(module.typed("f")) == []
    assert [entry.message for entry in module.logs] == [b"start"]


def test_the_start_function_may_be_an_import(bind: Bind) -> None:
    module = bind("""
      (module (import "env" "abort" (func $a)) (start $a) (func (export "f")))
    """)
    assert module.typed("f").trapped.code == call_pb2.TRAP_CODE_ABORT


def test_a_log_flood_ends_at_the_most_entries(log_bytes: Bound) -> None:
    result = log_bytes.typed("flood", ("i32", 0))
    assert result.limit_exceeded.kind == OUTPUT
    assert result.limit_exceeded.frames
    assert len(log_bytes.logs) == MAX_LOG_ENTRIES


def test_each_entry_counts_sixteen_bytes_and_its_message(log_bytes: Bound) -> None:
    result = log_bytes.typed("flood", ("i32", 84), output_bytes=1000)
    assert result.limit_exceeded.kind == OUTPUT
    assert len(log_bytes.logs) == 10
    result = log_bytes.typed("flood", ("i32", 84), output_bytes=999)
    assert len(log_bytes.logs) == 9


def test_an_outbox_smaller_than_the_limit_ends_the_guest_too(bind: Bind) -> None:
    module = bind(LOG_BYTES, outbox_bytes=4096 + 4 * 1000)
    result = module.typed("flood", ("i32", 92))
    assert result.limit_exceeded.kind == OUTPUT
    assert len(module.logs) == 10


def test_logs_of_one_call_are_gone_in_the_next(log_bytes: Bound) -> None:
    log_bytes.typed("log", ("i32", 0), ("i32", 5))
    log_bytes.typed("log", ("i32", 1), ("i32", 1))
    assert [entry.message for entry in log_bytes.logs] == [b"e"]


def test_abort_without_parameters_is_a_trap(bind: Bind) -> None:
    module = bind("""
      (module (import "env" "abort" (func $a)) (func $f (export "f") (call $a) (loop (br 0))))
    """)
    trapped = module.typed("f").trapped
    assert trapped.code == call_pb2.TRAP_CODE_ABORT
    assert [frame.function_name for frame in trapped.frames] == ["f"]


def test_an_assemblyscript_abort_brings_its_message(aborting: Bound) -> None:
    trapped = aborting.typed("abort", ("i32", 16), ("i32", 48), ("i32", 3), ("i32", 7)).trapped
    assert trapped.code == call_pb2.TRAP_CODE_ABORT
    assert trapped.message == "the guest called abort: hi \U0001f600X (a.ts:3:7)"
    assert trapped.frames[0].function_name == "f"


@pytest.mark.parametrize("pointer", [0, 1, 3, 72, 65535, 65536, 65537, -1, -4, -(2**31)])
def test_an_abort_with_a_bad_string_is_a_trap_without_it(aborting: Bound, pointer: int) -> None:
    trapped = aborting.typed("abort", *[("i32", pointer)] * 4).trapped
    assert trapped.code == call_pb2.TRAP_CODE_ABORT
    assert trapped.message == "the guest called abort"


def test_an_abort_with_half_a_surrogate_is_still_text(aborting: Bound) -> None:
    trapped = aborting.typed("abort", ("i32", 64), ("i32", 0), ("i32", 0), ("i32", 0)).trapped
    assert trapped.message == "the guest called abort: \ufffd"


@settings(max_examples=60, deadline=None)
@given(pointers=st.tuples(u32, u32, u32, u32))
def test_any_abort_is_a_trap(aborting: Bound, pointers: tuple[int, int, int, int]) -> None:
    signed = struct.unpack("<4i", struct.pack("<4I", *pointers))
    result = aborting.typed("abort", *[("i32", pointer) for pointer in signed])
    assert result.trapped.code == call_pb2.TRAP_CODE_ABORT


@pytest.mark.parametrize(
    ("item", "module", "name"),
    [
        ('(import "env" "missing" (func))', "env", "missing"),
        ('(import "other" "log" (func (param i32)))', "other", "log"),
        ('(import "env" "log" (func (param i32) (result i32)))', "env", "log"),
        ('(import "env" "log" (func))', "env", "log"),
        ('(import "env" "log" (func (param v128)))', "env", "log"),
        ('(import "env" "log" (global i32))', "env", "log"),
        ('(import "env" "abort" (func (param i32)))', "env", "abort"),
        ('(import "env" "memory" (memory 1))', "env", "memory"),
        ('(import "js" "table" (table 1 externref))', "js", "table"),
        ('(import "wasi_snapshot_preview1" "nothing" (func))', "wasi_snapshot_preview1", "nothing"),
        (
            '(import "wasi_snapshot_preview1" "fd_write" (func))',
            "wasi_snapshot_preview1",
            "fd_write",
        ),
        (
            '(import "wasi_snapshot_preview1" "fd_read" (memory 1))',
            "wasi_snapshot_preview1",
            "fd_read",
        ),
        (
            '(import "wasi_snapshot_preview1" "proc_exit" (func))',
            "wasi_snapshot_preview1",
            "proc_exit",
        ),
        ('(import "wasi_unstable" "fd_write" (func))', "wasi_unstable", "fd_write"),
        ('(import "" "\\00\\1b[2J" (func))', "", "\0\x1b[2J"),
    ],
)
def test_an_import_that_the_host_lacks_is_a_link_error_that_names_it(
    bind: Bind, item: str, module: str, name: str
) -> None:
    bound = bind(f'(module (import "env" "abort" (func)) {item} (func (export "f")))')
    for _ in range(2):
        error = bound.typed("f").link_error
        assert (error.module, error.name) == (module, name)
        assert error.message


def test_a_bug_in_a_host_function_is_raised_and_not_blamed_on_the_guest(
    log_bytes: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_entry: bytes) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(log_bytes.outbox, "append_log", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        log_bytes.typed("log", ("i32", 0), ("i32", 5))


def test_an_abort_message_cannot_carry_terminal_escapes(bind: Bind) -> None:
    module = bind("""
      (module
        (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 12) "\\06\\00\\00\\00\\1b\\00[\\00m\\00")
        (func (export "f")
          (call $abort (i32.const 16) (i32.const 0) (i32.const 0) (i32.const 0))))
    """)
    assert module.typed("f").trapped.message == "the guest called abort: \ufffd[m"


def test_a_link_error_is_found_beside_several_forms_of_log(bind: Bind) -> None:
    bound = bind("""
      (module (import "env" "log" (func (param i32))) (import "env" "log" (func (param i64)))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32)))
        (func (export "f")))
    """)
    assert bound.typed("f").link_error.name == "fd_write"


def test_a_call_that_does_not_fit_is_rejected_before_linking(bind: Bind) -> None:
    bound = bind('(module (import "env" "missing" (func)) (func (export "f")))')
    assert bound.typed("absent").rejected.field == "typed.export"
