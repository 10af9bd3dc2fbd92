import pytest
from tests.runner.conftest import Bind, Bound

from sandboxd.runner.outcomes import MAX_FRAMES, MAX_FUNCTION_NAME_CHARS, MAX_MESSAGE_BYTES
from sandboxd.v1 import call_pb2

MODULE = """
(module
  (memory 1)
  (type $v (func))
  (type $i (func (result i32)))
  (table 4 funcref)
  (table $ext 1 externref)
  (func $number (result i32) (i32.const 1))
  (elem (table 0) (i32.const 1) func $number)
  (func $overflow (export "STACK_OVERFLOW") (call $overflow))
  (func (export "MEMORY_OUT_OF_BOUNDS") (drop (i32.load (i32.const 65533))))
  (func (export "TABLE_OUT_OF_BOUNDS") (call_indirect 0 (type $v) (i32.const 4)))
  (func (export "INDIRECT_CALL_TO_NULL") (call_indirect 0 (type $v) (i32.const 0)))
  (func (export "BAD_SIGNATURE") (call_indirect 0 (type $v) (i32.const 1)))
  (func (export "INTEGER_OVERFLOW")
    (drop (i32.div_s (i32.const 0x80000000) (i32.const -1))))
  (func (export "INTEGER_DIVISION_BY_ZERO") (drop (i32.div_u (i32.const 1) (i32.const 0))))
  (func (export "BAD_CONVERSION_TO_INTEGER") (drop (i32.trunc_f32_s (f32.const nan))))
  (func $outer (export "UNREACHABLE") (call $inner))
  (func $inner unreachable)
  (func $unnamed_caller (export "unnamed") (call 12))
  (func unreachable))
"""

CODES = [
    "STACK_OVERFLOW",
    "MEMORY_OUT_OF_BOUNDS",
    "TABLE_OUT_OF_BOUNDS",
    "INDIRECT_CALL_TO_NULL",
    "BAD_SIGNATURE",
    "INTEGER_OVERFLOW",
    "INTEGER_DIVISION_BY_ZERO",
    "BAD_CONVERSION_TO_INTEGER",
    "UNREACHABLE",
]


@pytest.fixture(scope="module")
def module(bind: Bind) -> Bound:
    return bind(MODULE)


@pytest.mark.parametrize("code", CODES)
def test_every_trap_has_its_stable_code_each_time(module: Bound, code: str) -> None:
    first, second = (module.typed(code).trapped for _ in range(2))
    assert call_pb2.TrapCode.Name(first.code) == f"TRAP_CODE_{code}"
    assert first == second
    assert 0 < len(first.message) < 200
    assert "\n" not in first.message
    assert first.frames


def test_a_backtrace_names_functions_and_offsets_innermost_first(module: Bound) -> None:
    inner, outer = module.typed("UNREACHABLE").trapped.frames
    assert (inner.function_name, outer.function_name) == ("inner", "outer")
    assert outer.function_index + 1 == inner.function_index
    assert outer.module_offset_bytes < inner.module_offset_bytes < 1000
    assert outer.function_offset_bytes > 0


def test_a_function_without_a_name_has_an_empty_one(module: Bound) -> None:
    frames = module.typed("unnamed").trapped.frames
    assert [frame.function_name for frame in frames] == ["", "unnamed_caller"]


def test_a_deep_recursion_has_a_bounded_backtrace(module: Bound) -> None:
    assert 10 < len(module.typed("STACK_OVERFLOW").trapped.frames) <= MAX_FRAMES


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 100_000, "x" * MAX_FUNCTION_NAME_CHARS),
        ("\U0001f600" * 5000, "\U0001f600" * MAX_FUNCTION_NAME_CHARS),
        (
            "\\1b[2J\\00\\0a\\0aCaused by:\\0a    wasm trap: interrupt",
            "\ufffd[2J\ufffd\ufffd\ufffdCaused by:\ufffd    wasm trap: interrupt",
        ),
        ("a" * 255 + "\u20ac" * 400, "a" * 255 + "\u20ac"),
    ],
)
def test_a_hostile_function_name_is_cut_and_stays_out_of_the_message(
    bind: Bind, name: str, kept: str
) -> None:
    module = bind(f"""
      (module
        (func $f (@name "{name}") (export "f") (call $g))
        (func $g (@name "{name}") unreachable))
    """)
    trapped = module.typed("f").trapped
    assert trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
    assert trapped.message == "wasm `unreachable` instruction executed"
    assert [frame.function_name for frame in trapped.frames] == [kept, kept]


def test_a_trap_in_the_start_function_is_a_trap_with_a_backtrace(bind: Bind) -> None:
    module = bind('(module (func $s unreachable) (start $s) (func (export "f")))')
    trapped = module.typed("f").trapped
    assert trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
    assert trapped.frames[0].function_name == "s"


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ('(memory 1) (data (i32.const 65536) "x")', call_pb2.TRAP_CODE_MEMORY_OUT_OF_BOUNDS),
        (
            "(table 1 funcref) (func $g) (elem (i32.const 1) $g)",
            call_pb2.TRAP_CODE_TABLE_OUT_OF_BOUNDS,
        ),
    ],
)
def test_a_segment_outside_its_memory_or_table_is_a_trap(
    bind: Bind, field: str, code: call_pb2.TrapCode.ValueType
) -> None:
    assert bind(f'(module {field} (func (export "f")))').typed("f").trapped.code == code


def test_messages_are_at_most_four_kibibytes(bind: Bind) -> None:
    module = bind("""
      (module
        (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
        (memory (export "memory") 3)
        (func (export "f")
          (i32.store (i32.const 16) (i32.const 100000))
          (memory.fill (i32.const 20) (i32.const 0x4e) (i32.const 100000))
          (call $abort (i32.const 20) (i32.const 20) (i32.const 1) (i32.const 2))))
    """)
    message = module.typed("f").trapped.message
    assert 4000 < len(message.encode()) <= MAX_MESSAGE_BYTES
