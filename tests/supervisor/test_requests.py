"""Checks of a request: every refusal is typed and names the field at fault."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor import faults, requests
from sandboxd.supervisor.artifacts import ModuleInfo
from sandboxd.v1 import call_pb2, sandbox_pb2

DIGEST = "sha256:" + "0" * 64
I32, I64 = call_pb2.VALUE_TYPE_I32, call_pb2.VALUE_TYPE_I64
F32, F64 = call_pb2.VALUE_TYPE_F32, call_pb2.VALUE_TYPE_F64


def request(**fields: Any) -> sandbox_pb2.ExecuteRequest:
    chosen: dict[str, Any] = {"digest": DIGEST, "typed": call_pb2.TypedCall(export="f")}
    if "wasm" in fields:
        del chosen["digest"]
    if "bytes" in fields or "wasi" in fields:
        del chosen["typed"]
    return sandbox_pb2.ExecuteRequest(**{**chosen, **fields})


def variable(name: str, value: str = "") -> call_pb2.EnvironmentVariable:
    return call_pb2.EnvironmentVariable(name=name, value=value)


def wasi(**fields: Any) -> sandbox_pb2.ExecuteRequest:
    return request(wasi=call_pb2.WasiCommand(**fields))


def typed(**fields: Any) -> sandbox_pb2.ExecuteRequest:
    return request(typed=call_pb2.TypedCall(**fields))


def bytes_call(**fields: Any) -> sandbox_pb2.ExecuteRequest:
    return request(bytes=call_pb2.BytesCall(**fields))


MALFORMED = {
    "module": sandbox_pb2.ExecuteRequest(typed=call_pb2.TypedCall(export="f")),
    "digest": request(digest="sha256:" + "0" * 63),
    "wasm": request(wasm=b"(module)"),
    "call": sandbox_pb2.ExecuteRequest(digest=DIGEST),
    "process": request(process=7),
    "require_layers": request(require_layers=["x"] * 33),
    "require_layers[0]": request(require_layers=["ä" * 33]),
    "require_layers[1]": request(require_layers=["seccomp", "secomp"]),
    "typed.export": typed(),
    "typed.args[1]": typed(export="f", args=[call_pb2.Value(i32=1), call_pb2.Value()]),
    "bytes.export": bytes_call(),
    "bytes.result_convention": bytes_call(export="f", result_convention=9),
    "bytes.result_length_bytes": bytes_call(export="f", result_length_bytes=1),
    "wasi": wasi(args=["x"] * 4097),
    "wasi.args[1]": wasi(args=["a", "b\0"]),
    "wasi.env[0]": wasi(env=[variable("")]),
    "wasi.env[1]": wasi(env=[variable("A"), variable("A")]),
}


@pytest.mark.parametrize("field", MALFORMED)
def test_a_malformed_request_is_refused_with_the_field_at_fault(field: str) -> None:
    with pytest.raises(faults.Fault) as caught:
        requests.check(MALFORMED[field])
    kind = faults.InvalidModule if field == "wasm" else faults.InvalidRequest
    assert type(caught.value) is kind
    assert caught.value.field == field
    assert caught.value.message


@pytest.mark.parametrize(
    "name", ["a=b", "a\0", "=", "\0"], ids=["equals", "nul", "only equals", "only nul"]
)
def test_an_environment_variable_needs_a_usable_name(name: str) -> None:
    with pytest.raises(faults.InvalidRequest, match="name"):
        requests.check(wasi(env=[variable(name)]))


def test_an_environment_variables_value_has_no_nul() -> None:
    with pytest.raises(faults.InvalidRequest) as caught:
        requests.check(wasi(env=[variable("A", "=fine="), variable("B", "\0")]))
    assert caught.value.field == "wasi.env[1]"


@pytest.mark.parametrize("call", [typed, bytes_call])
@pytest.mark.parametrize(("name", "fits"), [("é" * 512, True), ("é" * 512 + "x", False)])
def test_a_name_is_counted_in_bytes(call: Any, name: str, fits: bool) -> None:
    if fits:
        requests.check(call(export=name))
        return
    with pytest.raises(faults.InvalidRequest) as caught:
        requests.check(call(export=name))
    assert caught.value.field.endswith(".export")


@pytest.mark.parametrize(
    "digest",
    ["", "0" * 64, "sha256:" + "A" * 64, "sha512:" + "0" * 64, DIGEST + "\n", DIGEST + "0"],
)
def test_a_digest_has_one_form_only(digest: str) -> None:
    with pytest.raises(faults.InvalidRequest, match="64 lower-case hex digits"):
        requests.check_digest(digest, "digest")


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"", "empty"),
        (b"\x7fELF\x02\x01\x01\0", "compiled ahead of time"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"  (modul", "WAT"),
        (b";; comme", "WAT"),
        (b"\0as", "magic"),
        (b"\xff\xfe\xfd\xfc", "magic"),
        (b"PK\x03\x04", "zip"),
        (b"abcd", r'it begins with "abcd" \(61 62 63 64\), expected the magic "\\0asm" \(00 61'),
    ],
)
def test_what_is_not_a_module_is_described(head: bytes, word: str) -> None:
    with pytest.raises(faults.InvalidModule, match=word) as caught:
        requests.check_magic(head)
    assert caught.value.metadata == {"offset_bytes": "0"}


@given(st.binary(max_size=8))
def test_a_stream_is_refused_as_soon_as_it_cannot_become_a_module(head: bytes) -> None:
    could_become = b"\0asm".startswith(head[:4])
    try:
        requests.check_magic_so_far(head)
    except faults.InvalidModule:
        assert not could_become
    else:
        assert could_become


def test_a_request_that_is_in_order_passes() -> None:
    for fine in (
        request(),
        request(wasm=b"\0asm"),
        request(process=sandbox_pb2.PROCESS_POLICY_FRESH),
        typed(export="f", args=[call_pb2.Value(i32=0), call_pb2.Value(f64=0)]),
        bytes_call(export="f", result_convention=4, result_length_bytes=9),
        wasi(args=["a", ""], env=[variable("A", "x=y"), variable("B")], stdin=b"\0"),
    ):
        requests.check(fine)


# --- against the module -------------------------------------------------------------------------


def function(name: str, params: list[int], results: list[int]) -> call_pb2.Extern:
    return call_pb2.Extern(
        name=name,
        kind=call_pb2.EXTERN_KIND_FUNCTION,
        params=params,  # type: ignore[arg-type]
        results=results,  # type: ignore[arg-type]
    )


MEMORY = call_pb2.Extern(name="memory", kind=call_pb2.EXTERN_KIND_MEMORY)
GLOBAL = call_pb2.Extern(name="g", kind=call_pb2.EXTERN_KIND_GLOBAL)
ADD = function("add", [I32, I64], [F32, F64])
PACKED = function("packed", [I32, I32], [I64])
PAIR = function("pair", [I32, I32], [I32, I32])
POINTER = function("pointer", [I32, I32], [I32])
VECTOR = function("vector", [call_pb2.VALUE_TYPE_V128], [])
REFERENCE = function("reference", [], [call_pb2.VALUE_TYPE_FUNCREF])
ALLOC = function("alloc", [I32], [I32])
START = function("_start", [], [])
ALL = (MEMORY, GLOBAL, ADD, PACKED, PAIR, POINTER, VECTOR, REFERENCE, ALLOC, START)


def info(*exports: call_pb2.Extern) -> ModuleInfo:
    return ModuleInfo.of((), exports or ALL)


def values(**kinds: float) -> list[call_pb2.Value]:
    return [call_pb2.Value(**{kind: value}) for kind, value in kinds.items()]  # type: ignore[arg-type]


NOT_FOUND, MISMATCH = faults.ExportNotFound, faults.ArgumentMismatch
UNFIT = {
    "no such export": (typed(export="sub"), ALL, NOT_FOUND, "typed.export"),
    "not a function": (typed(export="g"), ALL, NOT_FOUND, "typed.export"),
    "too few": (typed(export="add"), ALL, MISMATCH, "typed.args"),
    "too many": (typed(export="add", args=values(i32=1) * 3), ALL, MISMATCH, "typed.args"),
    "wrong type": (
        typed(export="add", args=values(i32=1, f64=1)), ALL, MISMATCH, "typed.args[1]"),
    "takes a vector": (typed(export="vector"), ALL, MISMATCH, "typed.export"),
    "returns a reference": (typed(export="reference"), ALL, MISMATCH, "typed.export"),
    "no such bytes export": (bytes_call(export="sub"), ALL, NOT_FOUND, "bytes.export"),
    "wrong parameters": (bytes_call(export="add"), ALL, MISMATCH, "bytes.export"),
    "wrong convention": (bytes_call(export="pair"), ALL, MISMATCH, "bytes.export"),
    "no alloc": (bytes_call(export="packed"), (MEMORY, PACKED), NOT_FOUND, "bytes"),
    "wrong alloc": (
        bytes_call(export="packed"),
        (MEMORY, PACKED, function("alloc", [I64], [I32])), MISMATCH, "bytes"),
    "wrong dealloc": (
        bytes_call(export="packed"),
        (MEMORY, PACKED, ALLOC, function("dealloc", [I32], [])), MISMATCH, "bytes"),
    "no memory": (bytes_call(export="packed"), (PACKED, ALLOC), NOT_FOUND, "bytes"),
    "no _start": (wasi(), (MEMORY,), NOT_FOUND, "wasi"),
    "wrong _start": (wasi(), (MEMORY, function("_start", [], [I32])), MISMATCH, "wasi"),
    "no memory for WASI": (wasi(), (START,), NOT_FOUND, "wasi"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_call_that_does_not_fit_the_module_is_refused_with_the_field(case: str) -> None:
    asked, exports, kind, field = UNFIT[case]
    with pytest.raises(faults.Fault) as caught:
        check_fits(asked, info(*exports))
    assert type(caught.value) is kind
    assert caught.value.field == field


def check_fits(request: sandbox_pb2.ExecuteRequest, of: ModuleInfo) -> None:
    kind = request.WhichOneof("call")
    assert kind is not None
    requests.check_fits(request, kind, of)


def bytes_in(request: sandbox_pb2.ExecuteRequest) -> int:
    kind = request.WhichOneof("call")
    assert kind is not None
    return requests.bytes_in(request, kind)


def test_a_mismatch_tells_both_types() -> None:
    with pytest.raises(MISMATCH) as caught:
        check_fits(bytes_call(export="add"), info())
    assert "(i32, i64) -> (f32, f64)" in caught.value.message
    assert "(i32, i32) -> (i64)" in caught.value.message


@pytest.mark.parametrize(
    ("export", "convention"),
    [("packed", 0), ("packed", 1), ("pair", 2), ("pointer", 3), ("pointer", 4)],
)
def test_every_convention_has_its_signature(export: str, convention: int) -> None:
    asked = bytes_call(export=export, result_convention=convention)
    check_fits(asked, info())


def test_a_call_that_fits_passes() -> None:
    check_fits(typed(export="add", args=values(i32=1, i64=2)), info())
    check_fits(wasi(), info())
    check_fits(
        bytes_call(export="packed"),
        info(MEMORY, PACKED, ALLOC, function("dealloc", [I32, I32], [])),
    )


def test_the_bytes_that_go_in_are_counted() -> None:
    assert bytes_in(bytes_call(export="f", input=b"12345")) == 5
    numbers = values(i32=1, i64=1, f32=1, f64=1)
    assert bytes_in(typed(export="f", args=numbers)) == 24
    command = wasi(args=["é"], env=[variable("A", "bc")], stdin=b"1234")
    assert bytes_in(command) == 2 + 3 + 4
