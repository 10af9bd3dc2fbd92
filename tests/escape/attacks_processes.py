"""Attacks on the supervisor's process: signal, trace, read, find."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from tests.escape import native
from tests.escape.attacks_files import expect_secret, read
from tests.escape.field import SECRET, SIGURG, Field, attack

_PTRACE_SEIZE: Final = 0x4206
_MADV_COLD: Final = 20
_CLONE_NEWNS: Final = 0x00020000
_RLIMIT_CORE: Final = 4
_KCMP_VM: Final = 1


def vectors(
    local: int, remote: int, size: int
) -> tuple[int, int, list[ctypes.Array[ctypes.c_char]]]:
    """Addresses of two iovecs, local and remote, and what keeps them alive."""
    keep = [ctypes.create_string_buffer(struct.pack("QQ", at, size)) for at in (local, remote)]
    return ctypes.addressof(keep[0]), ctypes.addressof(keep[1]), keep


def read_memory(pid: int, address: int) -> None:
    """process_vm_readv(2) of the secret."""
    buffer = ctypes.create_string_buffer(len(SECRET))
    local, remote, keep = vectors(ctypes.addressof(buffer), address, len(SECRET))
    native.call("process_vm_readv", pid, local, 1, remote, 1, 0)
    del keep
    expect_secret(buffer.raw)


def write_memory(pid: int, address: int) -> None:
    """process_vm_writev(2) of the secret, over itself."""
    buffer = ctypes.create_string_buffer(SECRET, len(SECRET))
    local, remote, keep = vectors(ctypes.addressof(buffer), address, len(SECRET))
    native.call("process_vm_writev", pid, local, 1, remote, 1, 0)
    del keep


def read_memory_file(pid: int, address: int) -> None:
    """Read the secret from /proc/PID/mem."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    expect_secret(os.pread(fd, len(SECRET), address))


