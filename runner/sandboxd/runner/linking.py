"""Connecting a module's imports, once, when it is bound to a runner."""

import ctypes
from typing import Any, Protocol

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import entry_points
from sandboxd.runner.entry_points import address_of
from sandboxd.runner.imports import (
    HOST_FUNCTIONS,
    HOST_MODULE,
    WASI_MODULE,
    base_linker,
    copy_linker,
    define_host_function,
)
from sandboxd.runner.outcomes import Stop, clip, for_people
from sandboxd.runner.signatures import FunctionType, Import, function_type_of, list_imports
from sandboxd.runner.store import Store
from sandboxd.v1 import call_pb2

_InstancePointer = ctypes.POINTER(ffi.wasmtime_instance_t)
_TrapPointers = ctypes.POINTER(ctypes.POINTER(ffi.wasm_trap_t))


class Linked(Protocol):
    """A module that only needs a store to be instantiated."""

    uses_wasi: bool

    def instantiate(self, store: Store, instance: int, trap: int) -> int | None:
        """Instantiate into a store; returns the address of a `wasmtime_error_t`, or None.

        `instance` and `trap` are addresses of a `wasmtime_instance_t` and of a `wasm_trap_t`
        pointer that are filled.
        """


def link(engine: wasmtime.Engine, module: wasmtime.Module) -> Linked:
    """Link a module.

    Raises Stop with a LinkError that names the first import that the host does not provide.
    """
    imports = list_imports(module)
    forms = _host_forms(imports)
    # A copy is only made to be added to.
    linkers = [copy_linker(base_linker(engine)) if forms else base_linker(engine)]
    for name, types in forms.items():
        while len(linkers) < len(types):
            linkers.append(copy_linker(base_linker(engine)))
        for linker, type_ in zip(linkers, types, strict=False):
            define_host_function(linker, name, type_)
    uses_wasi = any(item.module == WASI_MODULE for item in imports)
    if len(linkers) == 1:
        return _PreLinked(linkers[0], module, imports, uses_wasi)
    return _Overloaded(linkers, module, imports, forms, uses_wasi)


class _PreLinked:
    """The usual case: all imports are resolved ahead of every call."""

    def __init__(
        self,
        linker: wasmtime.Linker,
        module: wasmtime.Module,
        imports: list[Import],
        uses_wasi: bool,
    ):
        try:
            self._pre = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            _check_resolved(linker, imports)
            raise error
        self._place = address_of(self._pre.ptr())
        self.uses_wasi = uses_wasi

    def instantiate(self, store: Store, instance: int, trap: int) -> int | None:
        error: int | None = entry_points.instance_pre_instantiate(
            self._place, store.context, instance, trap
        )
        return error


class _Overloaded:
    """A module that imports one name in several forms, such as `log` of an i32 and of an i64.

    A linker knows one definition of a name, so each form has its own linker,
    and every call gathers the imports anew.
    """

    def __init__(
        self,
        linkers: list[wasmtime.Linker],
        module: wasmtime.Module,
        imports: list[Import],
        forms: dict[str, list[FunctionType]],
        uses_wasi: bool,
    ):
        _check_resolved(linkers[0], [item for item in imports if item.module == WASI_MODULE])
        self.uses_wasi = uses_wasi
        self._module = module
        self._sources = [(_linker_of(item, linkers, forms), item) for item in imports]

    def instantiate(self, store: Store, instance: int, trap: int) -> int | None:
        context = store.context_pointer()
        externs = (ffi.wasmtime_extern_t * len(self._sources))()
        for extern, (linker, item) in zip(externs, self._sources, strict=True):
            _resolve(linker, context, item, extern)
        error = ffi.wasmtime_instance_new(
            context,
            self._module.ptr(),
            externs,
            len(externs),
            ctypes.cast(instance, _InstancePointer),
            ctypes.cast(trap, _TrapPointers),
        )
        return address_of(error) if error else None


def _linker_of(
    item: Import, linkers: list[wasmtime.Linker], forms: dict[str, list[FunctionType]]
) -> wasmtime.Linker:
    if item.module != HOST_MODULE or item.function is None:
        return linkers[0]
    return linkers[forms[item.name].index(item.function)]


def _host_forms(imports: list[Import]) -> dict[str, list[FunctionType]]:
    """The forms in which each of the host's own functions is imported; raises Stop."""
    forms: dict[str, list[FunctionType]] = {}
    for item in imports:
        if item.module == WASI_MODULE:
            continue
        known = HOST_FUNCTIONS.get(item.name, {}) if item.module == HOST_MODULE else {}
        if not known:
            raise _link_error(item, "the host provides no such import")
        if item.function not in known:
            wanted = " or ".join(str(type_) for type_ in known)
            raise _link_error(item, f"imported as {_describe(item)}; the host provides {wanted}")
        types = forms.setdefault(item.name, [])
        if item.function not in types:
            types.append(item.function)
    return forms


def _check_resolved(linker: wasmtime.Linker, imports: list[Import]) -> None:
    """Raise Stop for the first import that the linker lacks or has with another type."""
    with wasmtime.Store(linker.engine) as store:
        context = store._context()
        for item in imports:
            extern = ffi.wasmtime_extern_t()
            if not _resolve(linker, context, item, extern):
                raise _link_error(item, "the host provides no such import")
            functype = ffi.wasmtime_func_type(context, ctypes.byref(extern.of.func))
            try:
                provided = function_type_of(functype)
            finally:
                ffi.wasm_functype_delete(functype)
            if item.function != provided:
                raise _link_error(
                    item, f"imported as {_describe(item)}; the host provides {provided}"
                )


def _resolve(linker: wasmtime.Linker, context: Any, item: Import, extern: Any) -> bool:
    module, name = item.module.encode(), item.name.encode()
    return bool(
        ffi.wasmtime_linker_get(
            linker.ptr(), context, module, len(module), name, len(name), ctypes.byref(extern)
        )
    )


def _describe(item: Import) -> str:
    if item.function is not None:
        return str(item.function)
    return "a " + call_pb2.ExternKind.Name(item.kind).removeprefix("EXTERN_KIND_").lower()


def _link_error(item: Import, message: str) -> Stop:
    # Names are the guest's; the message repeats neither.
    return Stop(
        call_pb2.LinkError(
            module=clip(item.module, _MAX_NAME_BYTES),
            name=clip(item.name, _MAX_NAME_BYTES),
            message=for_people(message),
        )
    )


# The compiler refuses modules with longer names.
_MAX_NAME_BYTES = 1024
