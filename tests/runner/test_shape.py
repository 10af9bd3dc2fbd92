"""Limits on the shape of a module, and that the walk agrees with the engine about the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.runner.modules import (
    HEADER,
    VOID_TYPE,
    branches,
    custom,
    empty_functions,
    functions,
    leb,
    section,
    sized,
    vector,
)

from sandboxd.runner import shape
from sandboxd.runner.compiler import compile_module
from sandboxd.runner.engine import Engines
from sandboxd.runner.shape import LIMITS, LimitExceededError, MalformedError, check_shape

ROOT = Path(__file__).parents[2]
GUESTS = sorted((ROOT / "examples" / "guests").glob("*/*.wasm"))
INTERPRETER = ROOT / "build" / "interpreters" / "python.wasm"


def locals_in_all(number: int) -> bytes:
    per_function = LIMITS["locals"].maximum
    bodies = [b"\x01" + leb(per_function) + b"\x7f"] * (number // per_function)
    rest = number % per_function
    return functions([*bodies, *([b"\x01" + leb(rest) + b"\x7f"] if rest else [])])


def one_function(size_bytes: int) -> bytes:
    return functions([b"\0" + b"\x01" * (size_bytes - 2)])


def code_of(size_bytes: int) -> bytes:
    """A code section of exactly this size, of functions that are large but not too large."""
    body = b"\0" + b"\x01" * (LIMITS["function_bytes"].maximum - 100) + b"\x0b"
    count, rest = divmod(size_bytes - 1, len(sized(body)))
    last = b"\0" + b"\x01" * (rest - 5) + b"\x0b"
    code = leb(count + 1) + sized(body) * count + sized(last)
    return HEADER + section(10, code + bytes(max(0, size_bytes - len(code))))


# A module that has exactly so many of what a limit counts.
MODULES: dict[str, Callable[[int], bytes]] = {
    "sections": lambda n: HEADER + section(8, b"\0") * n,
    "types": lambda n: HEADER + section(1, vector([VOID_TYPE] * n)),
    "imports": lambda n: HEADER + section(2, vector([b"\0\0\0\0"] * n)),
    "exports": lambda n: HEADER + section(7, vector([b"\0\0\0"] * n)),
    "name_bytes": lambda n: HEADER + section(7, vector([sized(b"n" * n) + b"\0\0"])),
    "functions": empty_functions,
    "function_bytes": one_function,
    "code_bytes": code_of,
    "locals": lambda n: functions([b"\x01" + leb(n) + b"\x7f"]),
    "locals_total": locals_in_all,
    "globals": lambda n: HEADER + section(6, vector([b"\x7f\0\x41\0\x0b"] * n)),
    "tables": lambda n: HEADER + section(4, vector([b"\x70\0\0"] * n)),
    "memories": lambda n: HEADER + section(5, vector([b"\0\0"] * n)),
    "element_segments": lambda n: HEADER + section(9, vector([b"\x01\0\0"] * n)),
    "data_segments": lambda n: HEADER + section(11, vector([b"\x01\0"] * n)),
    "custom_sections": lambda n: HEADER + custom(b"x") * n,
    "custom_section_bytes": lambda n: HEADER + custom(b"x", bytes(n - 2)),
}


def test_every_limit_has_a_module_that_reaches_it_and_a_reason() -> None:
    assert set(MODULES) == set(LIMITS)
    assert all(limit.reason and limit.counted and limit.maximum > 0 for limit in LIMITS.values())


@pytest.mark.parametrize("name", MODULES)
def test_the_maximum_passes_and_one_more_names_the_limit(name: str) -> None:
    maximum = LIMITS[name].maximum
    assert check_shape(MODULES[name](maximum))[name] == maximum
    with pytest.raises(LimitExceededError) as caught:
        check_shape(MODULES[name](maximum + 1))
    assert (caught.value.limit.name, caught.value.actual) == (name, maximum + 1)
    assert str(maximum) in str(caught.value)
    assert str(maximum + 1) in str(caught.value)


def test_a_limit_in_the_verdict_has_name_maximum_and_number(engines: Engines) -> None:
    verdict = compile_module(engines.plain, empty_functions(100_001), -1, 1).too_complex
    assert (verdict.limit, verdict.maximum, verdict.actual) == ("functions", 100_000, 100_001)


@pytest.mark.parametrize(
    "module",
    [
        # Five bytes that declare four billion locals.
        functions([b"\x01\xff\xff\xff\xff\x0f\x7f"]),
        # Two declarations, each within the limit.
        functions([b"\x02" + (leb(6000) + b"\x7f") * 2]),
        # The same with a type in its long form.
        functions([b"\x02" + (leb(6000) + b"\x63\x70") * 2]),
        # Nothing but empty declarations.
        functions([leb(10_001) + b"\0\x7f" * 10_001]),
    ],
    ids=["four billion", "summed up", "long reference types", "empty declarations"],
)
def test_locals_are_counted_however_they_are_declared(module: bytes) -> None:
    with pytest.raises(LimitExceededError) as caught:
        check_shape(module)
    assert caught.value.limit.name == "locals"


def test_sections_that_come_twice_add_up() -> None:
    half = section(3, vector([b"\0"] * 60_000))
    with pytest.raises(LimitExceededError) as caught:
        check_shape(HEADER + half + half)
    assert caught.value.actual == 120_000


@pytest.mark.parametrize(
    ("tail", "offset"),
    [
        (b"\x01", 9),  # no size
        (b"\x01\x05", 9),  # a section that reaches beyond the end
        (b"\x01\xff\xff\xff\xff\x1f", 13),  # a number of 33 bits
        (b"\x01\xff\xff\xff\xff\xff\x00", 13),  # a number of six bytes
        (section(1, b""), 10),  # no count
        (section(1, leb(1 << 31)), 10),  # two billion types in five bytes
        (section(2, b"\x01\x05a"), 11),  # a name that reaches beyond its section
        (section(7, b"\x01\x01a"), 13),  # an export without a kind
        (section(10, b"\x01\x00"), 12),  # a function without locals
        (section(10, b"\x01\x09\x00\x0b"), 11),  # a function that reaches beyond the section
        (section(0, b"\x09abc"), 10),  # a custom section's name
    ],
)
def test_malformed_headers_are_told_with_the_offset(tail: bytes, offset: int) -> None:
    with pytest.raises(MalformedError) as caught:
        check_shape(HEADER + tail)
    assert caught.value.offset == offset


def test_malformed_headers_are_an_invalid_module(engines: Engines) -> None:
    invalid = compile_module(engines.plain, HEADER + b"\x01\x05", -1, 1).invalid
    assert "section" in invalid.message
    assert invalid.offset_bytes == 9


# --- agreement with the engine ------------------------------------------------------------------


def engine_accepts(engines: Engines, wasm: bytes) -> bool:
    try:
        wasmtime.Module.validate(engines.plain, wasm)
    except wasmtime.WasmtimeError:
        return False
    return True


def refusal(wasm: bytes) -> MalformedError | LimitExceededError | None:
    try:
        check_shape(wasm)
    except (MalformedError, LimitExceededError) as error:
        return error
    return None


def check_agreement(engines: Engines, wasm: bytes) -> None:
    """Whatever the walk calls malformed, the engine refuses; and it raises nothing else."""
    error = refusal(wasm)
    if isinstance(error, MalformedError):
        assert 0 <= error.offset <= len(wasm)
        assert not engine_accepts(engines, wasm), error
    elif error is not None:
        assert error.actual > error.limit.maximum


@pytest.mark.parametrize("guest", GUESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_example_guests_pass(guest: Path) -> None:
    assert check_shape(guest.read_bytes())["functions"] > 0


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_damage_to_a_real_module_is_never_judged_more_strictly_than_by_the_engine(
    engines: Engines, data: st.DataObject
) -> None:
    original = data.draw(st.sampled_from(GUESTS)).read_bytes()
    wasm = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most headers are near the beginning; sizes of functions are everywhere.
        last = data.draw(st.sampled_from([64, len(wasm)]))
        at = data.draw(st.integers(8, max(8, min(last, len(wasm)) - 1)))
        cut = data.draw(st.integers(0, 3))
        wasm[at : at + cut] = data.draw(st.binary(max_size=3))
    check_agreement(engines, bytes(wasm))


RICH = bytes(
    wasmtime.wat2wasm(
        """(module
          (import "a" "f" (func (param i32 f64) (result v128)))
          (import "a" "t" (table 1 2 externref))
          (import "a" "m" (memory 1 2))
          (import "a" "g" (global (mut funcref)))
          (table 2 funcref) (global i32 (i32.const 1))
          (export "g" (global 0)) (export "m" (memory 0)) (export "f" (func 1))
          (elem (table 1) (i32.const 0) func 1) (elem declare func 1)
          (data (i32.const 0) "abc") (data "x")
          (func (param i32) (local i32 i64 i64 v128 funcref externref) (memory.init 1
            (i32.const 0) (i32.const 0) (i32.const 0))))"""
    )
)


@settings(max_examples=400, deadline=None)
@given(at=st.integers(8, len(RICH) - 1), cut=st.integers(0, 2), insert=st.binary(max_size=3))
@example(at=8, cut=0, insert=b"")
def test_damage_to_a_module_with_everything_is_judged_as_by_the_engine(
    engines: Engines, at: int, cut: int, insert: bytes
) -> None:
    check_agreement(engines, RICH[:at] + insert + RICH[at + cut :])


def test_a_module_with_everything_passes(engines: Engines) -> None:
    assert engine_accepts(engines, RICH)
    seen = check_shape(RICH)
    assert (seen["imports"], seen["exports"], seen["locals"]) == (4, 3, 6)


def test_numbers_padded_with_zeros_pass_as_the_specification_allows(engines: Engines) -> None:
    padded = HEADER + b"\x01\x88\x80\x80\x80\x00" + b"\x81\x80\x80\x80\x00" + VOID_TYPE
    assert engine_accepts(engines, padded)
    assert check_shape(padded)["types"] == 1


@given(tail=st.binary(max_size=100))
def test_any_bytes_after_the_header_are_judged_as_by_the_engine(
    engines: Engines, tail: bytes
) -> None:
    check_agreement(engines, HEADER + tail)


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        empty_functions(1_000_000),
        functions([b"\x01" * 2_700_000]),
        functions([leb(9_999) + b"\0\x7f" * 9_999] * 1_000),
        HEADER + custom(b"") * 1_000_000,
        HEADER + section(2, vector([b"\0\0\0\0"] * 1_000_000)),
        branches(2_700_000),
    ],
    ids=["functions", "one function", "locals", "sections", "imports", "branches"],
)
def test_the_worst_modules_are_refused_within_two_seconds_of_processor_time(module: bytes) -> None:
    started = time.process_time()
    with pytest.raises(LimitExceededError):
        check_shape(module)
    assert time.process_time() - started < 2


def test_an_interpreter_passes_in_a_fraction_of_a_second() -> None:
    if not INTERPRETER.exists():
        pytest.skip("CPython for WASI is not here; `make interpreter` fetches it")
    wasm = INTERPRETER.read_bytes()
    started = time.process_time()
    seen = check_shape(wasm)
    assert time.process_time() - started < 0.5
    for name, number in seen.items():
        # Room for modules that are larger than a whole interpreter.
        assert number * 3 <= LIMITS[name].maximum, name


def test_the_walk_reads_no_more_than_the_table_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    tightened = {
        name: shape.ShapeLimit(name, 1, limit.counted, limit.reason)
        for name, limit in LIMITS.items()
    }
    monkeypatch.setattr(shape, "LIMITS", tightened)
    for name, module in MODULES.items():
        if name in ("name_bytes", "custom_section_bytes", "function_bytes", "code_bytes"):
            continue
        with pytest.raises(LimitExceededError):
            check_shape(module(2))