@attack("read the supervisor's environment", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _environ(field: Field) -> None:
    expect_secret(read(f"/proc/{field.bait.pid}/environ", 1 << 16))


@attack("read the supervisor's /proc/PID/mem", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _mem(field: Field) -> None:
    read_memory_file(field.bait.pid, field.bait.memory)


@attack("read the supervisor's /proc/PID/maps", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _maps(field: Field) -> None:
    if not read(f"/proc/{field.bait.pid}/maps"):
        raise PermissionError(13, "empty")


@attack("write the supervisor's /proc/PID/mem", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _write_mem(field: Field) -> None:
    fd = os.open(f"/proc/{field.bait.pid}/mem", os.O_RDWR)
    os.pwrite(fd, SECRET, field.bait.memory)


@attack("learn the supervisor's addresses from its auxv", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _auxv(field: Field) -> None:
    read(f"/proc/{field.bait.pid}/auxv")


@attack("follow the supervisor's input and output", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _io(field: Field) -> None:
    read(f"/proc/{field.bait.pid}/io")


@attack("have the supervisor dump more of its memory", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _coredump_filter(field: Field) -> None:
    fd = os.open(f"/proc/{field.bait.pid}/coredump_filter", os.O_RDWR)
    os.write(fd, b"0x33")


@attack("list the supervisor's descriptors", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _descriptors(field: Field) -> None:
    os.listdir(f"/proc/{field.bait.pid}/fd")


@attack("open the supervisor's file by /proc/PID/fd", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _open_descriptor(field: Field) -> None:
    expect_secret(read(f"/proc/{field.bait.pid}/fd/{field.bait.fd}"))


@attack("enter the host by /proc/PID/root", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _root(field: Field) -> None:
    expect_secret(read(f"/proc/{field.bait.pid}/root{field.bait.file}"))


@attack("make the supervisor the OOM killer's choice", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _oom_score(field: Field) -> None:
    fd = os.open(f"/proc/{field.bait.pid}/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"1000")


@attack("read the supervisor's command line", "N:ENOENT L:EACCES S:EACCES")
def _cmdline(field: Field) -> None:
    read(f"/proc/{field.bait.pid}/cmdline")


@attack("read the supervisor's status", "N:ENOENT L:EACCES S:EACCES")
def _status(field: Field) -> None:
    read(f"/proc/{field.bait.pid}/status")


@attack("find the supervisor in /proc", "N:ENOENT L:EACCES S:EACCES")
def _find_in_proc(field: Field) -> None:
    if str(field.bait.pid) not in os.listdir("/proc"):
        raise ProcessLookupError(3, "not there")


@attack("find the supervisor by its number", "N:ESRCH S:SIGSYS")
def _find_by_number(field: Field) -> None:
    os.getpgid(field.bait.pid)


@attack("signal the supervisor", "U:EPERM N:ESRCH L:EPERM S:SIGSYS", landlock_abi=6)
def _kill(field: Field) -> None:
    os.kill(field.bait.pid, SIGURG)


@attack("queue a signal to the supervisor", "U:EPERM N:ESRCH L:EPERM S:SIGSYS", landlock_abi=6)
def _sigqueue(field: Field) -> None:
    info = ctypes.create_string_buffer(struct.pack("iii", SIGURG, 0, -1), 128)
    native.call("rt_sigqueueinfo", field.bait.pid, SIGURG, ctypes.addressof(info))


@attack("hold the supervisor by a pidfd", "N:ESRCH|EINVAL S:SIGSYS")
def _pidfd_open(field: Field) -> None:
    native.call("pidfd_open", field.bait.pid, 0)


@attack(
    "signal the supervisor by a pidfd", "U:EPERM N:ESRCH|EINVAL L:EPERM S:SIGSYS", landlock_abi=6
)
def _pidfd_send_signal(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.bait.pid, 0)
    native.call("pidfd_send_signal", pidfd, SIGURG, 0, 0)


@attack("take the supervisor's descriptor", "U:EPERM N:ESRCH|EINVAL L:EPERM S:SIGSYS")
def _pidfd_getfd(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.bait.pid, 0)
    fd = native.call("pidfd_getfd", pidfd, field.bait.fd, 0)
    expect_secret(os.pread(fd, 64, 0))


@attack("trace the supervisor", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _ptrace(field: Field) -> None:
    native.call("ptrace", _PTRACE_SEIZE, field.bait.pid, 0, 0)


@attack("read the supervisor's memory", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _vm_readv(field: Field) -> None:
    read_memory(field.bait.pid, field.bait.memory)


@attack("write the supervisor's memory", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _vm_writev(field: Field) -> None:
    write_memory(field.bait.pid, field.bait.memory)


@attack(
    "push the supervisor's memory out",
    # Since Linux 6.15 CAP_PERFMON passes before Landlock is asked.
    "U:EACCES|EPERM N:ESRCH|EINVAL L:works|EACCES|EPERM S:SIGSYS",
)
def _madvise(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.bait.pid, 0)
    page = field.bait.memory & ~(native.PAGE - 1)
    local, _, keep = vectors(page, page, native.PAGE)
    native.call("process_madvise", pidfd, local, 1, _MADV_COLD, 0)
    del keep


@attack("ask where the supervisor's pages are", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _move_pages(field: Field) -> None:
    page = ctypes.c_uint64(field.bait.memory & ~(native.PAGE - 1))
    status = ctypes.c_int(0)
    native.call(
        *("move_pages", field.bait.pid, 1, ctypes.addressof(page)),
        *(0, ctypes.addressof(status), 0),
    )


@attack("move the supervisor's pages", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _migrate_pages(field: Field) -> None:
    nodes = ctypes.c_uint64(1)
    mask = ctypes.addressof(nodes)
    native.call("migrate_pages", field.bait.pid, 64, mask, mask)


@attack("learn the supervisor's addresses by robust list", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _robust_list(field: Field) -> None:
    head, size = ctypes.c_uint64(0), ctypes.c_uint64(0)
    where = ctypes.addressof(head), ctypes.addressof(size)
    native.call("get_robust_list", field.bait.pid, *where)


@attack("compare kernel objects with the supervisor", "U:EPERM N:ESRCH L:EPERM S:SIGSYS")
def _kcmp(field: Field) -> None:
    native.call("kcmp", os.getpid(), field.bait.pid, _KCMP_VM, 0, 0)


@attack("change the supervisor's limits", "U:EPERM N:ESRCH S:SIGSYS")
def _prlimit(field: Field) -> None:
    limit = (ctypes.c_uint64 * 2)()
    native.call("prlimit64", field.bait.pid, _RLIMIT_CORE, 0, ctypes.addressof(limit))
    native.call("prlimit64", field.bait.pid, _RLIMIT_CORE, ctypes.addressof(limit), 0)


@attack("pin the supervisor to a processor", "U:EPERM N:ESRCH S:SIGSYS")
def _affinity(field: Field) -> None:
    os.sched_setaffinity(field.bait.pid, os.sched_getaffinity(field.bait.pid))


@attack("slow the supervisor down", "U:EPERM N:ESRCH S:SIGSYS")
def _nice(field: Field) -> None:
    os.setpriority(os.PRIO_PROCESS, field.bait.pid, 1)


@attack("join the supervisor's namespaces by a path", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _setns_by_path(field: Field) -> None:
    fd = os.open(f"/proc/{field.bait.pid}/ns/mnt", os.O_RDONLY)
    native.call("setns", fd, _CLONE_NEWNS)


@attack("join the supervisor's namespaces by a pidfd", "U:EPERM N:ESRCH|EINVAL L:EPERM S:SIGSYS")
def _setns_by_pidfd(field: Field) -> None:
    pidfd = native.call("pidfd_open", field.bait.pid, 0)
    native.call("setns", pidfd, _CLONE_NEWNS)
