"""What guests may import: `env.log`, `env.abort` and WASI preview 1.

Host functions are defined in linkers, independent of any store, and find the call they serve by
the key that the store carries. `proc_exit` is our own, because the engine's turns exit codes of
126 and above into a plain error.
"""

from __future__ import annotations

import atexit
import codecs
import ctypes
import functools
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import call as calls
from sandboxd.runner.call import Call
from sandboxd.runner.entry_points import address_of
from sandboxd.runner.memory import GuestMemory
from sandboxd.runner.outcomes import Stop, broke_abi, for_people
from sandboxd.runner.signatures import FunctionType
from sandboxd.v1 import call_pb2

WASI_MODULE = "wasi_snapshot_preview1"
HOST_MODULE = "env"

_I32, _I64 = call_pb2.VALUE_TYPE_I32, call_pb2.VALUE_TYPE_I64
_F32, _F64 = call_pb2.VALUE_TYPE_F32, call_pb2.VALUE_TYPE_F64

# Handlers get the call, the `wasmtime_caller_t` pointer and the parameters.
_Handler = Callable[[Call, Any, Any], None]

# AssemblyScript strings: UTF-16LE, with their length in bytes in the u32 before them.
# More than the message's bytes is never needed of one.
_MAX_ABORT_STRING_BYTES = 4096
_ABORTED = "the guest called abort"
# Looked up now: a codec is imported at first use, and a locked-down process cannot.
_UTF_16 = codecs.lookup("utf-16-le")


def _log_number(field: str) -> _Handler:
    def log(call: Call, _caller: Any, params: Any) -> None:
        number = call_pb2.Value(**{field: getattr(params[0].of, field)})
        call.log(call_pb2.LogEntry(number=number))

    return log


def _log_bytes(call: Call, caller: Any, params: Any) -> None:
    pointer, length = _u32(params[0]), _u32(params[1])
    memory = _caller_memory(caller)
    memory.check(pointer, length, "a log message")
    # One byte more than is left is enough to find that the limit is exceeded.
    message = memory.read(pointer, min(length, call.remaining_bytes + 1), "a log message")
    call.log(call_pb2.LogEntry(message=message))


def _abort(call: Call, _caller: Any, _params: Any) -> None:
    call.end(call_pb2.Trapped(code=call_pb2.TRAP_CODE_ABORT, message=_ABORTED))


def _abort_with_location(call: Call, caller: Any, params: Any) -> None:
    message, file = (_abort_string(caller, _u32(params[i])) for i in (0, 1))
    text = _ABORTED
    if message:
        text += f": {message}"
    if file:
        text += f" ({file}:{_u32(params[2])}:{_u32(params[3])})"
    call.end(call_pb2.Trapped(code=call_pb2.TRAP_CODE_ABORT, message=for_people(text)))


def _proc_exit(call: Call, _caller: Any, params: Any) -> None:
    call.end(call_pb2.Exited(code=params[0].of.i32))


# Every form of every function of the host's own, by name and type.
HOST_FUNCTIONS: dict[str, dict[FunctionType, _Handler]] = {
    "log": {
        FunctionType((_I32,), ()): _log_number("i32"),
        FunctionType((_I64,), ()): _log_number("i64"),
        FunctionType((_F32,), ()): _log_number("f32"),
        FunctionType((_F64,), ()): _log_number("f64"),
        FunctionType((_I32, _I32), ()): _log_bytes,
    },
    "abort": {
        FunctionType((), ()): _abort,
        FunctionType((_I32, _I32, _I32, _I32), ()): _abort_with_location,
    },
}
_PROC_EXIT_TYPE = FunctionType((_I32,), ())

# What the linkers carry to find the handler again; index 0 would be a null pointer.
_HANDLERS: tuple[_Handler, ...] = (
    _proc_exit,
    *(handler for forms in HOST_FUNCTIONS.values() for handler in forms.values()),
)


@functools.cache
def base_linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """The linker with WASI that every module's own is a copy of; built once per engine."""
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    linker.allow_shadowing = True
    _define(linker, WASI_MODULE, "proc_exit", _PROC_EXIT_TYPE, _proc_exit)
    return linker


