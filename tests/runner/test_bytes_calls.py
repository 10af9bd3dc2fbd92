import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runner.conftest import MIB, Bind, Bound

from sandboxd.v1 import call_pb2

# The guest answers with whatever pointer and length its input spells, so a test can make any claim.
# Input: u32 pointer, u32 length, then bytes; `alloc` always hands out 1024.
LIAR = """
(module
  (memory (export "memory") 2)
  (data (i32.const 131064) "\\01\\02\\03\\04\\05\\06\\07\\00")
  (global $freed (mut i64) (i64.const -1))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "packed") (param i32 i32) (result i64)
    (i64.or
      (i64.shl (i64.load32_u (i32.const 1024)) (i64.const 32))
      (i64.load32_u (i32.const 1028))))
  (func (export "pair") (param i32 i32) (result i32 i32)
    (i32.load (i32.const 1024)) (i32.load (i32.const 1028)))
  (func (export "single") (param i32 i32) (result i32) (i32.load (i32.const 1024)))
  (func (export "wrong") (param i32) (result i32) (i32.const 0)))
"""
SIZE = 2 * 65536

# Echoes its input, and logs what it is told to take back.
ECHO = """
(module
  (import "env" "log" (func $log (param i64)))
  (memory (export "memory") 2)
  (func (export "alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "dealloc") (param i32 i32)
    (call $log (i64.or
      (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))
  (func (export "packed") (param i32 i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1))))
  (func (export "pair") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1))
  (func (export "single") (param i32 i32) (result i32) (local.get 0)))
"""

u32 = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 1, SIZE - 8, SIZE - 1, SIZE, SIZE + 1, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1]
)


@pytest.fixture(scope="module")
def liar(bind: Bind) -> Bound:
    return bind(LIAR)


@pytest.fixture(scope="module")
def echo(bind: Bind) -> Bound:
    return bind(ECHO)


def claim(pointer: int, length: int) -> bytes:
    return pointer.to_bytes(4, "little") + length.to_bytes(4, "little")


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4, b"\xff" * 60_000])
def test_packed_and_pair_results_bring_the_bytes_back(echo: Bound, data: bytes) -> None:
    assert echo.call_bytes("packed", data).completed.output == data
    assert echo.call_bytes("packed", data, "PACKED_I64").completed.output == data
    assert echo.call_bytes("pair", data, "POINTER_LENGTH").completed.output == data


def test_a_nul_terminated_result_ends_before_the_nul(echo: Bound) -> None:
    assert echo.call_bytes("single", b"abc\0def", "NUL_TERMINATED").completed.output == b"abc"
    assert echo.call_bytes("single", b"\0", "NUL_TERMINATED").completed.output == b""


def test_a_fixed_length_result_has_that_length(echo: Bound) -> None:
    assert echo.call_bytes("single", b"abcdef", "FIXED_LENGTH", 4).completed.output == b"abcd"
    assert echo.call_bytes("single", b"abcdef", "FIXED_LENGTH", 0).completed.output == b""


def test_a_result_is_given_back_with_its_length_and_an_empty_one_is_not(echo: Bound) -> None:
    def freed() -> list[tuple[int, int]]:
        return [(e.number.i64 >> 32, e.number.i64 & 0xFFFFFFFF) for e in echo.logs]

    echo.call_bytes("packed", b"abc")
    assert freed() == [(4096, 3)]
    echo.call_bytes("single", b"abc\0", "NUL_TERMINATED")
    assert freed() == [(4096, 4)]
    echo.call_bytes("packed", b"")
    assert freed() == []


@settings(max_examples=150, deadline=None)
@given(pointer=u32, length=u32, pair=st.booleans())
def test_any_claimed_range_is_a_result_or_one_typed_failure(
    liar: Bound, pointer: int, length: int, pair: bool
) -> None:
    if pair:
        result = liar.call_bytes("pair", claim(pointer, length), "POINTER_LENGTH")
    else:
        result = liar.call_bytes("packed", claim(pointer, length))
    if length == 0 or pointer + length <= SIZE:
        assert len(result.completed.output) == length
    else:
        assert "outside" in result.host_error.message


