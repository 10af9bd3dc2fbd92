"""What a module imports and exports, read from the engine.

The engine package's own type objects are not used: asking them for the kind of a
``v128`` aborts the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.v1 import call_pb2

# Kinds of wasm_externtype_t in the C API's wasm.h.
_EXTERN_KINDS = {
    0: call_pb2.EXTERN_KIND_FUNCTION,
    1: call_pb2.EXTERN_KIND_GLOBAL,
    2: call_pb2.EXTERN_KIND_TABLE,
    3: call_pb2.EXTERN_KIND_MEMORY,
    4: call_pb2.EXTERN_KIND_TAG,
}

# Kinds of wasmtime_valtype_t in the C API: 0 to 4 are i32, i64, f32, f64 and v128, and 5 is a
# reference, whose heap type is 0 for extern and 2 for func. Nothing else can occur: the
# proposals that add more are disabled.
_NUMBER_TYPES = (
    call_pb2.VALUE_TYPE_I32,
    call_pb2.VALUE_TYPE_I64,
    call_pb2.VALUE_TYPE_F32,
    call_pb2.VALUE_TYPE_F64,
    call_pb2.VALUE_TYPE_V128,
)
_HEAP_EXTERN = 0

# Bounds of what a compiler describes. They keep an answer about a module far under a
# gRPC message's default limit of 4 MiB.
MAX_EXTERNS = 10_000
MAX_NAME_BYTES = 1024
MAX_DESCRIPTION_BYTES = 1 << 20

_NO_MAXIMUM = 0xFFFFFFFF

_TYPE_NAMES = {
    value: name.removeprefix("VALUE_TYPE_").lower() for name, value in call_pb2.ValueType.items()
}


class DescriptionTooLargeError(Exception):
    """A module has more, or longer, imports or exports than are described."""


@dataclass(frozen=True, slots=True)
class FunctionType:
    """Parameters and results of a function."""

    params: tuple[call_pb2.ValueType.ValueType, ...]
    results: tuple[call_pb2.ValueType.ValueType, ...]

    def __str__(self) -> str:
        params, results = (
            ", ".join(_TYPE_NAMES[type_] for type_ in types)
            for types in (self.params, self.results)
        )
        return f"({params}) -> ({results})"

    @property
    def only_numbers(self) -> bool:
        """True if every parameter and result is an i32, i64, f32 or f64."""
        return all(type_ <= call_pb2.VALUE_TYPE_F64 for type_ in self.params + self.results)


@dataclass(frozen=True, slots=True)
class Import:
    """One import. `function` is None for anything but a function."""

    module: str
    name: str
    kind: call_pb2.ExternKind.ValueType
    function: FunctionType | None


class Exports:
    """A module's exports by name; types are read when first asked for."""

    def __init__(self, module: wasmtime.Module):
        self._list = _ExportList(module)
        self._index = {_export_name(export): i for i, export in enumerate(self._list)}
        self._functions: dict[str, FunctionType | None] = {}
        self._kinds: dict[str, call_pb2.ExternKind.ValueType] = {}
        self.memory_name = self._first_memory()
        self.has_initialize = "_initialize" in self._index

    def kind(self, name: str) -> call_pb2.ExternKind.ValueType | None:
        """Kind of an export; None if there is none of that name."""
        try:
            return self._kinds[name]
        except KeyError:
            pass
        index = self._index.get(name)
        if index is None:
            return None
        self._kinds[name] = _kind(_export_type(self._list[index]))
        return self._kinds[name]

    def function(self, name: str) -> FunctionType | None:
        """Type of an exported function; None if no function of that name is exported."""
        try:
            return self._functions[name]
        except KeyError:
            pass
        index = self._index.get(name)
        if index is None:
            # Not remembered: names of exports that do not exist are without number.
            return None
        type_ = _export_type(self._list[index])
        is_function = _kind(type_) == call_pb2.EXTERN_KIND_FUNCTION
        self._functions[name] = _function_type(type_) if is_function else None
        return self._functions[name]

    def _first_memory(self) -> str | None:
        for name in self._index:
            if self.kind(name) == call_pb2.EXTERN_KIND_MEMORY:
                return name
        return None


def list_imports(module: wasmtime.Module) -> list[Import]:
    """List a module's imports in their order."""
    imports = []
    for item in _ImportList(module):
        type_ = ffi.wasm_importtype_type(item)
        kind = _kind(type_)
        function = _function_type(type_) if kind == call_pb2.EXTERN_KIND_FUNCTION else None
        imports.append(Import(*_import_names(item), kind, function))
    return imports


def describe(
    module: wasmtime.Module,
) -> tuple[list[call_pb2.Extern], list[call_pb2.Extern]]:
    """Describe a module's imports and exports; raises DescriptionTooLargeError."""
    import_list, export_list = _ImportList(module), _ExportList(module)
    _check_count("imports", len(import_list))
    _check_count("exports", len(export_list))
    imports, exports = [], []
    budget = MAX_DESCRIPTION_BYTES
    for item in import_list:
        module_name, name = _import_names(item)
        extern = _describe_extern(name, ffi.wasm_importtype_type(item))
        extern.module = _checked_name(module_name)
        imports.append(extern)
        budget = _spend(budget, extern)
    for item in export_list:
        extern = _describe_extern(_export_name(item), _export_type(item))
        exports.append(extern)
        budget = _spend(budget, extern)
    return imports, exports


