"""A peer that is an ordinary host of wasmtime: the same module and engine settings, no sandbox.

    python -m bench.claims.engine bytes MODULE EXPORT INPUT
    python -m bench.claims.engine wasi MODULE ARGUMENT...

`run` calls in a fresh instance each time, as sandboxd does: what sandboxd spends beyond that is the
price of its processes and of gRPC. `repeat` (bytes only) calls the guest's own loop once: its code
and nothing else. A process of its own, because a first WASI write starts threads.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wasmtime

from bench.claims.tools import BUILD
from sandboxd.runner.engine import build_engine, engine_version


def load(engine: wasmtime.Engine, path: Path) -> wasmtime.Module:
    """Compile a module, or load what an earlier run compiled: CPython takes 20 seconds.

    The cached file is trusted like everything else in build/.
    """
    data = path.read_bytes()
    key = hashlib.sha256(data + engine_version().encode()).hexdigest()
    cached = BUILD / "compiled" / key
    if cached.is_file():
        return wasmtime.Module.deserialize_file(engine, str(cached))
    module = wasmtime.Module(engine, data)
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(".partial")
    partial.write_bytes(module.serialize())
    partial.replace(cached)
    return module


class BytesHost:
    """Makes bytes calls (PACKED_I64) of one module."""

    def __init__(self, module: Path, export: str, data: bytes) -> None:
        self._engine = build_engine(fuel=False)
        self._export = export
        self._data = data
        linker = wasmtime.Linker(self._engine)
        log = wasmtime.FuncType([wasmtime.ValType.i32()] * 2, [])
        linker.define_func("env", "log", log, _ignore)
        self._instance = linker.instantiate_pre(load(self._engine, module))

    def _start(self) -> tuple[wasmtime.Store, Any, int]:
        """Make an instance with the input in its memory; returns it and where that is."""
        store = wasmtime.Store(self._engine)
        store.set_epoch_deadline(1)
        # Any: an export may be of several kinds; a module that lacks one fails at its first call.
        exports: Any = self._instance.instantiate(store).exports(store)
        pointer = exports["alloc"](store, len(self._data))
        exports["memory"].write(store, self._data, pointer)
        return store, exports, pointer

    def call(self) -> bytes:
        """Make one call in a fresh instance."""
        store, exports, pointer = self._start()
        packed = exports[self._export](store, pointer, len(self._data))
        start = packed >> 32 & 0xFFFFFFFF
        output = exports["memory"].read(store, start, start + (packed & 0xFFFFFFFF))
        store.close()
        return bytes(output)

    def repeat_ns(self, times: int) -> int:
        """Let the guest repeat its work in one instance; return how long it was in there."""
        store, exports, pointer = self._start()
        # The first repetition grows the memory.
        exports["repeat"](store, pointer, len(self._data), 1)
        started_ns = time.perf_counter_ns()
        exports["repeat"](store, pointer, len(self._data), times)
        elapsed_ns = time.perf_counter_ns() - started_ns
        store.close()
        return elapsed_ns


class WasiHost:
    """Runs a WASI command."""

    def __init__(self, module: Path, arguments: list[str]) -> None:
        self._engine = build_engine(fuel=False)
        self._arguments = arguments
        linker = wasmtime.Linker(self._engine)
        linker.define_wasi()
        self._instance = linker.instantiate_pre(load(self._engine, module))

    def call(self) -> bytes:
        """Run it in a fresh instance; return its standard output."""
        output: list[bytes] = []

        def write(data: bytes) -> None:
            output.append(bytes(data))

        config = wasmtime.WasiConfig()
        config.argv = self._arguments
        config.stdout_custom = write
        store = wasmtime.Store(self._engine)
        store.set_epoch_deadline(1)
        store.set_wasi(config)
        try:
            exports: Any = self._instance.instantiate(store).exports(store)
            exports["_start"](store)
        except wasmtime.ExitTrap as end:
            if end.code != 0:
                raise
        finally:
            store.close()
        return b"".join(output)

    def repeat_ns(self, times: int) -> int:
        """Commands do not repeat."""
        raise NotImplementedError


def _ignore(_pointer: int, _length: int) -> None:
    """Take a message that a guest logs."""


def timed(call: Callable[[], bytes], times: int) -> int:
    """Call so many times; return the nanoseconds."""
    started_ns = time.perf_counter_ns()
    for _ in range(times):
        call()
    return time.perf_counter_ns() - started_ns


def main() -> None:
    """Answer each line of standard input with one of standard output."""
    kind, module, *rest = sys.argv[1:]
    host: BytesHost | WasiHost
    if kind == "bytes":
        host = BytesHost(Path(module), rest[0], Path(rest[1]).read_bytes())
    else:
        host = WasiHost(Path(module), rest)
    for line in sys.stdin:
        match line.split():
            case ["run", times]:
                print(timed(host.call, int(times)), flush=True)
            case ["repeat", times]:
                print(host.repeat_ns(int(times)), flush=True)
            case _:
                print(host.call().hex(), flush=True)


if __name__ == "__main__":
    main()
