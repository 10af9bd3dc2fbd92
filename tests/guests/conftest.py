"""A plain host for the example guests: docs/abi.md over the `wasmtime` package, in this process.

It is written apart from the runner on purpose: the guests are checked against the document, and the
runner against the guests. WASI commands run in a subprocess (wasi_host.py), because their first
input or output starts threads that no test process should keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import wasmtime

GUESTS = Path(__file__).parents[2] / "examples" / "guests"
LANGUAGES = ("c", "assemblyscript")


@dataclass
class Reply:
    """What came of one bytes call: the result, and the messages that were logged."""

    output: bytes
    log: list[bytes] = field(default_factory=list)


class Instance:
    """One fresh instance of a guest; `memory_bytes` caps its memory."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module, memory_bytes: int) -> None:
        self.store = wasmtime.Store(engine)
        self.store.set_limits(memory_size=memory_bytes)
        self.log: list[bytes] = []
        linker = wasmtime.Linker(engine)
        i32 = wasmtime.ValType.i32()
        linker.define_func("env", "log", wasmtime.FuncType([i32] * 2, []), self._log)
        linker.define_func("env", "abort", wasmtime.FuncType([i32] * 4, []), self._abort)
        self.exports = linker.instantiate(self.store, module).exports(self.store)
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self.memory = memory

    def call(self, export: str, *args: int) -> list[int]:
        """Calls an export with numbers; returns its results as a list."""
        function = self.exports[export]
        assert isinstance(function, wasmtime.Func)
        results = function(self.store, *args)
        if results is None:
            return []
        return list(results) if isinstance(results, list) else [results]

    def read(self, pointer: int, length: int) -> bytes:
        """Reads memory; a range that is not inside it is a ValueError, as is a negative one."""
        start = pointer & 0xFFFFFFFF
        if start + length > self.memory.data_len(self.store):
            raise ValueError("the guest pointed outside its memory")
        return bytes(self.memory.read(self.store, start, start + length))

    def _log(self, pointer: int, length: int) -> None:
        self.log.append(self.read(pointer, length & 0xFFFFFFFF))

    def _abort(self, message: int, _file: int, line: int, column: int) -> None:
        # AssemblyScript's strings: UTF-16, the length in bytes in the four bytes before.
        size = int.from_bytes(self.read(message - 4, 4), "little")
        text = self.read(message, size).decode("utf-16-le")
        raise RuntimeError(f"abort: {text} at {line}:{column}")


@dataclass(frozen=True)
class Guest:
    """One prebuilt module."""

    path: Path
    engine: wasmtime.Engine
    module: wasmtime.Module

    @property
    def language(self) -> str:
        """The folder that it lies in."""
        return self.path.parent.name

    def instantiate(self, memory_bytes: int = 1 << 30) -> Instance:
        """Gives a fresh instance."""
        return Instance(self.engine, self.module, memory_bytes)

    def call(self, export: str, data: bytes, result: str, memory_bytes: int = 1 << 30) -> Reply:
        """Makes one bytes call; `result` is what `sandboxctl call --result` takes."""
        guest = self.instantiate(memory_bytes)
        [pointer] = guest.call("alloc", len(data))
        if pointer == 0 and data:
            raise MemoryError("the guest has no memory")
        guest.read(pointer, len(data))
        guest.memory.write(guest.store, data, pointer & 0xFFFFFFFF)
        return Reply(self._result(guest, guest.call(export, pointer, len(data)), result), guest.log)

    @staticmethod
    def _result(guest: Instance, values: list[int], result: str) -> bytes:
        match result:
            case "packed":
                [both] = values
                start, size, taken = both >> 32, both & 0xFFFFFFFF, 0
            case "pointer-length":
                start, length = values
                size, taken = length & 0xFFFFFFFF, 0
            case "nul":
                [start] = values
                rest = guest.memory.data_len(guest.store) - (start & 0xFFFFFFFF)
                size, taken = guest.read(start, rest).index(b"\0"), 1
            case _:
                [start] = values
                size, taken = int(result.removeprefix("fixed:")), 0
        output = guest.read(start, size) if size else b""
        if size + taken and "dealloc" in guest.exports:
            guest.call("dealloc", start, size + taken)
        return output


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each language."""
    return str(request.param)


@pytest.fixture(scope="session")
def compiled() -> Callable[[Path], Guest]:
    """Compiles each module once per test process."""
    engine = wasmtime.Engine()
    guests: dict[Path, Guest] = {}

    def get(path: Path) -> Guest:
        if path not in guests:
            guests[path] = Guest(path, engine, wasmtime.Module(engine, path.read_bytes()))
        return guests[path]

    return get


@pytest.fixture
def load(language: str, compiled: Callable[[Path], Guest]) -> Callable[[str], Guest]:
    """Gives the guest of a name in the language of the test."""
    return lambda name: compiled(GUESTS / language / f"{name}.wasm")
