"""Bytes calls: the plugin ABI of docs/abi.md."""

from __future__ import annotations

from collections.abc import Callable

from sandboxd.runner.call import Call
from sandboxd.runner.instance import Instance
from sandboxd.runner.memory import GuestMemory
from sandboxd.runner.outcomes import broke_abi, clip, exceeded, rejected
from sandboxd.runner.signatures import Exports, FunctionType
from sandboxd.v1 import call_pb2

_U32 = 0xFFFFFFFF
_RESULT = "the result"
_I32, _I64 = call_pb2.VALUE_TYPE_I32, call_pb2.VALUE_TYPE_I64

_ALLOC = FunctionType((_I32,), (_I32,))
_DEALLOC = FunctionType((_I32, _I32), ())

# What the export must be for each result convention.
_EXPORT_TYPES: dict[call_pb2.ResultConvention.ValueType, FunctionType] = {
    call_pb2.RESULT_CONVENTION_PACKED_I64: FunctionType((_I32, _I32), (_I64,)),
    call_pb2.RESULT_CONVENTION_POINTER_LENGTH: FunctionType((_I32, _I32), (_I32, _I32)),
    call_pb2.RESULT_CONVENTION_NUL_TERMINATED: FunctionType((_I32, _I32), (_I32,)),
    call_pb2.RESULT_CONVENTION_FIXED_LENGTH: FunctionType((_I32, _I32), (_I32,)),
}


def bytes_call(
    exports: Exports, request: call_pb2.BytesCall, start: Callable[[], Instance], call: Call
) -> bytes:
    """Check a bytes call, then start an instance and make it.

    Returns the result; raises Stop for every other outcome, MemoryError if it is
    too large for what the process may still allocate.
    """
    export = request.export
    convention = request.result_convention or call_pb2.RESULT_CONVENTION_PACKED_I64
    has_dealloc = _check_plugin(exports, export, convention)
    instance = start()
    instance.initialize(exports, export)
    memory = instance.memory("memory")
    data = request.input
    pointer = _pass_input(instance, memory, data)
    first, second = instance.invoke_integers(export, pointer, len(data))
    if convention == call_pb2.RESULT_CONVENTION_NUL_TERMINATED:
        output, place, length = _take_text(memory, first & _U32, call)
    else:
        place, length = _result_range(request, convention, first, second)
        memory.check(place, length, _RESULT)
        call.take_result(length)
        output = memory.read(place, length, _RESULT)
    if output and has_dealloc:
        instance.invoke_integers("dealloc", place, length)
    return output


def _check_plugin(
    exports: Exports, export: str, convention: call_pb2.ResultConvention.ValueType
) -> bool:
    """Return whether there is a `dealloc`; raise Stop unless the module can be called so."""
    wanted = _EXPORT_TYPES.get(convention)
    if wanted is None:
        raise rejected("bytes.result_convention", f"unknown convention {convention}")
    type_ = exports.function(export)
    if type_ is None:
        raise rejected("bytes.export", f"no function {clip(export, 256)!r} is exported")
    if type_ != wanted:
        name = call_pb2.ResultConvention.Name(convention).removeprefix("RESULT_CONVENTION_")
        raise rejected(
            "bytes.export", f"the export has type {type_}; convention {name} needs {wanted}"
        )
    if exports.kind("memory") != call_pb2.EXTERN_KIND_MEMORY:
        raise broke_abi("the module does not export a memory named memory")
    if exports.function("alloc") != _ALLOC:
        raise broke_abi(f"the module does not export a function alloc of type {_ALLOC}")
    has_dealloc = exports.kind("dealloc") is not None
    if has_dealloc and exports.function("dealloc") != _DEALLOC:
        raise broke_abi(f"the export dealloc is not a function of type {_DEALLOC}")
    return has_dealloc


def _pass_input(instance: Instance, memory: GuestMemory, data: bytes) -> int:
    pointer = instance.invoke_integers("alloc", len(data))[0] & _U32
    if data and pointer == 0:
        raise broke_abi(f"alloc has no memory for an input of {len(data)} bytes")
    memory.write(pointer, data, "the input buffer")
    return pointer


def _take_text(memory: GuestMemory, pointer: int, call: Call) -> tuple[bytes, int, int]:
    """Return a text that ends with NUL, and pointer and length of what `dealloc` takes back."""
    found = memory.find_nul(pointer, call.remaining_bytes, _RESULT)
    if found is None:
        raise exceeded(
            call_pb2.LIMIT_KIND_OUTPUT,
            f"the result is longer than the {call.remaining_bytes} bytes of output left",
        )
    call.take_result(found)
    return memory.read(pointer, found, _RESULT), pointer, found + 1


def _result_range(
    request: call_pb2.BytesCall,
    convention: call_pb2.ResultConvention.ValueType,
    first: int,
    second: int,
) -> tuple[int, int]:
    match convention:
        case call_pb2.RESULT_CONVENTION_POINTER_LENGTH:
            return first & _U32, second & _U32
        case call_pb2.RESULT_CONVENTION_FIXED_LENGTH:
            return first & _U32, request.result_length_bytes
        case _:
            return first >> 32, first & _U32
