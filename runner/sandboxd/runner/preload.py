"""What the zygote does once so that no child has to."""

import contextlib
import ctypes
import gc

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner import compiler, guest
from sandboxd.runner.engine import build_engines, engine_version
from sandboxd.runner.imports import base_linker, copy_linker
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

# Importing them is half of the work: a locked-down process cannot.
PRELOADED = (compiler, guest)


def preload() -> None:
    """Warm up engine, linkers and messages. Compiles nothing, does no I/O, starts no thread."""
    engine_version()
    engines = build_engines()
    for engine in (engines.plain, engines.fuel):
        copy_linker(base_linker(engine)).close()
        with wasmtime.Store(engine) as store:
            store.set_limits(memory_size=0, table_elements=0, instances=1, tables=1, memories=1)
            store.set_epoch_deadline(1)
            # Looks up a host function in a store, as linking does when it explains an error.
            extern = ffi.wasmtime_extern_t()
            ffi.wasmtime_linker_get(
                base_linker(engine).ptr(), store._context(), b"", 0, b"", 0, ctypes.byref(extern)
            )
    _round_trip()


def settle() -> None:
    """Make what exists now cheap to share with children: the last thing before the first fork.

    Garbage is gone, the collector will not touch what is left, and memory that the allocator keeps
    free does not count as used.
    """
    gc.collect()
    # glibc's; another C library has its own ways.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def _round_trip() -> None:
    call = call_pb2.TypedCall(export="f", args=[call_pb2.Value(i32=1)])
    job = runner_pb2.Execute(request=sandbox_pb2.ExecuteRequest(typed=call), output_bytes=1)
    runner_pb2.RunnerCommand.FromString(runner_pb2.RunnerCommand(execute=job).SerializeToString())
    result = runner_pb2.Result(completed=call_pb2.Completed(output=b"x"), run_time_ns=1)
    runner_pb2.RunnerReply(result=result).SerializeToString()
