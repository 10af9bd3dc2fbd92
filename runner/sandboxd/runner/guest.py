"""A module bound to this process, and its calls.

Every call gets a fresh store and instance; nothing of one is left for the next but the compiled
module and what linking found out. Nothing here imports, opens or compiles once the module is
loaded, so that it works in a locked-down process.

An epoch that is reached ends the guest wherever it is, and a trap ends the call: no step follows
it. The thread that interrupts bumps the epoch until the process is gone, because a bump before the
store's deadline was set would be lost.
"""

import ctypes
import re
import time
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

from sandboxd.runner.abi_bytes import bytes_call
from sandboxd.runner.abi_typed import typed_call
from sandboxd.runner.abi_wasi import attach_wasi, check_wasi, wasi_command
from sandboxd.runner.call import Call
from sandboxd.runner.instance import Instance
from sandboxd.runner.linking import Linked, link
from sandboxd.runner.outbox import Outbox
from sandboxd.runner.outcomes import (
    Failure,
    Stop,
    error_text,
    instantiation_failure,
    rejected,
    set_outcome,
)
from sandboxd.runner.signatures import Exports
from sandboxd.runner.store import Store
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

# Initial data is in the artifact, and an instance that is made ahead holds a copy of it.
MAX_AHEAD_ARTIFACT_BYTES = 4 << 20
# Tables that one guest may have; toolchains make one, or two with reference types.
MAX_TABLES = 16

_TABLE_COUNT = re.compile(r"table count too high at (\d+)")
_BytePointer = ctypes.POINTER(ctypes.c_uint8)

Artifact = bytes | bytearray | memoryview | tuple[int, int]


class ArtifactError(Exception):
    """An artifact could not be loaded: not made by this engine and configuration, or damaged."""


