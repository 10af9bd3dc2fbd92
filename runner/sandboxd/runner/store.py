"""A store: what one call's instance lives in, with its limits."""

from __future__ import annotations

import ctypes
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import entry_points
from sandboxd.runner.entry_points import address_of

_INT64_MAX = (1 << 63) - 1
_ContextPointer = ctypes.POINTER(ffi.wasmtime_context_t)


class Store:
    """One store. `context` is the address of its `wasmtime_context_t`; valid until `close`."""

    __slots__ = ("_address", "context")

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._address = entry_points.store_new(address_of(engine.ptr()), None, None)
        self.context: int = entry_points.store_context(self._address)

    def limit(self, memory_bytes: int, table_elements: int, tables: int) -> None:
        """Bound what an instance can have. To be called before there is one.

        The engine limits each table by itself. To keep the sum under the limit, several tables get
        an equal share each.
        """
        entry_points.store_limiter(
            self._address,
            min(memory_bytes, _INT64_MAX),
            min(table_elements, _INT64_MAX) // tables,
            1,
            tables,
            1,
        )

    def context_pointer(self) -> Any:
        """The context as the engine package's functions take it."""
        return ctypes.cast(self.context, _ContextPointer)

    def set_fuel(self, fuel: int) -> None:
        """Set the fuel that is left."""
        error = ffi.wasmtime_context_set_fuel(self.context_pointer(), fuel)
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)

    def get_fuel(self) -> int:
        """Return the fuel that is left."""
        fuel = ctypes.c_uint64(0)
        error = ffi.wasmtime_context_get_fuel(self.context_pointer(), ctypes.byref(fuel))
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        return fuel.value

    def close(self) -> None:
        """Drop it with all that is in it. Idempotent."""
        if self._address:
            entry_points.store_delete(self._address)
            self._address = self.context = 0

    def __del__(self) -> None:
        self.close()
