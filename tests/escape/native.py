"""What native code has at hand: any system call, any byte. Numbers are those of syscalls.py."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from sandboxd.runner.isolation import kernel

X86: Final = kernel.MACHINE == "x86_64"

#: By name: x86-64 (syscall_64.tbl), aarch64 (asm-generic/unistd.h).
_NUMBERS: Final[dict[str, tuple[int, int]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "delete_module": (176, 106),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "fsopen": (430, 430),
    "get_robust_list": (274, 100),
    "init_module": (175, 105),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "io_uring_enter": (426, 426),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mlock": (149, 228),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "semctl": (66, 191),
    "semget": (64, 190),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "timer_create": (222, 107),
    "userfaultfd": (323, 282),
}
#: Calls of x86-64 alone.
_X86_ONLY: Final = {"iopl": 172, "modify_ldt": 154}

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE = 1, 2, 0x20, 0x8000
MAP_NORESERVE: Final = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, *([ctypes.c_ulong] * 6))
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


class ContainedError(Exception):
    """The call went through, but what it reached is not the host's: a wall held."""


class VoidError(Exception):
    """The attack cannot be tried on this host; the message says why."""


def call(name: str, *arguments: int) -> int:
    """Make a system call; raises OSError with its errno, and VoidError if the machine lacks it."""
    if name in _X86_ONLY:
        if not X86:
            raise VoidError(f"{kernel.MACHINE} has no {name}")
        number = _X86_ONLY[name]
    else:
        number = _NUMBERS[name][0 if X86 else 1]
    result: int = _syscall(number, *arguments, *([0] * (6 - len(arguments))))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def mmap(length: int, protection: int, flags: int, fd: int = -1) -> int:
    """mmap(2); returns the address."""
    address = _mmap(None, length, protection, flags, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def text(value: bytes) -> tuple[int, ctypes.Array[ctypes.c_char]]:
    """Address of a NUL-terminated copy, and the copy, to be kept while the address is used."""
    buffer = ctypes.create_string_buffer(value)
    return ctypes.addressof(buffer), buffer
