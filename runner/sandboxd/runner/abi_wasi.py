"""WASI preview 1: commands, and the output of every guest that imports it.

No directories, no sockets, nothing inherited. The engine runs output callbacks on a thread of its
own runtime, one at a time, and the guest's write does not return before they have: output is
complete when a call returns or traps. The first write or read starts that runtime, so none may
happen in the zygote.
"""

import ctypes
import errno
import functools
from collections.abc import Callable, Iterable
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import call as calls
from sandboxd.runner.call import Call
from sandboxd.runner.instance import NO_VALUES, Instance
from sandboxd.runner.outbox import Region
from sandboxd.runner.outcomes import rejected
from sandboxd.runner.signatures import Exports
from sandboxd.runner.store import Store
from sandboxd.v1 import call_pb2, sandbox_pb2

START = "_start"

_CharPointer = ctypes.POINTER(ctypes.c_char)
_BytePointer = ctypes.POINTER(ctypes.c_ubyte)
# The engine package's own prototype: ctypes keeps one class for each.
_OutputCallback = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, _BytePointer, ctypes.c_size_t)
_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()


def wasi_command(exports: Exports, start: Callable[[], Instance]) -> int:
    """Check a WASI command, then start an instance and run it.

    Returns the exit code of a guest that returns; raises Stop for every other outcome, `proc_exit`
    included.
    """
    if exports.function(START) != NO_VALUES:
        raise rejected("wasi", f"no function {START} of type {NO_VALUES} is exported")
    start().invoke(START)
    return 0


def check_wasi(request: call_pb2.WasiCommand) -> None:
    """Raise Stop (rejected) for what cannot be passed through C strings."""
    for i, arg in enumerate(request.args):
        if "\0" in arg:
            raise rejected(f"wasi.args[{i}]", "an argument cannot contain NUL")
    for i, variable in enumerate(request.env):
        if not variable.name or "=" in variable.name or "\0" in variable.name:
            raise rejected(f"wasi.env[{i}].name", "a name cannot be empty or contain = or NUL")
        if "\0" in variable.value:
            raise rejected(f"wasi.env[{i}].value", "a value cannot contain NUL")


def attach_wasi(store: Store, call: Call, whole: sandbox_pb2.ExecuteRequest) -> None:
    """Give a store its WASI context: arguments, variables, input, and output to the outbox.

    The command has passed `check_wasi`; typed and bytes calls get an empty one.
    """
    request = whole.wasi
    config = ffi.wasi_config_new()
    accepted = ffi.wasi_config_set_argv(config, len(request.args), _strings(request.args))
    names = _strings(variable.name for variable in request.env)
    values = _strings(variable.value for variable in request.env)
    accepted &= ffi.wasi_config_set_env(config, len(request.env), names, values)
    stdin = ffi.wasm_byte_vec_t()
    if call.inbox_bytes and whole.HasField("wasi"):
        size, data = call.inbox_bytes, ctypes.cast(call.inbox(), _BytePointer)
    else:
        inline = request.stdin
        size, data = len(inline), ctypes.cast(ctypes.c_char_p(inline), _BytePointer)
    ffi.wasm_byte_vec_new(ctypes.byref(stdin), size, data)
    # Takes the bytes over and leaves the vector empty.
    ffi.wasi_config_set_stdin_bytes(config, ctypes.byref(stdin))
    # No finalizers: they would be called on the engine's threads at any time, even
    # while the interpreter shuts down.
    ffi.wasi_config_set_stdout_custom(config, _write_stdout, call.key, _NO_FINALIZER)
    ffi.wasi_config_set_stderr_custom(config, _write_stderr, call.key, _NO_FINALIZER)
    # Takes the configuration over, also when it fails.
    error = ffi.wasmtime_context_set_wasi(store.context_pointer(), config)
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)
    assert accepted, "arguments and environment were checked before"


def _strings(strings: Iterable[str]) -> Any:
    encoded = [string.encode() for string in strings]
    return ctypes.cast((ctypes.c_char_p * len(encoded))(*encoded), ctypes.POINTER(_CharPointer))


def _write(region: Region, key: int | None, data: Any, size: int) -> int:
    """Return the number of bytes taken, or a negative error number. Must not raise."""
    call = calls.find(key)
    if call is None:
        return -errno.EIO
    try:
        if call.write(region, ctypes.string_at(data, size)):
            return size
    except BaseException as error:  # noqa: BLE001 - raised where the call ends
        call.bug = error
    return -errno.EIO


# Made when this module is imported: none can be made in a locked-down process.
_write_stdout = _OutputCallback(functools.partial(_write, Region.STDOUT))
_write_stderr = _OutputCallback(functools.partial(_write, Region.STDERR))