@settings(max_examples=100, deadline=None)
@given(pointer=u32, length=u32)
def test_any_pointer_to_a_fixed_length_is_a_result_or_one_typed_failure(
    liar: Bound, pointer: int, length: int
) -> None:
    result = liar.call_bytes("single", claim(pointer, 0), "FIXED_LENGTH", length)
    if length == 0 or pointer + length <= SIZE:
        assert len(result.completed.output) == length
    else:
        assert "outside" in result.host_error.message


@settings(max_examples=100, deadline=None)
@given(pointer=u32)
def test_any_pointer_to_a_terminated_string_is_a_result_or_one_typed_failure(
    liar: Bound, pointer: int
) -> None:
    result = liar.call_bytes("single", claim(pointer, 0), "NUL_TERMINATED")
    assert result.WhichOneof("outcome") == ("completed" if pointer < SIZE else "host_error")


def test_a_string_without_a_nul_before_the_end_of_memory_is_a_host_error(bind: Bind) -> None:
    module = bind("""
      (module (memory (export "memory") 1)
        (func (export "alloc") (param i32) (result i32) (i32.const 16))
        (func (export "f") (param i32 i32) (result i32)
          (memory.fill (i32.const 65000) (i32.const 65) (i32.const 536)) (i32.const 65001)))
    """)
    assert "NUL" in module.call_bytes("f", b"", "NUL_TERMINATED").host_error.message
    short = module.call_bytes("f", b"", "NUL_TERMINATED", output_bytes=100)
    assert short.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT


def test_a_result_may_use_the_output_limit_up_and_not_more(echo: Bound) -> None:
    data = b"x" * 1000
    # One log entry of a number comes from dealloc.
    assert echo.call_bytes("packed", data, output_bytes=1016).completed.output == data
    for convention, export in (("PACKED_I64", "packed"), ("POINTER_LENGTH", "pair")):
        result = echo.call_bytes(export, data, convention, output_bytes=999)
        assert result.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT
    result = echo.call_bytes("single", data + b"\0", "NUL_TERMINATED", output_bytes=999)
    assert result.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT
    result = echo.call_bytes("single", data, "FIXED_LENGTH", 1000, output_bytes=999)
    assert result.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT


def test_a_huge_claim_under_a_huge_limit_is_still_bounded(bind: Bind) -> None:
    module = bind("""
      (module (memory (export "memory") 1)
        (func (export "alloc") (param i32) (result i32) (i32.const 16))
        (func (export "f") (param i32 i32) (result i32 i32) (i32.const 0) (i32.const -1)))
    """)
    result = module.call_bytes(
        "f", b"", "POINTER_LENGTH", output_bytes=2**63, memory_bytes=2**64 - 1
    )
    assert "outside" in result.host_error.message


@pytest.mark.parametrize("pointer", [65536 - 4, 65536, 2**31, 2**32 - 1, 2**32 - 5])
def test_an_input_buffer_outside_memory_is_a_host_error(bind: Bind, pointer: int) -> None:
    module = bind(f"""
      (module (memory (export "memory") 1)
        (func (export "alloc") (param i32) (result i32) (i32.const {pointer}))
        (func (export "f") (param i32 i32) (result i64) (i64.const 0)))
    """)
    assert "input buffer" in module.call_bytes("f", b"12345").host_error.message
    # Nothing is written for an empty input, so nothing can be outside.
    assert module.call_bytes("f", b"").completed.output == b""


def test_an_alloc_that_returns_null_is_a_host_error_unless_nothing_was_asked(bind: Bind) -> None:
    module = bind("""
      (module (memory (export "memory") 1)
        (func (export "alloc") (param i32) (result i32) (i32.const 0))
        (func (export "f") (param i32 i32) (result i64) (i64.const 0)))
    """)
    assert "alloc" in module.call_bytes("f", b"x").host_error.message
    assert module.call_bytes("f", b"").WhichOneof("outcome") == "completed"


