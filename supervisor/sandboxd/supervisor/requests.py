"""Checks of an ExecuteRequest, before anything is spent on it.

Every refusal is a typed fault that names the field. What fits the message but not the module
(an export, its signature) is checked here, too, as soon as the module is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sandboxd.supervisor import faults, isolation
from sandboxd.supervisor.artifacts import ModuleInfo
from sandboxd.supervisor.keys import is_digest
from sandboxd.supervisor.text import for_people
from sandboxd.v1 import call_pb2, sandbox_pb2

# A name longer than this cannot be exported: the compiler refuses such modules.
MAX_NAME_BYTES = 1024
# The engine refuses functions with more parameters.
MAX_ARGUMENTS = 1000
# What people send by mistake, by how it begins. A compiler, which sees all of it, knows more.
_LOOKALIKES = (
    (b"\x7fELF", "a native executable, or a module that was compiled ahead of time"),
    (b"\x1f\x8b", "gzip data (decompress it first)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (decompress it first)"),
    (b"PK\x03\x04", "a zip archive (unpack it first)"),
    (b"BC\xc0\xde", "LLVM bitcode (link it to WebAssembly first)"),
    (b"!<ar", "a static library (link it to WebAssembly first)"),
)
_MAGIC_TOLD = r'"\0asm" (00 61 73 6d)'
WASM_MAGIC = b"\0asm"
Kind = Literal["typed", "bytes", "wasi"]
"""The field of ExecuteRequest that says what to call."""
# More than this is refused before any guest sees it; a shell's limit is of the same size.
MAX_WASI_ARGUMENTS = 4096
# Ways to call a module that are remembered as right.
MAX_REMEMBERED_CALLS = 16
# More, and longer, than there are: all that are not active are told.
MAX_LAYERS = 32
MAX_LAYER_BYTES = 64

_KINDS = {
    "i32": call_pb2.VALUE_TYPE_I32,
    "i64": call_pb2.VALUE_TYPE_I64,
    "f32": call_pb2.VALUE_TYPE_F32,
    "f64": call_pb2.VALUE_TYPE_F64,
}
_NAMES: dict[int, str] = {
    call_pb2.VALUE_TYPE_I32: "i32",
    call_pb2.VALUE_TYPE_I64: "i64",
    call_pb2.VALUE_TYPE_F32: "f32",
    call_pb2.VALUE_TYPE_F64: "f64",
    call_pb2.VALUE_TYPE_V128: "v128",
    call_pb2.VALUE_TYPE_FUNCREF: "funcref",
    call_pb2.VALUE_TYPE_EXTERNREF: "externref",
}
_NUMBERS = frozenset(_KINDS.values())
_POLICIES = frozenset(sandbox_pb2.ProcessPolicy.values())
_I32 = call_pb2.VALUE_TYPE_I32
_I64 = call_pb2.VALUE_TYPE_I64
_RESULTS_OF_CONVENTION = {
    call_pb2.RESULT_CONVENTION_UNSPECIFIED: (_I64,),
    call_pb2.RESULT_CONVENTION_PACKED_I64: (_I64,),
    call_pb2.RESULT_CONVENTION_POINTER_LENGTH: (_I32, _I32),
    call_pb2.RESULT_CONVENTION_NUL_TERMINATED: (_I32,),
    call_pb2.RESULT_CONVENTION_FIXED_LENGTH: (_I32,),
}


def check(request: sandbox_pb2.ExecuteRequest) -> Kind:
    """Return what kind of call it is.

    Raises `faults.InvalidRequest` (or `InvalidModule`) if the request is malformed.
    """
    match request.WhichOneof("module"):
        case "digest":
            check_digest(request.digest, "digest")
        case "wasm":
            check_magic(request.wasm[:8])
        case _:
            raise faults.InvalidRequest("set digest or wasm: the module to run", field="module")
    kind = request.WhichOneof("call")
    match kind:
        case "bytes":
            _check_bytes(request.bytes)
        case "typed":
            _check_typed(request.typed)
        case "wasi":
            _check_wasi(request.wasi)
        case _:
            raise faults.InvalidRequest("set typed, bytes or wasi: what to call", field="call")
    if request.process not in _POLICIES:
        raise faults.InvalidRequest(f"no process policy {request.process}", field="process")
    if request.require_layers:
        _check_layers(request.require_layers)
    return kind


def _check_layers(names: Sequence[str]) -> None:
    if len(names) > MAX_LAYERS:
        raise faults.InvalidRequest(f"at most {MAX_LAYERS} layers", field="require_layers")
    for index, name in enumerate(names):
        if len(name.encode()) > MAX_LAYER_BYTES:
            raise faults.InvalidRequest(
                f"a layer's name has at most {MAX_LAYER_BYTES} bytes",
                field=f"require_layers[{index}]",
            )
        if name not in isolation.LAYERS:
            raise faults.InvalidRequest(
                f"no layer {for_people(name)}; there are {', '.join(sorted(isolation.LAYERS))}",
                field=f"require_layers[{index}]",
            )


def check_digest(digest: str, field: str) -> None:
    """Raise `faults.InvalidRequest` unless the digest is in canonical form."""
    if not is_digest(digest):
        raise faults.InvalidRequest(
            'a digest is "sha256:" and 64 lower-case hex digits', field=field
        )


def check_magic(head: bytes) -> None:
    """Raise `faults.InvalidModule` unless the bytes begin as a WebAssembly module does."""
    if head[:4] != WASM_MAGIC:
        raise faults.InvalidModule(
            f"not WebAssembly: {_describe(head)}, expected the magic {_MAGIC_TOLD}",
            field="wasm",
            metadata={"offset_bytes": "0"},
        )


def check_magic_so_far(head: bytes) -> None:
    """Raise `faults.InvalidModule` as soon as the first bytes of a stream cannot be a module's."""
    if not WASM_MAGIC.startswith(head[:4]):
        check_magic(head)


