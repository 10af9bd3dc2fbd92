"""The engine and the interpreter at work in a locked-down child.

Every public function is a scenario; the nursery calls it by name and reports what it returns.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import socket
import threading
import time
import traceback
from typing import Any

import wasmtime
from tests.isolation import child
from tests.isolation.child import Profile, libc, policy
from wasmtime import _bindings as capi

from sandboxd.runner.isolation import filters, limits, lockdown, seccomp, syscalls
from sandboxd.runner.isolation.policy import INTERRUPT_FD, LOOP_FDS


def compile_freely(wasm: bytes) -> bytes:
    return bytes(wasmtime.Module(child.engine, wasm).serialize())


def compile_locked(wasm: bytes) -> bytes:
    """As a compiler: reads the module from one descriptor, writes the artifact to another."""
    source, target = os.memfd_create("wasm"), os.memfd_create("artifact")
    os.write(source, wasm)
    keep = frozenset({child.RESULT_FD, source, target})
    lockdown.lock_down(policy("compiler", keep_fds=keep))
    os.lseek(source, 0, os.SEEK_SET)
    read = os.read(source, 1 << 20)
    assert read == os.pread(source, 1 << 20, 0)
    os.pwrite(target, wasmtime.Module(child.engine, read).serialize(), 0)
    return os.pread(target, 1 << 22, 0)


def compile_error(wasm: bytes) -> str:
    lockdown.lock_down(policy("compiler"))
    try:
        wasmtime.Module(child.engine, wasm)
    except wasmtime.WasmtimeError:
        return traceback.format_exc()
    return "valid"


def compile_out_of_memory(wasm: bytes) -> str:
    lockdown.lock_down(policy("compiler", data_bytes=24 << 20))
    wasmtime.Module(child.engine, wasm)
    return "compiled"


def _ready_runner(artifact: bytes, **changes: Any) -> wasmtime.Module:
    lockdown.lock_down(policy(**changes))
    module = wasmtime.Module.deserialize(child.engine, artifact)
    lockdown.seal_after_load()
    return module


def _store() -> wasmtime.Store:
    store = wasmtime.Store(child.engine)
    store.set_epoch_deadline(1)
    return store


def call_export(artifact: bytes, export: str, arguments: list[int], times: int = 1) -> list[Any]:
    """Call an export, each time in a fresh instance; traps are returned by their code's name."""
    module = _ready_runner(artifact)
    answers: list[Any] = []
    for _ in range(times):
        store = _store()
        try:
            instance = child.linker.instantiate(store, module)
            function = instance.exports(store)[export]
            assert isinstance(function, wasmtime.Func)
            answers.append(function(store, *arguments))
        except wasmtime.Trap as trap:
            code = trap.trap_code
            answers.append((code.name if code else None, [f.func_name for f in trap.frames]))
    return [*answers, *child.LOGGED]


def run_command(artifact: bytes, stdin: bytes, times: int = 1) -> list[tuple[bytes, int]]:
    """Run a WASI command; returns standard output and exit code of each run."""
    module = _ready_runner(artifact)
    answers = []
    for _ in range(times):
        store, output = _store(), bytearray()
        config = wasmtime.WasiConfig()
        config.argv = ["guest"]
        config.env = [("NAME", "value")]
        config.stdout_custom = output.extend
        config.stderr_custom = output.extend
        vector = capi.wasm_byte_vec_t()
        buffer = (ctypes.c_uint8 * max(len(stdin), 1)).from_buffer_copy(stdin or b"\0")
        capi.wasm_byte_vec_new(ctypes.byref(vector), len(stdin), buffer)
        capi.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(vector))
        store.set_wasi(config)
        code = 0
        try:
            start = child.linker.instantiate(store, module).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        except wasmtime.ExitTrap as ended:
            code = ended.code
        answers.append((bytes(output), code))
    return answers


