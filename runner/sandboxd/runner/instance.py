"""A fresh instance in its store, for one call.

An instance can be made ahead of its call, while the runner has nothing else to do. No code of the
guest runs then but what the engine made of its initial data: guest.py sees to it that there is no
start function.

CAVEAT: functions are called through arrays at fixed places, one set for the process. One call runs
at a time, and nothing that the host does for a guest calls back into it. Whoever finds a trap in
its place takes it out again.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _ffi as ffi

from sandboxd.runner import entry_points
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
from sandboxd.runner.store import Store
from sandboxd.v1 import call_pb2

INITIALIZE = "_initialize"
NO_VALUES = FunctionType((), ())

_func_call_unchecked = entry_points.func_call_unchecked

_NEXT_EPOCH = 1

_trap = ctypes.c_void_p()
_TRAP = ctypes.addressof(_trap)
_TrapPointer = ctypes.POINTER(ffi.wasm_trap_t)
_ErrorPointer = ctypes.POINTER(ffi.wasmtime_error_t)

# wasmtime_val_raw_t: 16 bytes each, numbers in the low ones.
_raw = (ctypes.c_uint64 * 4)()
_RAW = ctypes.addressof(_raw)
assert ctypes.sizeof(ffi.wasmtime_val_raw_t) == 16

# wasmtime_val_t: kind and union member of each number type.
KINDS: dict[call_pb2.ValueType.ValueType, tuple[int, str]] = {
    call_pb2.VALUE_TYPE_I32: (ffi.WASMTIME_I32.value, "i32"),
    call_pb2.VALUE_TYPE_I64: (ffi.WASMTIME_I64.value, "i64"),
    call_pb2.VALUE_TYPE_F32: (ffi.WASMTIME_F32.value, "f32"),
    call_pb2.VALUE_TYPE_F64: (ffi.WASMTIME_F64.value, "f64"),
}


class Instance:
    """One instance in its store, which it owns.

    The limits are those of the call that it is made for; `call` is set by `serve`.
    """

    __slots__ = (
        "_call",
        "_exports",
        "_functions",
        "_instance",
        "_memories",
        "_place",
        "instantiated",
        "store",
    )

    def __init__(self, store: Store):
        self.store = store
        self.instantiated = False
        self._call: Call | None = None
        self._instance = ffi.wasmtime_instance_t()
        self._place = ctypes.addressof(self._instance)
        # Found so far: the exports themselves, and addresses of functions in them.
        self._exports: list[Any] = []
        self._functions: dict[str, int] = {}
        self._memories: dict[str, GuestMemory] = {}

    def instantiate_ahead(self, linked: Linked) -> bool:
        """Instantiate the module before there is a call; False if it cannot be, for any reason."""
        entry_points.context_set_epoch_deadline(self.store.context, _NEXT_EPOCH)
        return self._instantiate(linked) is None

    def serve(self, call: Call) -> None:
        """From now on it is this call's."""
        self._call = call
        context = self.store.context
        entry_points.context_set_data(context, call.key)
        entry_points.context_set_epoch_deadline(context, _NEXT_EPOCH)

    def instantiate(self, linked: Linked) -> Failure | None:
        """Instantiate the module for the call, which runs its start function.

        Returns a failure for which no guest code ran and that the host did not cause; raises
        Stop for every other.
        """
        call = self._call
        assert call is not None
        failure = self._instantiate(linked)
        if failure is None or call.outcome is not None or call.bug is not None:
            self._settle(failure)
            return None
        if failure.code is None and not failure.frames:
            return failure
        raise Stop(instantiation_failure(failure))

    def _instantiate(self, linked: Linked) -> Failure | None:
        error = linked.instantiate(self.store, self._place, _TRAP)
        if error or _trap.value:
            return _take_failure(error)
        self.instantiated = True
        return None

    def initialize(self, exports: Exports, called: str) -> None:
        """Call a reactor's `_initialize`, unless it is what is called anyway."""
        if called == INITIALIZE or not exports.has_initialize:
            return
        if exports.function(INITIALIZE) != NO_VALUES:
            raise broke_abi(f"the export {INITIALIZE} is not a function of type {NO_VALUES}")
        self.invoke(INITIALIZE)

    def invoke(self, export: str, arguments: Any = (), result_count: int = 0) -> Any:
        """Call an exported function; returns the array of `wasmtime_val_t` results.

        Raises Stop if the guest trapped, or the host ended the call. The caller has
        checked that the export exists and that arguments and results fit its type.
        """
        results = (ffi.wasmtime_val_t * result_count)()
        error = entry_points.func_call(
            self.store.context,
            self._function(export),
            ctypes.addressof(arguments) if arguments else None,
            len(arguments),
            ctypes.addressof(results) if result_count else None,
            result_count,
            _TRAP,
        )
        self._settle(_take_failure(error) if error or _trap.value else None)
        return results

    def invoke_integers(self, export: str, first: int, second: int = 0) -> tuple[int, int]:
        """Call an exported function of one or two i32 and return what it left in two places.

        Results are unsigned and as wide as the place; the caller takes as many, and as many bits,
        as the export's type has, which it has checked: here nothing is. Raises Stop as `invoke`.
        """
        _raw[0], _raw[2] = first, second
        error = _func_call_unchecked(
            self.store.context,
            self._functions.get(export) or self._function(export),
            _RAW,
            2,
            _TRAP,
        )
        if error or _trap.value:
            self._settle(_take_failure(error))
        call = self._call
        if call is None or call.outcome is not None or call.bug is not None:
            self._settle(None)
        return _raw[0], _raw[2]

    def memory(self, name: str) -> GuestMemory:
        """An exported memory; the caller has checked that it exists."""
        memory = self._memories.get(name)
        if memory is None:
            memory = GuestMemory(self.store.context, self._export(name).of.memory)
            self._memories[name] = memory
        return memory

    def look_up(self, functions: tuple[str, ...], memory: str) -> None:
        """Find exports ahead of their use."""
        for name in functions:
            self._function(name)
        self.memory(memory)

    def _function(self, name: str) -> int:
        address = self._functions.get(name)
        if address is None:
            address = self._functions[name] = ctypes.addressof(self._export(name).of.func)
        return address

    def _export(self, name: str) -> Any:
        item = ffi.wasmtime_extern_t()
        encoded = name.encode()
        if not entry_points.instance_export_get(
            self.store.context, self._place, encoded, len(encoded), ctypes.addressof(item)
        ):
            raise LookupError(f"the instance has no export {name!r}")
        self._exports.append(item)
        return item

    def _settle(self, failure: Failure | None) -> None:
        call = self._call
        assert call is not None
        if failure is None:
            call.check()
            return
        if call.outcome is not None:
            with_frames(call.outcome, failure)
        call.check()
        raise Stop(running_failure(failure))


def _take_failure(error: int | None) -> Failure | None:
    trap = ctypes.cast(_trap, _TrapPointer)
    _trap.value = None
    return take_failure(ctypes.cast(error, _ErrorPointer) if error else None, trap)
