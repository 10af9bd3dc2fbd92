"""What a child holds: its descriptors by number, objects of its IPC namespace, its addresses.

Every public function is a scenario; the nursery calls it by name and reports what it returns.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import wasmtime
from tests.isolation import child
from tests.isolation.child import Profile, attempt, errno_name, libc, policy, raw

from sandboxd.runner.isolation import ipc, kernel, lockdown
from sandboxd.runner.isolation.policy import INTERRUPT_FD, LOOP_FDS, SOCKET_FD

X86: Final = kernel.MACHINE == "x86_64"
_IPC_CREAT: Final = 0o1000


def _numbered() -> list[int]:
    """Two pipes' reading ends, under numbers that get in each other's way."""
    held = os.dup(child.RESULT_FD)
    ends = [os.pipe() for _ in range(2)]
    for at, (_, writing) in enumerate(ends):
        os.write(writing, str(at).encode())
    first, second = (os.dup(reading) for reading, _ in ends)
    # Each takes the number that the other one is to have.
    os.dup2(first, LOOP_FDS[0])
    os.dup2(second, INTERRUPT_FD)
    return [held, LOOP_FDS[0], INTERRUPT_FD]


def move_descriptors() -> list[bytes]:
    """Lock down with descriptors that swap numbers; returns what is read from each afterwards."""
    moved = _numbered()
    lockdown.lock_down(policy(keep_fds=frozenset(), moved_fds=tuple(moved)))
    return [os.read(INTERRUPT_FD, 1), os.read(LOOP_FDS[0], 1)]


def move_onto_kept() -> None:
    kept = frozenset({SOCKET_FD})
    lockdown.lock_down(policy(keep_fds=kept, moved_fds=(os.dup(SOCKET_FD),)))


_LEFT_OPEN: Final = 40


def _mapped(fd: int) -> str:
    address = libc.mmap(None, 4096, 1, 2, fd, 0)
    return errno_name() if address == ctypes.c_void_p(-1).value else "done"


#: What a sealed runner may try on a file that was left open, and on its own descriptors.
USES: Final[dict[str, Callable[[], str]]] = {
    "read": lambda: attempt(lambda: os.read(_LEFT_OPEN, 1)),
    "pread": lambda: attempt(lambda: os.pread(_LEFT_OPEN, 1, 0)),
    "readv": lambda: raw(19 if X86 else 65, _LEFT_OPEN, 0, 0),
    "write": lambda: attempt(lambda: os.write(_LEFT_OPEN, b"x")),
    "pwrite": lambda: attempt(lambda: os.pwrite(_LEFT_OPEN, b"x", 0)),
    "writev": lambda: raw(20 if X86 else 66, _LEFT_OPEN, 0, 0),
    "map": lambda: _mapped(_LEFT_OPEN),
    "duplicate": lambda: attempt(lambda: os.dup(_LEFT_OPEN)),
    "renumber": lambda: attempt(lambda: os.dup2(_LEFT_OPEN, SOCKET_FD)),
    "duplicate the socket": lambda: attempt(lambda: os.dup(SOCKET_FD)),
    "write to the socket": lambda: attempt(lambda: os.write(SOCKET_FD, b"")),
    "read the interrupt pipe": lambda: raw(0 if X86 else 63, INTERRUPT_FD, 0, 0),
    "write to the interrupt pipe": lambda: raw(1 if X86 else 64, INTERRUPT_FD, 0, 0),
    "write to standard error": lambda: attempt(lambda: os.write(2, b"x")),
    "write where the event loop may": lambda: attempt(lambda: os.write(LOOP_FDS[0], b"")),
}


def use(name: str, profile: Profile, hygienic: bool) -> str:
    """Leave a file open, lock down with or without closing it, seal, and use it."""
    fd = os.memfd_create("left open")
    os.pwrite(fd, b"secret", 0)
    os.dup2(fd, _LEFT_OPEN)
    keep = {SOCKET_FD, INTERRUPT_FD} | (set() if hygienic else {_LEFT_OPEN})
    lockdown.lock_down(policy(keep_fds=frozenset(keep)))
    lockdown.seal_after_load(core=profile == "core")
    return USES[name]()


def map_addresses(size: int) -> str:
    """Reserve addresses without memory, which cost page tables once they are read."""
    lockdown.apply_layers(policy(), frozenset({"rlimits"}))
    address = libc.mmap(None, size, 1, 0x4022, -1, 0)
    return errno_name() if address == ctypes.c_void_p(-1).value else "done"


def two_instances_at_once(artifact: bytes) -> list[int]:
    """As between two calls: the next instance is there before the last one is gone."""
    lockdown.lock_down(policy())
    module = wasmtime.Module.deserialize(child.engine, artifact)
    lockdown.seal_after_load()
    answers = []
    held: list[Any] = []
    for _ in range(2):
        store = wasmtime.Store(child.engine)
        store.set_epoch_deadline(1)
        size = child.linker.instantiate(store, module).exports(store)["size"]
        assert isinstance(size, wasmtime.Func)
        answers.append(size(store))
        held.append(store)
    return answers


# -- objects of the IPC namespace -----------------------------------------------------------------


def make_ipc_objects() -> dict[str, str]:
    """Behind the namespaces alone."""
    attributes = ctypes.create_string_buffer(64)
    ctypes.memmove(attributes, b"".join(n.to_bytes(8, "little") for n in (0, 1, 64, 0)), 32)
    name = ctypes.create_string_buffer(b"sandboxd-test")
    return {
        "shared memory": raw(29 if X86 else 194, 0, 4096, _IPC_CREAT | 0o600),
        "messages": raw(68 if X86 else 186, 0, _IPC_CREAT | 0o600),
        "semaphores": raw(64 if X86 else 190, 0, 1, _IPC_CREAT | 0o600),
        "message queue": raw(
            *(240 if X86 else 180, ctypes.addressof(name)),
            *(os.O_CREAT | os.O_RDWR, 0o600, ctypes.addressof(attributes)),
        ),
    }


_HOST: Final = ("shmmax", "shmall", "shmmni", "msgmni", "sem")


def look_for_forbidden_ipc() -> dict[str, Any]:
    """In the host's own IPC namespace, which must stay as it is."""
    before = [Path("/proc/sys/kernel", name).read_text() for name in _HOST]
    state = ipc.forbidden(required=False)
    return {
        "state": state,
        "unchanged": before == [Path("/proc/sys/kernel", name).read_text() for name in _HOST],
    }


def pass_to_deaf_socket() -> str:
    """Send a descriptor to a socket that refuses them, with nothing else in the way."""
    from sandboxd.runner.isolation import passing

    ours, theirs = socket.socketpair()
    passing.refuse_descriptors(ours)
    return attempt(lambda: socket.send_fds(theirs, [b"x"], [0]))
