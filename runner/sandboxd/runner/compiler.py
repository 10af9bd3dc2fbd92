"""Compiling one module to an artifact.

Runs in a process that lives for one compilation and needs nothing but memory and `write`. First the
module's shape is held against limits (shape.py); what passes is given to the engine. Time
and memory are bounded from outside: a compilation that exceeds them is killed or aborts, and the
supervisor reports that.
"""

import ctypes
import errno
import os
import re
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import shape
from sandboxd.runner.outcomes import for_people, take_failure
from sandboxd.runner.signatures import DescriptionTooLargeError, describe
from sandboxd.wire.v1 import runner_pb2

# Invalid.message and TooComplex.message are for people.
MAX_REASON_BYTES = 2048

_MAGIC = b"\0asm"
_CORE_VERSION = b"\x01\0\0\0"
# The second half of the version field is the layer: 1 for components.
_COMPONENT_LAYER = b"\x01\0"

_BytePointer = ctypes.POINTER(ctypes.c_uint8)

# What people push by mistake, by how it begins.
_LOOKALIKES = (
    (b"\x1f\x8b", "this is gzip; unpack it first"),
    (b"PK\x03\x04", "this is a zip archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is zstd; unpack it first"),
    (
        b"\x7fELF",
        "this is an ELF file, perhaps a compiled .cwasm; push the WebAssembly it was made of",
    ),
    (b"BC\xc0\xde", "this is LLVM bitcode; link it to WebAssembly first"),
    (b"!<arch>", "this is a static library; link it to WebAssembly first"),
)

# "(at offset 0x1f)" while parsing, "at offset 26:" in function bodies.
_OFFSET = re.compile(r" ?\(at offset 0x([0-9a-f]+)\)| at offset (\d+)(?=:)")
# Wrappers that say nothing about the module.
_NOISE = re.compile(
    r"WebAssembly translation error; |failed to parse WebAssembly module; "
    r"|Invalid input WebAssembly code"
)
# The engine's own limits, which do not make a module invalid.
_TOO_COMPLEX = re.compile(r"Compilation error|[Ii]mplementation limit|[Cc]ode.* too large")

# At the beginning only: further on a message can hold names that the module's author chose.
_NO_MEMORY = re.compile(r"mmap failed|out of memory|allocation failed|Cannot allocate memory")


def compile_module(
    engine: wasmtime.Engine, wasm: bytes, artifact_fd: int, max_artifact_bytes: int
) -> runner_pb2.CompilerReply:
    """Compile a module and write the artifact to a descriptor, from its current position.

    Returns a reply with `compiled`, `invalid` or `too_complex` set; nothing that `wasm` holds makes
    it raise. Raises OSError if writing fails for another reason than size.
    """
    mistake = _not_a_module(wasm)
    if mistake is not None:
        return _invalid(mistake, 0)
    try:
        seen = shape.check_shape(wasm)
        module = _compile(engine, wasm)
        if isinstance(module, runner_pb2.CompilerReply):
            return module
        imports, exports = describe(module)
        size = _write_artifact(module, artifact_fd, max_artifact_bytes)
    except _REFUSALS as error:
        return _refusal(error, max_artifact_bytes)
    return runner_pb2.CompilerReply(
        compiled=runner_pb2.Compiled(
            artifact_size_bytes=size,
            imports=imports,
            exports=exports,
            no_start_function=not seen[shape.START_FUNCTIONS],
        )
    )


def out_of_memory() -> runner_pb2.CompilerReply:
    """Return the verdict on a module for which the compiler has not enough memory."""
    return _too_complex("compiling needs more memory than is allowed", "memory")


class _ArtifactTooLargeError(Exception):
    """The artifact exceeds its limit or its memory file. `actual` is its size, if it has one."""

    def __init__(self, message: str, actual: int | None = None):
        self.actual = actual
        super().__init__(message)


_REFUSALS = (
    shape.MalformedError,
    shape.LimitExceededError,
    DescriptionTooLargeError,
    _ArtifactTooLargeError,
    MemoryError,
)


