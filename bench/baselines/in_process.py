"""wasmtime in one's own process, through its Python package, as its documentation shows it.

Every call has a fresh store and instance, as sandboxd's have; it has no deadline and no wall.
"""

from __future__ import annotations

import wasmtime


class InProcess:
    """A compiled module."""

    def __init__(self, wasm: bytes, engine: wasmtime.Engine | None = None) -> None:
        """Compile. Without an engine of the caller's it is one with default settings."""
        self._engine = engine if engine is not None else wasmtime.Engine()
        self._module = wasmtime.Module(self._engine, wasm)
        self._linker = wasmtime.Linker(self._engine)
        i32 = wasmtime.ValType.i32()
        if any(item.module == "env" for item in self._module.imports):
            log = wasmtime.FuncType([i32, i32], [])
            self._linker.define_func("env", "log", log, lambda _pointer, _length: None)
        # Ours has epochs; its deadline must be set or every call traps.
        self._epochs = engine is not None

    def bytes_call(self, export: str, data: bytes, length: int | None = None) -> bytes:
        """Make a bytes call in a fresh instance.

        The result is packed into an i64, or, if `length` is given, of that length.
        """
        store = wasmtime.Store(self._engine)
        if self._epochs:
            store.set_epoch_deadline(1)
        exports = self._linker.instantiate(store, self._module).exports(store)
        memory = exports["memory"]
        alloc, function = exports["alloc"], exports[export]
        assert isinstance(memory, wasmtime.Memory)
        assert isinstance(alloc, wasmtime.Func)
        assert isinstance(function, wasmtime.Func)
        pointer = alloc(store, len(data))
        memory.write(store, data, pointer)
        result = function(store, pointer, len(data))
        if length is None:
            result, length = (result >> 32) & 0xFFFFFFFF, result & 0xFFFFFFFF
        return bytes(memory.read(store, result, result + length))
