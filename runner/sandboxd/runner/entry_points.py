"""The engine's C entry points that every call goes through, without the package's wrappers.

Pointers are plain integers here: addresses of ctypes objects that the caller keeps alive. The
package's wrappers make an object for each pointer and check each type; several of them a call cost
more than the WebAssembly.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _ffi as ffi

_ADDRESS = ctypes.c_void_p
_U64 = ctypes.c_uint64
_I64 = ctypes.c_int64
_SIZE = ctypes.c_size_t


def _entry(name: str, result: Any, *arguments: Any) -> Any:
    # By index: by name it would be the object that the package's wrappers use, types and all.
    function = ffi.dll[name]
    function.restype, function.argtypes = result, arguments
    return function


# (engine, data, finalizer) -> store
store_new: Any = _entry("wasmtime_store_new", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
# (store)
store_delete: Any = _entry("wasmtime_store_delete", None, _ADDRESS)
# (store) -> context
store_context: Any = _entry("wasmtime_store_context", _ADDRESS, _ADDRESS)
# (store, memory size, table elements, instances, tables, memories)
store_limiter: Any = _entry("wasmtime_store_limiter", None, _ADDRESS, _I64, _I64, _I64, _I64, _I64)
# (context, data)
context_set_data: Any = _entry("wasmtime_context_set_data", None, _ADDRESS, _ADDRESS)
# (context, ticks beyond the present epoch)
context_set_epoch_deadline: Any = _entry(
    "wasmtime_context_set_epoch_deadline", None, _ADDRESS, _U64
)
# (instance_pre, context, instance, trap) -> error
instance_pre_instantiate: Any = _entry(
    "wasmtime_instance_pre_instantiate", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS
)
# (context, instance, name, name's length, extern) -> found
instance_export_get: Any = _entry(
    "wasmtime_instance_export_get",
    ctypes.c_bool,
    _ADDRESS,
    _ADDRESS,
    ctypes.c_char_p,
    _SIZE,
    _ADDRESS,
)
# (context, func, wasmtime_val_t arguments, count, results, count, trap) -> error
func_call: Any = _entry(
    "wasmtime_func_call",
    _ADDRESS,
    _ADDRESS,
    _ADDRESS,
    _ADDRESS,
    _SIZE,
    _ADDRESS,
    _SIZE,
    _ADDRESS,
)
# (context, func, wasmtime_val_raw_t arguments and results, count, trap) -> error
func_call_unchecked: Any = _entry(
    "wasmtime_func_call_unchecked", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _ADDRESS
)
# (context, memory) -> address
memory_data: Any = _entry("wasmtime_memory_data", _ADDRESS, _ADDRESS, _ADDRESS)
# (context, memory) -> bytes
memory_data_size: Any = _entry("wasmtime_memory_data_size", _SIZE, _ADDRESS, _ADDRESS)


def address_of(pointer: Any) -> int:
    """The address that a ctypes pointer of the package holds."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None
    return address