def function_type_of(functype: Any) -> FunctionType:
    """Read a `wasm_functype_t` pointer, which stays the caller's."""
    return FunctionType(
        _value_types(ffi.wasm_functype_params(functype)),
        _value_types(ffi.wasm_functype_results(functype)),
    )


class _ExportList:
    """An owned wasm_exporttype_vec_t."""

    def __init__(self, module: wasmtime.Module):
        self._vec = ffi.wasm_exporttype_vec_t(0, None)
        ffi.wasmtime_module_exports(module.ptr(), ctypes.byref(self._vec))

    def __len__(self) -> int:
        return int(self._vec.size)

    def __getitem__(self, index: int) -> Any:
        return self._vec.data[index]

    def __iter__(self) -> Iterator[Any]:
        return (self._vec.data[i] for i in range(len(self)))

    def __del__(self) -> None:
        ffi.wasm_exporttype_vec_delete(ctypes.byref(self._vec))


class _ImportList:
    """An owned wasm_importtype_vec_t."""

    def __init__(self, module: wasmtime.Module):
        self._vec = ffi.wasm_importtype_vec_t(0, None)
        ffi.wasmtime_module_imports(module.ptr(), ctypes.byref(self._vec))

    def __len__(self) -> int:
        return int(self._vec.size)

    def __iter__(self) -> Iterator[Any]:
        return (self._vec.data[i] for i in range(len(self)))

    def __del__(self) -> None:
        ffi.wasm_importtype_vec_delete(ctypes.byref(self._vec))


def _text(vec: Any) -> str:
    # Validation has established that names are UTF-8.
    return ctypes.string_at(vec.contents.data, vec.contents.size).decode("utf-8")


def _export_name(item: Any) -> str:
    return _text(ffi.wasm_exporttype_name(item))


def _export_type(item: Any) -> Any:
    return ffi.wasm_exporttype_type(item)


def _import_names(item: Any) -> tuple[str, str]:
    return _text(ffi.wasm_importtype_module(item)), _text(ffi.wasm_importtype_name(item))


def _kind(externtype: Any) -> call_pb2.ExternKind.ValueType:
    return _EXTERN_KINDS[int(ffi.wasm_externtype_kind(externtype))]


def _function_type(externtype: Any) -> FunctionType:
    return function_type_of(ffi.wasm_externtype_as_functype_const(externtype))


def _value_types(vec: Any) -> tuple[call_pb2.ValueType.ValueType, ...]:
    items = vec.contents
    return tuple(_value_type(items.data[i]) for i in range(items.size))


def _value_type(valtype: Any) -> call_pb2.ValueType.ValueType:
    described: Any = ffi.wasmtime_valtype_t()
    ffi.wasmtime_valtype_new(valtype, ctypes.byref(described))
    try:
        kind = described.kind
        if kind < len(_NUMBER_TYPES):
            return _NUMBER_TYPES[kind]
        if described.reftype.heaptype.kind == _HEAP_EXTERN:
            return call_pb2.VALUE_TYPE_EXTERNREF
        return call_pb2.VALUE_TYPE_FUNCREF
    finally:
        ffi.wasmtime_valtype_delete(ctypes.byref(described))


def _describe_extern(name: str, externtype: Any) -> call_pb2.Extern:
    extern = call_pb2.Extern(name=_checked_name(name), kind=_kind(externtype))
    if extern.kind == call_pb2.EXTERN_KIND_FUNCTION:
        function = _function_type(externtype)
        extern.params.extend(function.params)
        extern.results.extend(function.results)
    elif extern.kind == call_pb2.EXTERN_KIND_MEMORY:
        memory = ffi.wasm_externtype_as_memorytype_const(externtype)
        extern.minimum = ffi.wasmtime_memorytype_minimum(memory)
        maximum = ctypes.c_uint64(0)
        if ffi.wasmtime_memorytype_maximum(memory, ctypes.byref(maximum)):
            extern.maximum = maximum.value
    elif extern.kind == call_pb2.EXTERN_KIND_TABLE:
        table = ffi.wasm_externtype_as_tabletype_const(externtype)
        limits = ffi.wasm_tabletype_limits(table).contents
        extern.minimum = limits.min
        if limits.max != _NO_MAXIMUM:
            extern.maximum = limits.max
    return extern


def _check_count(what: str, count: int) -> None:
    if count > MAX_EXTERNS:
        raise DescriptionTooLargeError(f"the module has {count} {what}; the limit is {MAX_EXTERNS}")


def _checked_name(name: str) -> str:
    size = len(name.encode("utf-8"))
    if size > MAX_NAME_BYTES:
        raise DescriptionTooLargeError(
            f"the module has an import or export with a name of {size} bytes; "
            f"the limit is {MAX_NAME_BYTES}"
        )
    return name


def _spend(budget: int, extern: call_pb2.Extern) -> int:
    # 6 bytes frame an Extern in the message that holds it.
    budget -= extern.ByteSize() + 6
    if budget < 0:
        raise DescriptionTooLargeError(
            "the names and types of the module's imports and exports take more than "
            f"{MAX_DESCRIPTION_BYTES} bytes"
        )
    return budget
