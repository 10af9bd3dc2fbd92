"""System calls as data: described before the fork, made after it.

A forked child pays for each page that it is the first to touch, and Python code touches one for
nearly every object that it looks at: what takes 1 us warm takes 10 us in a fresh child. So a layer
does not act; it describes the calls that apply it and those that verify it. The zygote builds the
descriptions, once for all children as far as they are alike, and the child only runs down a list.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from sandboxd.runner.isolation.kernel import MACHINE
from sandboxd.runner.isolation.layers import NotInForceError

#: x86-64 and aarch64, as in arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h.
NUMBERS: Final = {
    "bind": (49, 200),
    "capget": (125, 90),
    "capset": (126, 91),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "futex": (202, 98),
    "getgroups": (115, 158),
    "getpid": (39, 172),
    "getpgid": (121, 155),
    "getppid": (110, 173),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getsid": (124, 156),
    "kill": (62, 129),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "memfd_create": (319, 279),
    "mprotect": (10, 226),
    "openat": (257, 56),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "seccomp": (317, 277),
    "setgroups": (116, 159),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "socket": (41, 198),
    "unshare": (272, 97),
}
_COLUMN: Final = {"x86_64": 0, "aarch64": 1}.get(MACHINE)

#: As an argument: the descriptor that was opened last, or -1.
OPENED_LAST: Final = -(1 << 40)
#: Among the expected results: a descriptor, whatever its number.
OPENS: Final = -(1 << 41)
#: Among the expected results: the process id of whoever runs the program.
OWN_PID: Final = -(1 << 42)

_ARGUMENTS: Final = 6
_PAGE: Final = mmap.PAGESIZE
_POISON: Final = b"\xa5" * _PAGE
_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long,) * (_ARGUMENTS + 1)
_syscall.restype = ctypes.c_long


class Call(NamedTuple):
    """One system call: its number and six arguments, and the results that are right.

    A result is what the kernel returns: negative, it is an errno. `wrong` says for people what any
    other result that is not an errno means.
    """

    name: str
    arguments: tuple[int, ...]
    expected: tuple[int, ...]
    wrong: str
    uses_last: bool


class Check(NamedTuple):
    """What the kernel must have written into a buffer; `wrong` says what is there instead."""

    buffer: memoryview
    expected: bytes
    wrong: Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class Work:
    """Calls in order, then checks of what they wrote; `detail` says for people what was done.

    Before the calls the process id is put, as 32 bits, where `own_pid` says. `act` is for what
    cannot be described; it runs last and may return another detail. `held` are objects that the
    calls point into.
    """

    calls: tuple[Call, ...] = ()
    checks: tuple[Check, ...] = ()
    detail: str = ""
    act: Callable[[], str | None] | None = None
    held: tuple[object, ...] = ()
    own_pid: tuple[memoryview, ...] = ()


def call(
    name: str, *arguments: int, expected: tuple[int, ...] = (0,), wrong: str | None = None
) -> Call:
    """Describe a call. Raises OSError on an architecture whose numbers are not known."""
    if _COLUMN is None:
        raise OSError(0, f"{name}: unsupported architecture {MACHINE}")
    padded = (NUMBERS[name][_COLUMN], *arguments) + (0,) * (_ARGUMENTS - len(arguments))
    return Call(name, padded, expected, wrong or f"{name} does nothing", OPENED_LAST in arguments)


_GETPID: Final = call("getpid") if _COLUMN is not None else Call("getpid", (), (), "", False)


def prctl(option: int, *arguments: int, expected: int = 0, wrong: str | None = None) -> Call:
    """Describe a prctl(2)."""
    return call("prctl", option, *arguments, expected=(expected,), wrong=wrong)


def run(work: Work) -> str:
    """Make the calls, and return what was done.

    Raises OSError for a call that failed, and NotInForceError for one that had to fail and did
    not, that returned another number, or that left something else behind.
    """
    for place in work.own_pid:
        place[:] = _own_pid().to_bytes(4, "little")
    opened = -1
    for planned in work.calls:
        _name, arguments, expected, _wrong, uses_last = planned
        if uses_last:
            arguments = tuple([opened if value == OPENED_LAST else value for value in arguments])
        result = _syscall(*arguments)
        if result == -1:
            result = -ctypes.get_errno()
        if result in expected:
            continue
        if result >= 0 and OPENS in expected:
            opened = result
        elif OWN_PID not in expected or result != _own_pid():
            _fail(planned, result, opened)
    for check in work.checks:
        if check.buffer != check.expected:
            raise NotInForceError(check.wrong(bytes(check.buffer)))
    if work.act is not None:
        return work.act() or work.detail
    return work.detail


def _own_pid() -> int:
    # Not os.getpid(): the less different code runs, the fewer pages are touched.
    return int(_syscall(*_GETPID.arguments))


def _fail(planned: Call, result: int, opened: int) -> NoReturn:
    if opened >= 0:
        with contextlib.suppress(OSError):
            os.close(opened)
    if result < 0:
        raise OSError(-result, f"{planned.name}: {os.strerror(-result)}")
    raise NotInForceError(planned.wrong)


# -- memory that the kernel reads or writes ------------------------------------------------------


class _Scratch:
    """One page of this process alone, into which the kernel writes its answers.

    One page, so that a child copies one page. It is shared by all descriptions: nothing in it
    means anything before the calls were made.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._page)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._used = 0
        self._view[:] = _POISON
        self._written = False

    def take(self, size: int) -> tuple[int, memoryview]:
        """Address and view of the next bytes, for the life of the process."""
        start = -(-self._used // 8) * 8
        if start + size > _PAGE:
            raise MemoryError("the scratch page is full")
        self._used = start + size
        return self._address + start, self._view[start : start + size]

    def poison(self) -> None:
        """Make sure that no answer can be an old one: this process may have had others before."""
        if self._written:
            self._view[:] = _POISON
        self._written = True


SCRATCH: Final = _Scratch()


def pointer(content: bytes) -> tuple[int, ctypes.Array[ctypes.c_char]]:
    """Address of a copy of the bytes, for the kernel to read, and the object to hold on to."""
    buffer = ctypes.create_string_buffer(content, len(content))
    return ctypes.addressof(buffer), buffer