def interrupt_by_pipe(artifact: bytes, export: str) -> str:
    """A thread blocks on a pipe and bumps the epoch while the guest spins."""
    ends = os.pipe()
    reading, writing = INTERRUPT_FD, LOOP_FDS[0]
    keep = (os.dup(child.RESULT_FD), *(os.dup(end) for end in ends))
    lockdown.lock_down(policy(keep_fds=frozenset(), moved_fds=keep))

    def watch() -> None:
        os.read(reading, 1)
        child.engine.increment_epoch()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    module = wasmtime.Module.deserialize(child.engine, artifact)
    lockdown.seal_after_load()
    store = _store()
    spin = child.linker.instantiate(store, module).exports(store)[export]
    assert isinstance(spin, wasmtime.Func)
    os.write(writing, b"x")
    try:
        spin(store)
    except wasmtime.Trap as trap:
        return trap.trap_code.name if trap.trap_code else "no code"
    return "returned"


def receive_module(artifact: bytes, export: str) -> Any:
    """A descriptor comes in before the seal; the module in it runs after."""
    ours, theirs = socket.socketpair()
    fd = os.memfd_create("artifact")
    os.write(fd, artifact)
    socket.send_fds(theirs, [b"x"], [fd])
    lockdown.lock_down(policy(keep_fds=frozenset({child.RESULT_FD, ours.fileno()})))
    _, received, _, _ = socket.recv_fds(ours, 1, 1)
    code = os.pread(received[0], len(artifact), 0)
    os.close(received[0])
    module = wasmtime.Module.deserialize(child.engine, code)
    lockdown.seal_after_load()
    store = _store()
    function = child.linker.instantiate(store, module).exports(store)[export]
    assert isinstance(function, wasmtime.Func)
    return function(store)


def interpreter_at_work() -> dict[str, Any]:
    """What ordinary Python code does in a sealed runner."""
    lockdown.lock_down(policy())
    lockdown.seal_after_load()
    found: dict[str, Any] = {}
    grown = [bytearray(1 << 20) for _ in range(32)]
    grown[0].extend(bytes(8 << 20))
    found["memory"] = sum(map(len, grown))
    del grown
    gc.collect()
    try:
        raise ValueError("x" * 10)
    except ValueError:
        found["traceback"] = traceback.format_exc().splitlines()[-1]
    counted: list[int] = []
    lock = threading.Lock()

    def count() -> None:
        for _ in range(100):
            with lock:
                counted.append(1)
        time.sleep(0.001)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["threads"] = len(counted)
    clocks = (time.time, time.monotonic, time.process_time, time.thread_time)
    found["clocks"] = all(clock() > 0 for clock in clocks)
    # repr() asks for the address, as warnings and tracebacks do.
    found["repr"] = repr(child.socket_at_hand).startswith("<socket.socket fd=")
    found["random"] = len(os.urandom(16))
    try:
        __import__("wave")
    except (OSError, ImportError) as error:
        found["late import"] = type(error).__name__
    found["deep"] = _depth_reached()
    return found


def _depth_reached() -> str:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        return type(error).__name__
    return "no end"


def end_by(way: str) -> None:
    """End after the lock-down in one of several ways."""
    lockdown.lock_down(policy(cpu_seconds=1 if way == "burn" else 20))
    lockdown.seal_after_load()
    if way == "abort":
        os.abort()
    elif way == "exit":
        os._exit(7)
    elif way == "crash":
        ctypes.string_at(0)
    elif way == "free twice":
        libc.malloc.restype = ctypes.c_void_p
        block = ctypes.c_void_p(libc.malloc(4000))
        libc.free(block)
        libc.free(block)
    elif way == "burn":
        while True:
            pass


def limits_read_back() -> dict[str, tuple[int, int]]:
    chosen = policy()
    lockdown.apply_layers(chosen, frozenset({"rlimits"}))
    return {limit.name: resource.getrlimit(limit.resource) for limit in limits.LIMITS}


# -- with a row of the tables left out -------------------------------------------------------------


def without_row(profile: Profile, row: str, name: str, arguments: dict[str, Any]) -> Any:
    """Run another scenario of this module with one row fewer; the empty name leaves none out."""
    kept = tuple(one for one in syscalls.ROWS if one.name != row)
    program = filters.assembled(kept, profile, seccomp.KILL_PROCESS)
    # A compiler's scenario asks for the compiler's table, every other for a runner's.
    filters.LOCKED["compiler" if profile == "compiler" else "runner"] = program
    return globals()[name](**arguments)
