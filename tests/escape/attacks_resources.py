"""Attacks on what all share: memory, processes, descriptors, space."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import struct
import threading
from collections.abc import Iterator
from typing import Final

from tests.escape import native, queues
from tests.escape.field import SIGURG, Field, attack
from tests.escape.native import MAP_ANONYMOUS, MAP_NORESERVE, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED

_MUCH: Final = 512 << 20
#: What an attacker's cgroup has is RLIMIT_DATA, its memory files and some slack: 336 MiB.
_MORE_THAN_A_CGROUP: Final = 384 << 20
_CHUNK: Final = 8 << 20
_READ, _READ_WRITE = 1, 3
_MANY_DESCRIPTORS: Final = 400
_MANY_SIGNALS: Final = 200
_IPC_CREAT, _IPC_RMID = 0o1000, 0


def _many_tasks(field: Field) -> int:
    """More than the attacker may have, with room for those that have ended since."""
    return field.processes + 32


@attack("512 MiB of private memory", "R:ENOMEM C:SIGKILL")
def _private(_field: Field) -> None:
    ctypes.memset(native.mmap(_MUCH, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), 1, _MUCH)


@attack("512 MiB of shared memory", "S:SIGSYS C:SIGKILL|SIGBUS|ENOMEM")
def _shared(_field: Field) -> None:
    native.mmap(_MUCH, _READ_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE)


@attack("512 MiB of System V shared memory", "N:EINVAL S:SIGSYS C:SIGKILL|SIGBUS")
def _shmget(_field: Field) -> None:
    segment = native.call("shmget", 0, _MUCH, _IPC_CREAT | 0o600)
    address = native.call("shmat", segment, 0, 0)
    native.call("shmctl", segment, _IPC_RMID, 0)  # it goes when this process does
    ctypes.memset(address, 1, _MUCH)


def _fill(fd: int, size: int) -> None:
    chunk = bytes(_CHUNK)
    for _ in range(size // _CHUNK):
        if os.write(fd, chunk) < _CHUNK:
            os.write(fd, chunk)


@attack("512 MiB in one memory file", "R:EFBIG S:SIGSYS C:SIGKILL")
def _memfd(_field: Field) -> None:
    _fill(os.memfd_create("big", 0), _MUCH)


@attack("fill a temporary directory", "R:EFBIG N:ENOENT L:EACCES S:EACCES")
def _tmp(field: Field) -> None:
    _fill_file(f"{field.bait.directory}/big")


@attack("fill /dev/shm", "R:EFBIG N:ENOENT L:EACCES S:EACCES")
def _dev_shm(_field: Field) -> None:
    _fill_file(f"/dev/shm/sandboxd-escape-{os.getpid()}")


def _fill_file(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        _fill(fd, 64 << 20)
    finally:
        os.unlink(path)
        os.close(fd)


@attack("fork bomb", "S:SIGSYS U+R:EAGAIN C:EAGAIN", "R:EAGAIN S:SIGSYS C:EAGAIN")
def _forks(field: Field) -> None:
    life, hold = os.pipe()
    for _ in range(_many_tasks(field)):
        if os.fork() == 0:
            os.close(hold)
            os.read(life, 1)
            os._exit(0)


@attack("thread bomb", "U+R:EAGAIN C:EAGAIN", "R:EAGAIN C:EAGAIN")
def _threads(field: Field) -> None:
    stop = threading.Event()
    threading.stack_size(64 << 10)
    try:
        for _ in range(_many_tasks(field)):
            threading.Thread(target=stop.wait, daemon=True).start()
    except RuntimeError:
        raise BlockingIOError(11, "no more threads") from None


@attack("exhaust descriptors", "R:EMFILE")
def _descriptors(_field: Field) -> None:
    # Of what the engine's event loop needs, for no filter may take that away.
    loop = select.epoll()
    for _ in range(_MANY_DESCRIPTORS):
        os.dup(loop.fileno())


@attack("exhaust kernel memory by pipes", "R:EMFILE S:SIGSYS")
def _pipes(_field: Field) -> None:
    for _ in range(_MANY_DESCRIPTORS // 2):
        os.pipe2(0)


@attack("exhaust kernel memory by queued signals", "R:EAGAIN S:SIGSYS")
def _signals(_field: Field) -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    number = int(signal.SIGRTMIN)
    info = ctypes.create_string_buffer(struct.pack("iii", number, 0, -1), 128)
    for _ in range(_MANY_SIGNALS):
        native.call("rt_sigqueueinfo", os.getpid(), number, ctypes.addressof(info))


@attack("exhaust kernel memory by timers", "R:EAGAIN S:SIGSYS")
def _timers(_field: Field) -> None:
    event = ctypes.create_string_buffer(struct.pack("qii", 0, SIGURG, 0), 64)
    timer = ctypes.c_int(0)
    for _ in range(_MANY_SIGNALS):
        native.call("timer_create", 1, ctypes.addressof(event), ctypes.addressof(timer))


# CAP_SYS_RESOURCE, which not every root has, is above the limit of the IPC namespace.
@attack(
    "exhaust kernel memory by message queues",
    "R:EMFILE N:ENOSPC|works L:EACCES S:SIGSYS",
    "R:EMFILE N:ENOSPC L:EACCES S:SIGSYS",
)
def _queues(_field: Field) -> None:
    # One small message: the limit is per user, and others may hold queues, too.
    attributes = ctypes.create_string_buffer(struct.pack("qqqq", 0, 1, 64, 0), 64)
    name, keep = native.text(queues.name_of(os.getpid()))
    native.call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, ctypes.addressof(attributes))
    native.call("mq_unlink", name)
    del keep


@attack("lock memory", "S:SIGSYS U+R:EPERM", "R:EPERM S:SIGSYS")
def _mlock(_field: Field) -> None:
    address = native.mmap(1 << 20, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    native.call("mlock", address, 1 << 20)


@attack("raise a resource limit", "U:EPERM S:SIGSYS")
def _rlimit(_field: Field) -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    yield
    new = (ctypes.c_uint64 * 2)(8192, 8192)
    native.call("prlimit64", 0, resource.RLIMIT_CORE, ctypes.addressof(new), 0)


@attack("384 MiB in many mapped memory files", "R:EFBIG S:SIGSYS Z:SIGSYS C:SIGKILL")
def _mapped_memfds(_field: Field) -> None:
    # Each small, none in RLIMIT_DATA, and closed, but kept by a mapping.
    for _ in range(_MORE_THAN_A_CGROUP // _CHUNK):
        fd = os.memfd_create("part", 0)
        _fill(fd, _CHUNK)
        native.mmap(_CHUNK, _READ, MAP_PRIVATE, fd)
        os.close(fd)


@attack("384 MiB of page tables", "R:ENOMEM C:SIGKILL")
def _page_tables(_field: Field) -> None:
    # Reading maps the page of zeros, which no limit counts, in a table page, which only the limit
    # on addresses bounds: one byte in every 2 MiB.
    spread, tables = 2 << 20, _MORE_THAN_A_CGROUP // native.PAGE
    start = native.mmap(tables * spread, _READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    memoryview((ctypes.c_char * (tables * spread)).from_address(start))[::spread].tobytes()