class Guest:
    """A loaded module that serves calls, one at a time."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        artifact: Artifact,
        fuel: bool,
        outbox: Outbox,
        no_start_function: bool = False,
    ):
        """Load and link an artifact; raises ArtifactError.

        artifact: the bytes, or (address, size) of them; needed only during this
            call. They are native code: load only what the supervisor has verified.
        fuel: True if engine and artifact are for fuel metering.
        no_start_function: True if it is known that the module has none.

        A module that cannot be linked is loaded all the same, and says so at every call.
        """
        self._engine = engine
        self._fuel = fuel
        self._outbox = outbox
        self._module = _load(engine, artifact)
        self._exports = Exports(self._module)
        self._linked: Linked | None = None
        self._link_error: Stop | None = None
        try:
            self._linked = link(engine, self._module)
        except Stop as stop:
            self._link_error = stop
        # How many tables the module has is learned from the first refusal.
        self._tables = 1
        # Of the call in progress; dropped when the next one is prepared or begun.
        self._instance: Instance | None = None
        # Made ahead, for a call with these limits.
        self._ahead: Instance | None = None
        self._ahead_limits = (-1, -1)
        # Nothing may run, be charged or be large before its call is there: no start function, no
        # input and output of a call's, no fuel for initial data, and not much of that.
        self._can_be_ahead = (
            no_start_function
            and not fuel
            and self._linked is not None
            and not self._linked.uses_wasi
            and _length(artifact) <= MAX_AHEAD_ARTIFACT_BYTES
        )
        self._functions_used: tuple[str, ...] = ()

    @property
    def uses_wasi(self) -> bool:
        """False if the module can do no input and output but through the host functions."""
        return self._linked is not None and self._linked.uses_wasi

    def execute(self, job: runner_pb2.Execute) -> runner_pb2.Result:
        """Run one call in a fresh instance; its output is in the outbox.

        Whatever the guest does is a Result. Raises ValueError if the job has fuel and the engine
        does not meter it, or the other way round. Any exception is a bug of the daemon, after
        which the process must end.
        """
        if job.HasField("fuel") != self._fuel:
            raise ValueError(
                "fuel is for runners that were bound with fuel metering, and only those"
            )
        started_ns = time.perf_counter_ns()
        self._drop()
        self._outbox.reset()
        result = runner_pb2.Result()
        with Call(job, self._outbox, self._engine) as call:
            try:
                self._run(job, call, result)
            except Stop as stop:
                set_outcome(result, stop.outcome)
            except MemoryError:
                result.limit_exceeded.kind = call_pb2.LIMIT_KIND_MEMORY
                result.limit_exceeded.message = "no memory left for the call"
        self._report_usage(job, result)
        result.run_time_ns = time.perf_counter_ns() - started_ns
        return result

    def prepare(self) -> None:
        """Do what the next call need not wait for: drop the last instance, make the next.

        Called after an answer was sent; may be left out.
        """
        self._drop()
        if self._ahead is None and self._can_be_ahead and self._ahead_limits[0] >= 0:
            assert self._linked is not None
            instance = Instance(Store(self._engine))
            instance.store.limit(*self._ahead_limits, self._tables)
            try:
                if instance.instantiate_ahead(self._linked):
                    if self._functions_used:
                        instance.look_up(self._functions_used, "memory")
                    self._ahead = instance
                    return
            except MemoryError:
                pass  # the call will tell
            instance.store.close()
            self._can_be_ahead = False

    def expect(self, memory_bytes: int, table_elements: int, export: str) -> None:
        """Prepare for calls with these limits and, if it is not empty, of this function."""
        self._ahead_limits = (memory_bytes, table_elements)
        kinds = {name: self._exports.kind(name) for name in (export, "alloc", "dealloc", "memory")}
        if (
            kinds[export] == kinds["alloc"] == call_pb2.EXTERN_KIND_FUNCTION
            and kinds["dealloc"] in (None, call_pb2.EXTERN_KIND_FUNCTION)
            and kinds["memory"] == call_pb2.EXTERN_KIND_MEMORY
        ):
            self._note_bytes_call(export)

    def close(self) -> None:
        """Drop everything; it must not be used afterwards."""
        self._drop()
        if self._ahead is not None:
            self._ahead.store.close()
            self._ahead = None

    def _drop(self) -> None:
        if self._instance is not None:
            self._instance.store.close()
            self._instance = None

    def _run(self, job: runner_pb2.Execute, call: Call, result: runner_pb2.Result) -> None:
        """Make the call and put into the result what it returns; raises Stop if it does not."""

        def start() -> Instance:
            return self._start(job, call)

        match job.request.WhichOneof("call"):
            case "bytes":
                request = job.request.bytes
                result.completed.SetInParent()
                output = bytes_call(self._exports, request, start, call)
                if output:
                    result.completed.output = output
                self._note_bytes_call(request.export)
            case "typed":
                values = typed_call(self._exports, job.request.typed, start)
                result.completed.SetInParent()
                result.completed.results.extend(values)
            case "wasi":
                check_wasi(job.request.wasi)
                code = wasi_command(self._exports, start)
                result.exited.SetInParent()
                result.exited.code = code
            case _:
                raise rejected("call", "no call is set")

    def _note_bytes_call(self, export: str) -> None:
        """Have what such a call uses looked up ahead of the next one."""
        if not self._functions_used or export != self._functions_used[1]:
            dealloc = () if self._exports.kind("dealloc") is None else ("dealloc",)
            self._functions_used = ("alloc", export, *dealloc)

    def _start(self, job: runner_pb2.Execute, call: Call) -> Instance:
        """Make the call's instance, which runs the start function; raises Stop."""
        if self._linked is None:
            assert self._link_error is not None
            raise Stop(self._link_error.outcome)
        limits = (job.memory_bytes, job.table_elements)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and limits == self._ahead_limits:
            self._instance = ahead
            ahead.serve(call)
            return ahead
        if ahead is not None:
            ahead.store.close()
        self._ahead_limits = limits
        while True:
            self._drop()
            instance = self._instance = Instance(self._fresh_store(job, call))
            instance.serve(call)
            failure = instance.instantiate(self._linked)
            if failure is None:
                return instance
            if not self._learned_tables(failure):
                raise Stop(instantiation_failure(failure))

    def _fresh_store(self, job: runner_pb2.Execute, call: Call) -> Store:
        store = Store(self._engine)
        store.limit(job.memory_bytes, job.table_elements, self._tables)
        if self._fuel:
            store.set_fuel(job.fuel)
        if self._linked is not None and self._linked.uses_wasi:
            attach_wasi(store, call, job.request)
        return store

    def _learned_tables(self, failure: Failure) -> bool:
        found = _TABLE_COUNT.search(failure.message)
        if found is None or self._tables > 1 or int(found[1]) > MAX_TABLES:
            return False
        self._tables = int(found[1])
        return True

    def _report_usage(self, job: runner_pb2.Execute, result: runner_pb2.Result) -> None:
        if self._instance is None:
            return
        if self._exports.memory_name is not None and self._instance.instantiated:
            memory = self._instance.memory(self._exports.memory_name)
            result.linear_memory_bytes = memory.size_bytes
        # An interrupted guest has not written its count back: better no number than a wrong one.
        if self._fuel and result.trapped.code != call_pb2.TRAP_CODE_INTERRUPT:
            result.fuel_consumed = job.fuel - self._instance.store.get_fuel()


def _length(artifact: Artifact) -> int:
    return artifact[1] if isinstance(artifact, tuple) else len(artifact)


def _load(engine: wasmtime.Engine, artifact: Artifact) -> wasmtime.Module:
    address: Any
    if isinstance(artifact, tuple):
        address, size = ctypes.cast(artifact[0], _BytePointer), artifact[1]
    else:
        data = bytes(artifact)
        address, size = ctypes.cast(ctypes.c_char_p(data), _BytePointer), len(data)
    module = ctypes.POINTER(ffi.wasmtime_module_t)()
    error = ffi.wasmtime_module_deserialize(engine.ptr(), address, size, ctypes.byref(module))
    if error:
        try:
            raise ArtifactError(error_text(error, 1024))
        finally:
            ffi.wasmtime_error_delete(error)
    return wasmtime.Module._from_ptr(module)