def test_a_memory_that_grows_in_alloc_and_in_the_call_is_read_where_it_is(bind: Bind) -> None:
    module = bind("""
      (module (memory (export "memory") 1)
        (func (export "alloc") (param i32) (result i32)
          (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
        (func (export "f") (param i32 i32) (result i64)
          (drop (memory.grow (i32.const 1)))
          (memory.copy (i32.const 131072) (local.get 0) (local.get 1))
          (i64.or (i64.shl (i64.const 131072) (i64.const 32))
                  (i64.extend_i32_u (local.get 1)))))
    """)
    result = module.call_bytes("f", b"hello")
    assert result.completed.output == b"hello"
    assert result.linear_memory_bytes == 3 * 65536


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ('(func (export "alloc") (param i32) (result i32) (i32.const 8))', "memory"),
        ('(memory (export "memory") 1)', "alloc"),
        ('(memory (export "memory") 1) (func (export "alloc") (param i32))', "alloc"),
        ('(memory (export "memory") 1) (global (export "alloc") i32 (i32.const 1))', "alloc"),
        (
            '(memory (export "memory") 1)'
            '(func (export "alloc") (param i32) (result i32) (i32.const 8))'
            '(func (export "dealloc") (param i32))',
            "dealloc",
        ),
        (
            '(global (export "memory") i32 (i32.const 1))'
            '(func (export "alloc") (param i32) (result i32) (i32.const 8))',
            "memory",
        ),
    ],
)
def test_a_module_without_the_plugin_abi_is_a_host_error(
    bind: Bind, fields: str, named: str
) -> None:
    module = bind(
        f'(module {fields} (func (export "f") (param i32 i32) (result i64) (i64.const 0)))'
    )
    assert named in module.call_bytes("f").host_error.message


@pytest.mark.parametrize(
    ("export", "convention"),
    [
        ("absent", "PACKED_I64"),
        ("memory", "PACKED_I64"),
        ("wrong", "FIXED_LENGTH"),
        ("single", "PACKED_I64"),
        ("packed", "POINTER_LENGTH"),
        ("pair", "NUL_TERMINATED"),
        ("packed", "FIXED_LENGTH"),
    ],
)
def test_an_export_must_fit_the_convention(liar: Bound, export: str, convention: str) -> None:
    assert liar.call_bytes(export, b"", convention).rejected.field == "bytes.export"


def test_an_unknown_convention_is_rejected(liar: Bound) -> None:
    call = call_pb2.BytesCall(export="packed", result_convention=99)  # type: ignore[arg-type]
    assert liar.run(bytes=call).rejected.field == "bytes.result_convention"


@pytest.mark.parametrize("trapping", ["alloc", "f", "dealloc"])
def test_a_trap_in_any_step_is_a_trap(bind: Bind, trapping: str) -> None:
    def body(name: str, ordinary: str) -> str:
        return "unreachable" if name == trapping else ordinary

    module = bind(f"""
      (module (memory (export "memory") 1)
        (func $alloc (export "alloc") (param i32) (result i32) {body("alloc", "(i32.const 8)")})
        (func $dealloc (export "dealloc") (param i32 i32) {body("dealloc", "")})
        (func $f (export "f") (param i32 i32) (result i64)
          {body("f", "(i64.const 0x0000000800000001)")}))
    """)
    trapped = module.call_bytes("f", b"x").trapped
    assert trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
    assert trapped.frames[0].function_name == trapping


def test_a_megabyte_goes_through(bind: Bind) -> None:
    module = bind(ECHO.replace('"memory") 2', '"memory") 40'))
    data = bytes(range(256)) * (MIB // 256)
    result = module.call_bytes("packed", data, output_bytes=2 * MIB)
    assert result.completed.output == data
