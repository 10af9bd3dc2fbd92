"""Attacks on another runner of the same zygote: it shares the namespaces, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from typing import Final

from tests.escape import native
from tests.escape.attacks_files import read
from tests.escape.attacks_processes import read_memory, read_memory_file, write_memory
from tests.escape.field import SECRET, SIBLING_MEMORY, SIGURG, Field, attack, sibling_address

_MEMORY: Final = ctypes.addressof(SIBLING_MEMORY)
#: What an ordinary user's siblings, which have one user id, are kept apart by.
_TRACED: Final = "L:EPERM S:SIGSYS D:EPERM"
_IN_PROC: Final = "N:ENOENT L:EACCES S:EACCES D:EACCES"


@attack("signal a sibling", "U:EPERM L:EPERM S:SIGSYS", sibling=True, landlock_abi=6)
def _kill(field: Field) -> None:
    os.kill(field.sibling, SIGURG)


@attack("kill a sibling", "U:EPERM L:EPERM S:SIGSYS", sibling=True, landlock_abi=6)
def _sigkill(field: Field) -> None:
    os.kill(field.sibling, 9)


@attack("signal a sibling by a pidfd", "U:EPERM L:EPERM S:SIGSYS", sibling=True, landlock_abi=6)
def _pidfd(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.sibling, 0)
    native.call("pidfd_send_signal", pidfd, SIGURG, 0, 0)


@attack("trace a sibling", "U:EPERM L:EPERM S:SIGSYS", _TRACED, sibling=True)
def _ptrace(field: Field) -> None:
    native.call("ptrace", 0x4206, field.sibling, 0, 0)


@attack("read a sibling's memory", "U:EPERM L:EPERM S:SIGSYS", _TRACED, sibling=True)
def _vm_readv(field: Field) -> None:
    read_memory(field.sibling, _MEMORY)


@attack(
    "read a sibling's /proc/PID/mem", "U:EACCES N:ENOENT L:EACCES S:EACCES", _IN_PROC, sibling=True
)
def _mem(field: Field) -> None:
    read_memory_file(field.sibling, _MEMORY)


@attack(
    "read a sibling's environment", "U:EACCES N:ENOENT L:EACCES S:EACCES", _IN_PROC, sibling=True
)
def _environ(field: Field) -> None:
    read(f"/proc/{field.sibling}/environ")


@attack("take a sibling's descriptor", "U:EPERM L:EPERM S:SIGSYS", _TRACED, sibling=True)
def _getfd(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.sibling, 0)
    # Descriptors differ from wall to wall; EBADF comes only after every check of permission.
    try:
        native.call("pidfd_getfd", pidfd, 0, 0)
    except OSError as error:
        if error.errno != 9:
            raise


@attack("find a sibling in /proc", "N:ENOENT L:EACCES S:EACCES", sibling=True)
def _find(field: Field) -> None:
    if str(field.sibling) not in os.listdir("/proc"):
        raise ProcessLookupError(3, "not there")


@attack("find a sibling by its number", "S:SIGSYS", sibling=True)
def _guess(field: Field) -> None:
    # Numbers are dense: the neighbours of one's own are siblings.
    found = []
    for pid in range(max(2, os.getpid() - 64), os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.getpgid(pid)
            found.append(pid)
    if field.sibling not in found:
        raise ProcessLookupError(3, "not found")


@attack("slow a sibling down", "U:EPERM S:SIGSYS", sibling=True)
def _nice(field: Field) -> None:
    os.setpriority(os.PRIO_PROCESS, field.sibling, 1)


@attack("write a sibling's memory", "U:EPERM L:EPERM S:SIGSYS", _TRACED, sibling=True)
def _vm_writev(field: Field) -> None:
    write_memory(field.sibling, _MEMORY)


@attack(
    "write a sibling's /proc/PID/mem", "U:EACCES N:ENOENT L:EACCES S:EACCES", _IN_PROC, sibling=True
)
def _write_mem(field: Field) -> None:
    fd = os.open(f"/proc/{field.sibling}/mem", os.O_RDWR)
    os.pwrite(fd, SECRET, _MEMORY)


@attack(
    "list a sibling's descriptors", "U:EACCES N:ENOENT L:EACCES S:EACCES", _IN_PROC, sibling=True
)
def _list_descriptors(field: Field) -> None:
    os.listdir(f"/proc/{field.sibling}/fd")


@attack(
    "read a sibling's map of memory", "U:EACCES N:ENOENT L:EACCES S:EACCES", _IN_PROC, sibling=True
)
def _maps(field: Field) -> None:
    if not read(f"/proc/{field.sibling}/maps"):
        raise PermissionError(13, "empty")


@attack("talk to a sibling by an abstract socket", "L:EPERM S:SIGSYS", sibling=True, landlock_abi=6)
def _abstract(field: Field) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sibling_address(field.sibling))


@attack("read a sibling's processor clock", "S:EINVAL", sibling=True)
def _clock(field: Field) -> None:
    # The id of another process's clock, MAKE_PROCESS_CPUCLOCK of the kernel.
    time.clock_gettime((~field.sibling << 3) | 2)
