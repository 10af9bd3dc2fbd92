"""Native code in a real runner: a debugger makes it run any system call. Needs root and x86-64."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator
from typing import Final

# linux/ptrace.h
_PTRACE_SINGLESTEP, _PTRACE_GETREGS, _PTRACE_SETREGS = 9, 12, 13
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
# struct user_regs_struct of x86-64: 27 words, in this order.
_WORDS: Final = 27
_R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP, _RSP = 7, 8, 9, 10, 12, 13, 14, 15, 16, 19
_ARGUMENTS: Final = (_RDI, _RSI, _RDX, _R10, _R8, _R9)
_SYSCALL: Final = b"\x0f\x05"
#: Below the stack pointer, and below the red zone that the interrupted function may use.
_SCRATCH: Final = 4096
_MINUS_ONE: Final = (1 << 64) - 1

_libc: Final = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def trace(request: int, pid: int, data: int = 0) -> None:
    """ptrace(2); raises OSError."""
    if _ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def attach(pid: int) -> None:
    """Stop a process and be its tracer. Raises OSError."""
    trace(_PTRACE_ATTACH, pid)
    os.waitpid(pid, 0)


def detach(pid: int) -> None:
    """Let it go on."""
    trace(_PTRACE_DETACH, pid)


class Compromised:
    """A process that sleeps in a system call, and now does what it is told."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._saved = (ctypes.c_uint64 * _WORDS)()
        trace(_PTRACE_GETREGS, pid, ctypes.addressof(self._saved))
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(self._saved[_RIP] - len(_SYSCALL))
            assert memory.read(len(_SYSCALL)) == _SYSCALL, "it does not sleep in a system call"

    def put(self, data: bytes) -> int:
        """Write data below its stack; returns the address."""
        address = int(self._saved[_RSP]) - _SCRATCH
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(data)
        return address

    def call(self, number: int, *arguments: int) -> str:
        """Have it make a system call; returns "works", an errno, or the signal that killed it."""
        registers = type(self._saved).from_buffer_copy(self._saved)
        registers[_RAX] = number
        # Or the kernel would restart the interrupted call in its place.
        registers[_ORIG_RAX] = _MINUS_ONE
        registers[_RIP] -= len(_SYSCALL)
        for register, value in zip(_ARGUMENTS, arguments, strict=False):
            registers[register] = value & _MINUS_ONE
        trace(_PTRACE_SETREGS, self.pid, ctypes.addressof(registers))
        trace(_PTRACE_SINGLESTEP, self.pid)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            return signal.Signals(os.WTERMSIG(status)).name
        trace(_PTRACE_GETREGS, self.pid, ctypes.addressof(registers))
        (result,) = struct.unpack("q", struct.pack("Q", registers[_RAX]))
        trace(_PTRACE_SETREGS, self.pid, ctypes.addressof(self._saved))
        return errno.errorcode[-result] if -4096 < result < 0 else "works"


@contextlib.contextmanager
def compromised(pid: int) -> Iterator[Compromised]:
    """Take over a process; afterwards it goes on, if it is still there."""
    attach(pid)
    try:
        yield Compromised(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            detach(pid)