def _refusal(error: Exception, max_artifact_bytes: int) -> runner_pb2.CompilerReply:
    match error:
        case shape.MalformedError():
            return _invalid(error.message, error.offset)
        case shape.LimitExceededError(limit=limit, actual=actual):
            return _too_complex(str(error), limit.name, limit.maximum, actual)
        case DescriptionTooLargeError():
            return _too_complex(str(error), "description")
        case _ArtifactTooLargeError():
            return _too_complex(str(error), "artifact_size", max_artifact_bytes, error.actual)
        case _:
            return out_of_memory()


def _not_a_module(wasm: bytes) -> str | None:
    head = wasm[:8]
    if head == _MAGIC + _CORE_VERSION:
        return None
    if head[:4] != _MAGIC:
        return f"not a WebAssembly module: {_looks_like(wasm)}"
    if len(head) < 8:
        return f"it ends after {len(head)} bytes, in its header: magic and version take 8"
    if head[6:8] == _COMPONENT_LAYER:
        return "components are not supported; push a core module"
    return f"unknown version of the binary format: {head[4:8].hex(' ')}"


def _looks_like(wasm: bytes) -> str:
    for prefix, message in _LOOKALIKES:
        if wasm.startswith(prefix):
            return message
    if wasm[:4096].lstrip()[:1] in (b"(", b";"):
        return "this is text; translate it to the binary format first, for example with wat2wasm"
    if not wasm:
        return "it is empty"
    return "it does not begin with 00 61 73 6d 01 00 00 00"


def _compile(engine: wasmtime.Engine, wasm: bytes) -> wasmtime.Module | runner_pb2.CompilerReply:
    module = ctypes.POINTER(ffi.wasmtime_module_t)()
    data = ctypes.cast(ctypes.c_char_p(wasm), _BytePointer)
    # This entry of the C API takes the binary format only, and the bytes as they lie.
    error = ffi.wasmtime_module_new(engine.ptr(), data, len(wasm), ctypes.byref(module))
    failure = take_failure(error, None)
    if failure is None:
        return wasmtime.Module._from_ptr(module)
    message = _NOISE.sub("", failure.message)
    if _NO_MEMORY.match(message):
        return out_of_memory()
    if _TOO_COMPLEX.search(message):
        return _too_complex(message, "engine")
    found = _OFFSET.search(message)
    if found is None:
        return _invalid(message, None)
    offset = int(found[1], 16) if found[1] else int(found[2])
    return _invalid(_OFFSET.sub("", message, count=1).removeprefix(": "), offset)


def _write_artifact(module: wasmtime.Module, fd: int, max_bytes: int) -> int:
    vec = ffi.wasm_byte_vec_t()
    failure = take_failure(ffi.wasmtime_module_serialize(module.ptr(), ctypes.byref(vec)), None)
    if failure is not None:
        raise _ArtifactTooLargeError(f"the artifact cannot be serialized: {failure.message}")
    try:
        if vec.size > max_bytes:
            raise _ArtifactTooLargeError(
                f"the compiled module has {vec.size} bytes; the limit is {max_bytes}", vec.size
            )
        _write_all(fd, vec)
        return int(vec.size)
    finally:
        ffi.wasm_byte_vec_delete(ctypes.byref(vec))


def _write_all(fd: int, vec: Any) -> None:
    view = memoryview((ctypes.c_ubyte * vec.size).from_address(ctypes.addressof(vec.data.contents)))
    written = 0
    try:
        while written < len(view):
            written += os.write(fd, view[written:])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG):
            raise
        raise _ArtifactTooLargeError(
            f"the compiled module has {len(view)} bytes; room was left for {written}", len(view)
        ) from error


def _invalid(message: str, offset_bytes: int | None) -> runner_pb2.CompilerReply:
    return runner_pb2.CompilerReply(
        invalid=runner_pb2.Invalid(
            message=for_people(message, MAX_REASON_BYTES), offset_bytes=offset_bytes
        )
    )


def _too_complex(
    message: str, limit: str, maximum: int | None = None, actual: int | None = None
) -> runner_pb2.CompilerReply:
    return runner_pb2.CompilerReply(
        too_complex=runner_pb2.TooComplex(
            message=for_people(message, MAX_REASON_BYTES),
            limit=limit,
            maximum=maximum,
            actual=actual,
        )
    )