# As for the engines, in engine.py.
atexit.register(base_linker.cache_clear)


def copy_linker(linker: wasmtime.Linker) -> wasmtime.Linker:
    """A linker with the same definitions, for more to be added."""
    copy = wasmtime.Linker.__new__(wasmtime.Linker)
    copy._set_ptr(ffi.wasmtime_linker_clone(linker.ptr()))
    copy.engine = linker.engine
    return copy


def define_host_function(linker: wasmtime.Linker, name: str, type_: FunctionType) -> None:
    """Define one form, a key of HOST_FUNCTIONS, of a function of the module `env`."""
    _define(linker, HOST_MODULE, name, type_, HOST_FUNCTIONS[name][type_])


def _define(
    linker: wasmtime.Linker, module: str, name: str, type_: FunctionType, handler: _Handler
) -> None:
    # Kept in a variable: its pointer is only valid as long as it lives.
    engine_type = _engine_type(type_)
    error = ffi.wasmtime_linker_define_func(
        linker.ptr(),
        module.encode(),
        len(module.encode()),
        name.encode(),
        len(name.encode()),
        engine_type.ptr(),
        _host_call,
        _HANDLERS.index(handler) + 1,
        _NO_FINALIZER,
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)


def _engine_type(type_: FunctionType) -> wasmtime.FuncType:
    makers = {
        _I32: wasmtime.ValType.i32,
        _I64: wasmtime.ValType.i64,
        _F32: wasmtime.ValType.f32,
        _F64: wasmtime.ValType.f64,
    }
    return wasmtime.FuncType(
        [makers[param]() for param in type_.params], [makers[result]() for result in type_.results]
    )


_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()


def _dispatch(
    handler: int, caller: Any, params: Any, _count: int, _results: Any, _result_count: int
) -> int:
    """Serve any host function. Return 0, or the address of a trap that ends the guest.

    Must not raise: ctypes would print the error and let the guest go on.
    """
    key: Any = ffi.wasmtime_context_get_data(ffi.wasmtime_caller_context(caller))
    call = calls.find(key)
    if call is None:
        return _new_trap()
    try:
        _HANDLERS[handler - 1](call, caller, params)
    except Stop as stop:
        call.end(stop.outcome)
    except MemoryError:
        call.end(
            call_pb2.LimitExceeded(
                kind=call_pb2.LIMIT_KIND_MEMORY, message="no memory left for a host call"
            )
        )
    except BaseException as error:  # noqa: BLE001 - handed to the caller of the guest
        call.bug = error
    return _new_trap() if call.outcome is not None or call.bug is not None else 0


# The one C callback behind all host functions, made when this module is imported: none can be made
# in a locked-down process.
_host_call = ffi.wasmtime_func_callback_t(_dispatch)


def _new_trap() -> int:
    # The message is never seen: the call knows how it ended.
    trap = ffi.wasmtime_trap_new(b"", 0)
    return ctypes.addressof(trap.contents)


def _u32(value: Any) -> int:
    return int(value.of.i32) & 0xFFFFFFFF


def _caller_memory(caller: Any) -> GuestMemory:
    item: Any = ffi.wasmtime_extern_t()
    found = ffi.wasmtime_caller_export_get(caller, b"memory", len(b"memory"), ctypes.byref(item))
    if not found or item.kind != ffi.WASMTIME_EXTERN_MEMORY.value:
        raise broke_abi("the module does not export a memory named memory")
    return GuestMemory(address_of(ffi.wasmtime_caller_context(caller)), item.of.memory)


def _abort_string(caller: Any, pointer: int) -> str:
    """Read an AssemblyScript string; empty if it is null or not where it should be."""
    if pointer < 4:
        return ""
    try:
        memory = _caller_memory(caller)
        length = int.from_bytes(memory.read(pointer - 4, 4, "a string's length"), "little")
        memory.check(pointer, length, "a string")
        raw = memory.read(pointer, min(length, _MAX_ABORT_STRING_BYTES), "a string")
    except Stop:
        # The guest ends anyway; a bad pointer only costs it its message.
        return ""
    # Not raw.decode: it would import the codec, and a locked-down process cannot.
    return codecs.utf_16_le_decode(raw, "replace", True)[0]
