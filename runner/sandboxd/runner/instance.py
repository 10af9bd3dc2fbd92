"""A fresh store and instance, for one call.

Calls go through the C API with arrays of `wasmtime_val_t` that the caller
fills: the engine package's own `Func.__call__` asks for the type each time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner.call import Call
from sandboxd.runner.linking import Linked
from sandboxd.runner.memory import GuestMemory
from sandboxd.runner.outcomes import (
    Failure,
    Stop,
    broke_abi,
    instantiation_failure,
    running_failure,
    take_failure,
    with_frames,
)
from sandboxd.runner.signatures import Exports, FunctionType
from sandboxd.v1 import call_pb2

INITIALIZE = "_initialize"
NO_VALUES = FunctionType((), ())

_TrapPointer = ctypes.POINTER(ffi.wasm_trap_t)

# wasmtime_val_t: kind and union member of each number type.
KINDS: dict[call_pb2.ValueType.ValueType, tuple[int, str]] = {
    call_pb2.VALUE_TYPE_I32: (ffi.WASMTIME_I32.value, "i32"),
    call_pb2.VALUE_TYPE_I64: (ffi.WASMTIME_I64.value, "i64"),
    call_pb2.VALUE_TYPE_F32: (ffi.WASMTIME_F32.value, "f32"),
    call_pb2.VALUE_TYPE_F64: (ffi.WASMTIME_F64.value, "f64"),
}
_KIND_I32 = ffi.WASMTIME_I32.value


def i32_values(*numbers: int) -> Any:
    """An array of i32 arguments; numbers are taken modulo 2**32."""
    values = (ffi.wasmtime_val_t * len(numbers))()
    for value, number in zip(values, numbers, strict=True):
        value.kind = _KIND_I32
        value.of.i32 = number
    return values


class Instance:
    """One instance in its store. The store must outlive it."""

    def __init__(self, store: wasmtime.Store, call: Call):
        self._context = store._context()
        self._call = call
        self._instance = ffi.wasmtime_instance_t()

    def instantiate(self, linked: Linked) -> Failure | None:
        """Instantiate the module, which runs its start function.

        Returns a failure for which no guest code ran and that the host did not cause; raises
        Stop for every other.
        """
        trap = _TrapPointer()
        error = linked.instantiate(self._context, ctypes.byref(self._instance), ctypes.byref(trap))
        failure = take_failure(error, trap)
        if failure is None or self._call.outcome is not None or self._call.bug is not None:
            self._settle(failure)
            return None
        if failure.code is None and not failure.frames:
            return failure
        raise Stop(instantiation_failure(failure))

    def initialize(self, exports: Exports, called: str) -> None:
        """Call a reactor's `_initialize`, unless it is what is called anyway."""
        if called == INITIALIZE or exports.kind(INITIALIZE) is None:
            return
        if exports.function(INITIALIZE) != NO_VALUES:
            raise broke_abi(f"the export {INITIALIZE} is not a function of type {NO_VALUES}")
        self.invoke(INITIALIZE)

    def invoke(self, export: str, arguments: Any = (), result_count: int = 0) -> Any:
        """Call an exported function; returns the array of `wasmtime_val_t` results.

        Raises Stop if the guest trapped, or the host ended the call. The caller has
        checked that the export exists and that arguments and results fit its type.
        """
        function = self._export(export).of.func
        results = (ffi.wasmtime_val_t * result_count)()
        trap = _TrapPointer()
        error = ffi.wasmtime_func_call(
            self._context,
            ctypes.byref(function),
            arguments or None,
            len(arguments),
            results,
            result_count,
            ctypes.byref(trap),
        )
        self._settle(take_failure(error, trap))
        return results

    def memory(self, name: str) -> GuestMemory:
        """An exported memory; the caller has checked that it exists."""
        return GuestMemory(self._context, self._export(name).of.memory)

    def _export(self, name: str) -> Any:
        item = ffi.wasmtime_extern_t()
        encoded = name.encode()
        found = ffi.wasmtime_instance_export_get(
            self._context,
            ctypes.byref(self._instance),
            encoded,
            len(encoded),
            ctypes.byref(item),
        )
        if not found:
            raise LookupError(f"the instance has no export {name!r}")
        return item

    def _settle(self, failure: Failure | None) -> None:
        if failure is None:
            self._call.check()
            return
        if self._call.outcome is not None:
            with_frames(self._call.outcome, failure)
        self._call.check()
        raise Stop(running_failure(failure))
