"""What every scenario stands on: the policy of a child, and what its nursery preloaded."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any, Literal

import wasmtime

from sandboxd.runner.engine import build_engine
from sandboxd.runner.isolation import kernel, lockdown
from sandboxd.runner.isolation.policy import INTERRUPT_FD

MODE = "plain"
RESULT_FD = -1
SLOT = 1_900_000_001
Profile = Literal["core", "runner", "files", "compiler"]

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
X86 = kernel.MACHINE == "x86_64"
engine: wasmtime.Engine
linker: wasmtime.Linker
callback: Any
socket_at_hand: socket.socket


def preload() -> None:
    """What a zygote does before it forks: engine, linker, every callback, lazy imports."""
    global engine, linker, callback, socket_at_hand  # noqa: PLW0603
    engine = build_engine(fuel=False)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    linker.define_func("env", "log", wasmtime.FuncType([wasmtime.ValType.i32()], []), LOGGED.append)
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda number: number + 1)
    socket_at_hand = socket.socket()
    json.dumps({})
    "".encode("idna")
    traceback.format_exception(ValueError("preload"))


LOGGED: list[int] = []
USER_MAPS: dict[str, str] = {}


def policy(profile: Profile = "runner", **changes: Any) -> lockdown.ChildPolicy:
    values: dict[str, Any] = {
        "profile": profile,
        "keep_fds": frozenset({RESULT_FD, INTERRUPT_FD}),
        "uid": SLOT if os.geteuid() == 0 else 0,
        "data_bytes": 256 << 20,
        "cpu_seconds": 20,
        "file_size_bytes": 0 if profile != "compiler" else 16 << 20,
        # Outside a namespace of its own the user's other processes count as well.
        "processes": 16 if os.geteuid() == 0 or MODE == "user" else 4096,
        "parent_pid": os.getppid(),
    }
    return lockdown.ChildPolicy(**values | changes)


def errno_name() -> str:
    return errno.errorcode[ctypes.get_errno()]


def raw(number: int, *arguments: int) -> str:
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in arguments))
    return "done" if result >= 0 else errno_name()


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"