def _describe(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.lstrip().startswith((b"(", b";;")):
        return f"it begins with {_quoted(head)}: text (WAT: assemble it first, say with wat2wasm)"
    for prefix, words in _LOOKALIKES:
        if head.startswith(prefix):
            return f"it begins with {_quoted(head)}: {words}"
    return f"it begins with {_quoted(head)}"


def _quoted(head: bytes) -> str:
    return f'"{repr(head[:4])[2:-1]}" ({head[:4].hex(" ")})'


def _check_typed(call: call_pb2.TypedCall) -> None:
    _check_export_name(call.export, "typed.export")
    if len(call.args) > MAX_ARGUMENTS:
        raise faults.InvalidRequest(
            f"a function has at most {MAX_ARGUMENTS} parameters", field="typed.args"
        )
    for index, value in enumerate(call.args):
        if value.WhichOneof("kind") is None:
            raise faults.InvalidRequest(
                "set i32, i64, f32 or f64 of every argument", field=f"typed.args[{index}]"
            )


def _check_bytes(call: call_pb2.BytesCall) -> None:
    _check_export_name(call.export, "bytes.export")
    if call.result_convention not in _RESULTS_OF_CONVENTION:
        raise faults.InvalidRequest(
            f"no result convention {call.result_convention}", field="bytes.result_convention"
        )
    fixed = call.result_convention == call_pb2.RESULT_CONVENTION_FIXED_LENGTH
    if call.result_length_bytes and not fixed:
        raise faults.InvalidRequest(
            "result_length_bytes belongs to RESULT_CONVENTION_FIXED_LENGTH only",
            field="bytes.result_length_bytes",
        )


def _check_export_name(name: str, field: str) -> None:
    if not name:
        raise faults.InvalidRequest("name the exported function to call", field=field)
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise faults.InvalidRequest(f"a name has at most {MAX_NAME_BYTES} bytes", field=field)


def _check_wasi(call: call_pb2.WasiCommand) -> None:
    if len(call.args) > MAX_WASI_ARGUMENTS or len(call.env) > MAX_WASI_ARGUMENTS:
        raise faults.InvalidRequest(
            f"at most {MAX_WASI_ARGUMENTS} arguments and as many variables", field="wasi"
        )
    for index, argument in enumerate(call.args):
        if "\0" in argument:
            raise faults.InvalidRequest(
                "an argument cannot contain NUL", field=f"wasi.args[{index}]"
            )
    names: set[str] = set()
    for index, variable in enumerate(call.env):
        field = f"wasi.env[{index}]"
        if not variable.name or "=" in variable.name or "\0" in variable.name + variable.value:
            raise faults.InvalidRequest(
                "a variable has a name without '=', and no NUL in name or value", field=field
            )
        if variable.name in names:
            raise faults.InvalidRequest("a variable is set twice", field=field)
        names.add(variable.name)


# --- against the module -----------------------------------------------------------------------


def check_fits(request: sandbox_pb2.ExecuteRequest, kind: Kind, info: ModuleInfo) -> None:
    """Raise `faults.ExportNotFound` or `ArgumentMismatch` if the module cannot be called so."""
    if kind == "bytes":
        _check_bytes_fits(request.bytes, info)
    elif kind == "typed":
        _check_typed_fits(request.typed, info)
    else:
        _require(info, "_start", (), ((),), "wasi")
        _require_memory(info, "wasi")


def _check_typed_fits(call: call_pb2.TypedCall, info: ModuleInfo) -> None:
    signature = info.functions.get(call.export)
    if signature is None:
        raise _not_found(info, call.export, "typed.export")
    if not _NUMBERS.issuperset(signature.params) or not _NUMBERS.issuperset(signature.results):
        raise faults.ArgumentMismatch(
            f"{call.export!r} has the type {_show(signature.params, signature.results)}; only "
            "numbers can be passed",
            field="typed.export",
        )
    if len(call.args) != len(signature.params):
        raise faults.ArgumentMismatch(
            f"{call.export!r} has the type {_show(signature.params, signature.results)} and takes "
            f"{len(signature.params)} arguments, not {len(call.args)}",
            field="typed.args",
        )
    for index, (value, wanted) in enumerate(zip(call.args, signature.params, strict=True)):
        kind = value.WhichOneof("kind")
        assert kind is not None, "checked before"
        if _KINDS[kind] != wanted:
            raise faults.ArgumentMismatch(
                f"argument {index} of {call.export!r} is {_NAMES[wanted]}, not {kind}",
                field=f"typed.args[{index}]",
            )


def _check_bytes_fits(call: call_pb2.BytesCall, info: ModuleInfo) -> None:
    export, results = call.export, _RESULTS_OF_CONVENTION[call.result_convention]
    if (export, results) in info.plugin_calls:
        return
    _require(info, export, (_I32, _I32), (results,), "bytes.export")
    _require(info, "alloc", (_I32,), ((_I32,),), "bytes")
    if "dealloc" in info.functions:
        _require(info, "dealloc", (_I32, _I32), ((),), "bytes")
    _require_memory(info, "bytes")
    if len(info.plugin_calls) < MAX_REMEMBERED_CALLS:
        info.plugin_calls.add((export, results))


def _require(
    info: ModuleInfo,
    name: str,
    params: tuple[int, ...],
    results: tuple[tuple[int, ...], ...],
    field: str,
) -> None:
    signature = info.functions.get(name)
    if signature is None:
        raise _not_found(info, name, field)
    if signature.params != params or signature.results not in results:
        raise faults.ArgumentMismatch(
            f"{name!r} has the type {_show(signature.params, signature.results)}; this way of "
            f"calling needs {_show(params, results[0])}",
            field=field,
        )


def _require_memory(info: ModuleInfo, field: str) -> None:
    if not info.has_memory:
        raise faults.ExportNotFound("the module exports no memory named 'memory'", field=field)


def _not_found(info: ModuleInfo, name: str, field: str) -> faults.Fault:
    if name in info.other_names:
        return faults.ExportNotFound(f"the export {name!r} is not a function", field=field)
    return faults.ExportNotFound(f"the module exports no function {name!r}", field=field)


def _show(params: tuple[int, ...], results: tuple[int, ...]) -> str:
    left = ", ".join(_NAMES.get(kind, "?") for kind in params)
    right = ", ".join(_NAMES.get(kind, "?") for kind in results)
    return f"({left}) -> ({right})"


def bytes_in(request: sandbox_pb2.ExecuteRequest, kind: Kind) -> int:
    """Return the bytes of input that the guest will see: the receipt's `bytes_in`."""
    if kind == "bytes":
        return len(request.bytes.input)
    if kind == "wasi":
        wasi = request.wasi
        return (
            len(wasi.stdin)
            + sum(len(argument.encode()) for argument in wasi.args)
            + sum(
                len(variable.name.encode()) + len(variable.value.encode()) for variable in wasi.env
            )
        )
    return sum(_width(value) for value in request.typed.args)


def _width(value: call_pb2.Value) -> int:
    return 4 if value.WhichOneof("kind") in ("i32", "f32") else 8
