"""Bytes calls: the plugin ABI of docs/abi.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandboxd.runner.call import Call
from sandboxd.runner.instance import Instance, i32_values
from sandboxd.runner.memory import GuestMemory
from sandboxd.runner.outcomes import broke_abi, clip, exceeded, rejected
from sandboxd.runner.signatures import Exports, FunctionType
from sandboxd.v1 import call_pb2

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
    type_ = _check_export(exports, request)
    _check_plugin(exports)
    instance = start()
    instance.initialize(exports, request.export)
    memory = instance.memory("memory")
    pointer = _pass_input(instance, memory, request.input)
    arguments = i32_values(pointer, len(request.input))
    values = instance.invoke(request.export, arguments, len(type_.results))
    output, place, length = _take_output(memory, request, values, call)
    if output and exports.function("dealloc") is not None:
        instance.invoke("dealloc", i32_values(place, length))
    return output


def _check_export(exports: Exports, request: call_pb2.BytesCall) -> FunctionType:
    convention = request.result_convention or call_pb2.RESULT_CONVENTION_PACKED_I64
    wanted = _EXPORT_TYPES.get(convention)
    if wanted is None:
        raise rejected("bytes.result_convention", f"unknown convention {convention}")
    type_ = exports.function(request.export)
    if type_ is None:
        raise rejected("bytes.export", f"no function {clip(request.export, 256)!r} is exported")
    if type_ != wanted:
        name = call_pb2.ResultConvention.Name(convention).removeprefix("RESULT_CONVENTION_")
        raise rejected(
            "bytes.export", f"the export has type {type_}; convention {name} needs {wanted}"
        )
    return type_


def _check_plugin(exports: Exports) -> None:
    if exports.kind("memory") != call_pb2.EXTERN_KIND_MEMORY:
        raise broke_abi("the module does not export a memory named memory")
    if exports.function("alloc") != _ALLOC:
        raise broke_abi(f"the module does not export a function alloc of type {_ALLOC}")
    if exports.kind("dealloc") is not None and exports.function("dealloc") != _DEALLOC:
        raise broke_abi(f"the export dealloc is not a function of type {_DEALLOC}")


def _pass_input(instance: Instance, memory: GuestMemory, data: bytes) -> int:
    pointer = _u32(instance.invoke("alloc", i32_values(len(data)), 1)[0].of.i32)
    if data and pointer == 0:
        raise broke_abi(f"alloc has no memory for an input of {len(data)} bytes")
    memory.write(pointer, data, "the input buffer")
    return pointer


def _take_output(
    memory: GuestMemory, request: call_pb2.BytesCall, values: Any, call: Call
) -> tuple[bytes, int, int]:
    """Return the output, and pointer and length of what `dealloc` takes back."""
    what = "the result"
    if request.result_convention == call_pb2.RESULT_CONVENTION_NUL_TERMINATED:
        pointer = _u32(values[0].of.i32)
        found = memory.find_nul(pointer, call.remaining_bytes, what)
        if found is None:
            raise exceeded(
                call_pb2.LIMIT_KIND_OUTPUT,
                f"the result is longer than the {call.remaining_bytes} bytes of output left",
            )
        call.take_result(found)
        return memory.read(pointer, found, what), pointer, found + 1
    pointer, length = _result_range(request, values)
    memory.check(pointer, length, what)
    call.take_result(length)
    return memory.read(pointer, length, what), pointer, length


def _result_range(request: call_pb2.BytesCall, values: Any) -> tuple[int, int]:
    match request.result_convention:
        case call_pb2.RESULT_CONVENTION_POINTER_LENGTH:
            return _u32(values[0].of.i32), _u32(values[1].of.i32)
        case call_pb2.RESULT_CONVENTION_FIXED_LENGTH:
            return _u32(values[0].of.i32), request.result_length_bytes
        case _:
            packed = int(values[0].of.i64)
            return _u32(packed >> 32), _u32(packed)


def _u32(number: int) -> int:
    return number & 0xFFFFFFFF
