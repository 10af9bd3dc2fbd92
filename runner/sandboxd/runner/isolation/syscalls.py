"""The system calls of a locked-down child, as data: one row per call, with its reason.

A call without a row ends the process with SIGSYS. That includes every call that makes a socket,
a process, a namespace or a mount, and every one that reaches another process.

Numbers are those of arch/x86/entry/syscalls/syscall_64.tbl and of the generic table in
include/uapi/asm-generic/unistd.h that aarch64 uses; None where an architecture lacks the call.
The set was found by running the engine under KILL_PROCESS and leaving calls out one by one.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.policy import INTERRUPT_FD, LOOP_FDS, SOCKET_FD, Profile
from sandboxd.runner.isolation.seccomp import (
    ALLOW,
    ALWAYS,
    KILL_PROCESS,
    OWN_PID,
    Clause,
    Match,
    Rule,
    errno_action,
)

#: prctl options that no kernel knows. The filters answer them with an errno that prctl never
#: gives: whoever sees it knows that the filter is in force.
CANARY_LOCKED: Final = 0x5D_0001
CANARY_SEALED: Final = 0x5D_0002
CANARY_ERRNO: Final = errno.ENOMEDIUM

_PR_SET_VMA: Final = 0x53564D41
_ALL: Final[tuple[Profile, ...]] = ("core", "runner", "files", "compiler")
_NO_PATHS: Final[tuple[Profile, ...]] = ("core", "runner", "compiler")
#: Every kind of runner: it gets its module, starts its interrupt thread, and seals itself.
_RUNNER: Final[tuple[Profile, ...]] = ("core", "runner", "files")
#: Those whose guests do input and output, through the engine's event loop.
_WASI: Final[tuple[Profile, ...]] = ("runner", "files")
_FILES: Final[tuple[Profile, ...]] = ("files",)
_COMPILER: Final[tuple[Profile, ...]] = ("compiler",)
_64_BITS: Final = 0xFFFFFFFFFFFFFFFF


def _only(*matches: Match, otherwise: int = KILL_PROCESS) -> Rule:
    return Rule((Clause(matches, ALLOW),), otherwise)


def _fails(number: int) -> Rule:
    return Rule(default=errno_action(number))


def _none_but(bits: int, *, argument: int, values: tuple[int, ...] = (0,)) -> Match:
    """A match on every bit of a wide argument outside the given ones."""
    return Match(argument, values, _64_BITS & ~bits, wide=True)


# -- argument rules ------------------------------------------------------------------------------

# MAP_SHARED, MAP_GROWSDOWN and MAP_HUGETLB pages escape RLIMIT_DATA. Left free: MAP_FIXED,
# MAP_ANONYMOUS, MAP_NORESERVE, MAP_STACK, MAP_FIXED_NOREPLACE; required: MAP_PRIVATE.
_PRIVATE: Final = _none_but(0x10 | 0x20 | 0x4000 | 0x20000 | 0x100000, argument=3, values=(0x02,))
_MMAP: Final = Rule(
    (
        # No PROT_EXEC: code is mapped writable and then made executable, never both.
        Clause((Match(2, (0, 1, 3), wide=True), _PRIVATE), ALLOW),
        # MAP_DROPPABLE, with which glibc 2.41 asks for getrandom's vDSO state: answered as a
        # kernel before 6.11 does, and glibc goes on without.
        Clause((Match(3, (0x08,), 0x0F),), errno_action(errno.EINVAL)),
    )
)
# None, R, RW, RX, and RX with PROT_BTI of aarch64 (EINVAL elsewhere).
_MPROTECT: Final = _only(Match(2, (0, 1, 3, 5, 0x15), wide=True))
_MREMAP: Final = _only(Match(3, (0, 1), wide=True))  # MREMAP_MAYMOVE
# MADV_DONTNEED, MADV_FREE; advice may be refused without harm.
_MADVISE: Final = _only(Match(2, (4, 8)), otherwise=errno_action(errno.EINVAL))
# WAIT, WAKE, WAIT_BITSET, WAKE_BITSET with or without FUTEX_PRIVATE_FLAG and
# FUTEX_CLOCK_REALTIME. The others, the priority-inheriting above all, have a history of holes.
_FUTEX: Final = _only(Match(1, (0, 1, 9, 10), 0xFFFFFFFF & ~0x180))
# CLONE_VM, FS, FILES, SIGHAND and THREAD required; SYSVSEM, SETTLS, PARENT_SETTID,
# CHILD_CLEARTID, DETACHED and CHILD_SETTID free; namespaces and everything else refused.
_THREAD: Final = _only(_none_but(0x017C0000, argument=0, values=(0x00010F00,)))
# REALTIME to TAI. Negative ids are other processes' clocks and descriptors.
_CLOCK: Final = _only(Match(0, (*range(8), 11)), otherwise=errno_action(errno.EINVAL))
_SLEEP: Final = _only(Match(0, (0, 1)), otherwise=errno_action(errno.EINVAL))
# F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_FCNTL: Final = _only(Match(1, (1, 2, 3, 1030)))
_OWN_PROCESS: Final = _only(Match(0, (OWN_PID,)))
_SELF: Final = _only(Match(0, (0,)))
# MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE and its registration
_MEMBARRIER: Final = _only(Match(0, (1 << 5, 1 << 6)))
# SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_TSYNC: no listener, no log
_STACK_FILTER: Final = _only(Match(0, (1,)), Match(1, (1,)))

# AT_FDCWD, as the kernel takes it: a 32-bit int. There is nothing to see from there.
_AT_FDCWD: Final = 0xFFFFFF9C


def _below(*arguments: int) -> Rule:
    clauses = (
        Clause((Match(argument, (_AT_FDCWD,)),), errno_action(errno.EACCES))
        for argument in arguments
    )
    return Rule(tuple(clauses), ALLOW)


_BELOW: Final = _below(0)
_LINKED_BELOW: Final = _below(1)
_FROM_BELOW_TO_BELOW: Final = _below(0, 2)
# Neither punching holes nor moving what others have mapped: mode 0 or FALLOC_FL_KEEP_SIZE.
_ALLOCATE: Final = _only(Match(1, (0, 1)), otherwise=errno_action(errno.EOPNOTSUPP))

_CANARY_LOCKED: Final = Clause((Match(0, (CANARY_LOCKED,)),), errno_action(CANARY_ERRNO))
# Newer glibc names its mappings; a kernel without that option answers EINVAL.
_NAME_MAPPING: Final = Clause((Match(0, (_PR_SET_VMA,)),), errno_action(errno.EINVAL))
_PRCTL_OF_RUNNER: Final = Rule(
    (
        Clause(
            (
                Match(
                    0, (kernel.PR_SET_NAME, kernel.PR_SET_MDWE, kernel.PR_GET_MDWE, CANARY_SEALED)
                ),
            ),
            ALLOW,
        ),
        _CANARY_LOCKED,
        _NAME_MAPPING,
    )
)
_PRCTL_OF_COMPILER: Final = Rule((_CANARY_LOCKED, _NAME_MAPPING))

_NO_ADDRESS: Final = "repr() of a Python socket, in a traceback or warning, asks and takes an errno"
_NO_FILES: Final = "there are no files; an errno lets libraries and tracebacks go on without them"


@dataclass(frozen=True, slots=True)
class Row:
    """One system call: numbers by architecture, rule, profiles that have it, and why."""

    name: str
    x86_64: int | None
    aarch64: int | None
    rule: Rule
    profiles: tuple[Profile, ...]
    reason: str

    def number(self, machine: str) -> int | None:
        """The call's number on a machine that platform.machine() names."""
        return {"x86_64": self.x86_64, "aarch64": self.aarch64}[machine]


ROWS: Final = (
    # Memory
    Row("brk", 12, 214, ALWAYS, _ALL, "malloc"),
    Row("mmap", 9, 222, _MMAP, _ALL, "malloc, guest memory, thread stacks"),
    Row("munmap", 11, 215, ALWAYS, _ALL, "malloc, guest memory, thread stacks"),
    Row("mremap", 25, 216, _MREMAP, _ALL, "realloc"),
    Row("mprotect", 10, 226, _MPROTECT, _ALL, "guest memory grows; code becomes executable"),
    Row("madvise", 28, 233, _MADVISE, _ALL, "a thread that ends gives its stack back"),
    Row("membarrier", None, 283, _MEMBARRIER, _ALL, "the engine flushes aarch64 pipelines"),
    # Descriptors that the child was given
    Row("read", 0, 63, ALWAYS, _ALL, "frames, the interrupt pipe, the module"),
    Row("write", 1, 64, ALWAYS, _ALL, "frames, the outbox, the artifact"),
    Row("pread64", 17, 67, ALWAYS, _ALL, "the artifact, the module"),
    Row("pwrite64", 18, 68, ALWAYS, _ALL, "the outbox, the artifact"),
    Row("writev", 20, 66, ALWAYS, _ALL, "glibc's last words before abort"),
    Row("lseek", 8, 62, ALWAYS, _ALL, "the artifact, the module"),
    Row("fstat", 5, 80, ALWAYS, _ALL, "the size of a descriptor at hand"),
    Row("close", 3, 57, ALWAYS, _ALL, "the artifact after it was loaded"),
    Row("fcntl", 72, 25, _FCNTL, _WASI, "the event loop duplicates its epoll"),
    Row("ioctl", 16, 29, _fails(errno.ENOTTY), _ALL, "isatty; no other request is let through"),
    Row("recvmsg", 47, 212, ALWAYS, _RUNNER, "the artifact's descriptor, until sealed"),
    Row("getsockname", 51, 204, _fails(errno.EACCES), _ALL, _NO_ADDRESS),
    Row("getpeername", 52, 205, _fails(errno.EACCES), _ALL, _NO_ADDRESS),
    # Threads and locks
    Row("clone", 56, 220, _THREAD, _RUNNER, "the interrupt thread and the engine's event loop"),
    Row("clone3", 435, 435, _fails(errno.ENOSYS), _RUNNER, "flags out of reach: glibc uses clone"),
    Row("set_robust_list", 273, 99, ALWAYS, _RUNNER, "every thread that starts"),
    Row("rseq", 334, 293, ALWAYS, _RUNNER, "every thread that starts"),
    Row("exit", 60, 93, ALWAYS, _RUNNER, "every thread that ends"),
    Row("futex", 202, 98, _FUTEX, _ALL, "locks"),
    Row("sched_yield", 24, 124, ALWAYS, _WASI, "spinning locks of the event loop"),
    Row("sched_getaffinity", 204, 123, _SELF, _WASI, "the event loop counts processors"),
    Row("gettid", 186, 178, ALWAYS, _ALL, "Python's threads; abort"),
    Row("getpid", 39, 172, ALWAYS, _ALL, "abort; Python"),
    # The engine's event loop, behind every WASI read, write and sleep
    Row("epoll_create1", 291, 20, ALWAYS, _WASI, "event loop"),
    Row("epoll_ctl", 233, 21, ALWAYS, _WASI, "event loop"),
    Row("epoll_wait", 232, None, ALWAYS, _WASI, "event loop"),
    Row("epoll_pwait", None, 22, ALWAYS, _WASI, "event loop; aarch64 has no epoll_wait"),
    Row("eventfd2", 290, 19, ALWAYS, _WASI, "event loop"),
    # Clocks and random numbers; the vDSO answers most reads of a clock without a call
    Row("clock_gettime", 228, 113, _CLOCK, _ALL, "clocks of Python and WASI"),
    Row("clock_getres", 229, 114, _CLOCK, _WASI, "WASI clock_res_get"),
    Row("clock_nanosleep", 230, 115, _SLEEP, _WASI, "time.sleep"),
    Row("restart_syscall", 219, 128, ALWAYS, _ALL, "a sleep or lock goes on after a stop"),
    Row("getrandom", 318, 278, ALWAYS, _ALL, "WASI random_get; hash seeds of the engine"),
    # Signals: traps are signals, and abort is one that the process sends itself
    Row("rt_sigaction", 13, 134, ALWAYS, _ALL, "the event loop's first thread; abort"),
    Row("rt_sigprocmask", 14, 135, ALWAYS, _ALL, "starting a thread; abort"),
    Row("rt_sigreturn", 15, 139, ALWAYS, _ALL, "after a trap"),
    Row("sigaltstack", 131, 132, ALWAYS, _ALL, "the stack on which stack overflow is handled"),
    Row("tgkill", 234, 131, _OWN_PROCESS, _ALL, "abort: the honest end of a native crash"),
    Row("exit_group", 231, 94, ALWAYS, _ALL, "the end"),
    # The process itself
    Row("prctl", 157, 167, _PRCTL_OF_RUNNER, _RUNNER, "names of threads; sealing; the canaries"),
    Row("prctl", 157, 167, _PRCTL_OF_COMPILER, _COMPILER, "the canary"),
    Row("seccomp", 317, 277, _STACK_FILTER, _RUNNER, "sealing stacks a filter on this one"),
    # Paths
    Row("open", 2, None, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("openat", 257, 56, _fails(errno.EACCES), _NO_PATHS, _NO_FILES),
    Row("openat2", 437, 437, _fails(errno.EACCES), _NO_PATHS, _NO_FILES),
    Row("stat", 4, None, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("lstat", 6, None, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("newfstatat", 262, 79, _fails(errno.EACCES), _NO_PATHS, _NO_FILES),
    Row("statx", 332, 291, _fails(errno.EACCES), _NO_PATHS, _NO_FILES),
    Row("access", 21, None, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("faccessat", 269, 48, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("faccessat2", 439, 439, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("readlink", 89, None, _fails(errno.EACCES), _ALL, _NO_FILES),
    Row("readlinkat", 267, 78, _fails(errno.EACCES), _NO_PATHS, _NO_FILES),
    Row("getcwd", 79, 17, _fails(errno.EACCES), _ALL, _NO_FILES),
    # Preopened directories: only below a descriptor at hand, never from the working directory
    Row("openat", 257, 56, _BELOW, _FILES, "WASI path_open, on kernels without openat2"),
    Row("openat2", 437, 437, _BELOW, _FILES, "WASI path_open, with RESOLVE_BENEATH"),
    Row("newfstatat", 262, 79, _BELOW, _FILES, "WASI path_filestat_get"),
    Row("statx", 332, 291, _BELOW, _FILES, "WASI fd_filestat_get, path_filestat_get"),
    Row("readlinkat", 267, 78, _BELOW, _FILES, "WASI path_readlink; resolving a path"),
    Row("mkdirat", 258, 34, _BELOW, _FILES, "WASI path_create_directory"),
    Row("unlinkat", 263, 35, _BELOW, _FILES, "WASI path_unlink_file, path_remove_directory"),
    Row("symlinkat", 266, 36, _LINKED_BELOW, _FILES, "WASI path_symlink"),
    Row("linkat", 265, 37, _FROM_BELOW_TO_BELOW, _FILES, "WASI path_link"),
    Row("renameat", 264, 38, _FROM_BELOW_TO_BELOW, _FILES, "WASI path_rename"),
    Row("utimensat", 280, 88, _BELOW, _FILES, "WASI path_filestat_set_times"),
    Row("getdents64", 217, 61, ALWAYS, _FILES, "WASI fd_readdir"),
    Row("ftruncate", 77, 46, ALWAYS, _FILES, "WASI fd_filestat_set_size"),
    Row("fallocate", 285, 47, _ALLOCATE, _FILES, "WASI fd_allocate"),
    Row("fsync", 74, 82, ALWAYS, _FILES, "WASI fd_sync"),
    Row("fdatasync", 75, 83, ALWAYS, _FILES, "WASI fd_datasync"),
)

# -- the second filter ---------------------------------------------------------------------------

_NOT_EXECUTABLE: Final = Match(2, (0,), kernel.PROT_EXEC)
_NO_EXEC: Final = Rule((Clause((_NOT_EXECUTABLE,), ALLOW),))
# MAP_ANONYMOUS: a descriptor that was left open cannot be read by mapping it.
_NO_EXEC_NO_FILE: Final = Rule((Clause((_NOT_EXECUTABLE, Match(3, (0x20,), 0x20)), ALLOW),))
_NEVER: Final = Rule()


def _numbered(argument: int, *fds: int) -> Match:
    return Match(argument, fds)


# Standard error is an unwritable memory file: a panic's message gets an errno.
_READABLE: Final = (SOCKET_FD, INTERRUPT_FD)
_WRITABLE: Final = (2, SOCKET_FD)
_DUPLICATED: Final = _only(_numbered(0, *LOOP_FDS), Match(1, (1, 2, 3, 1030)))


def _by_number(profile: Profile, *others: int) -> tuple[Row, ...]:
    """Reading and writing, only of what policy.py numbers, and no second number for anything."""
    read, write = _only(_numbered(0, *_READABLE, *others)), _only(_numbered(0, *_WRITABLE, *others))
    return (
        Row("read", 0, 63, read, (profile,), "frames and the interrupt pipe"),
        Row("pread64", 17, 67, read, (profile,), "nothing that was left open"),
        Row("readv", 19, 65, read, (profile,), "nothing that was left open"),
        Row("write", 1, 64, write, (profile,), "frames, and the last words of a panic"),
        Row("pwrite64", 18, 68, write, (profile,), "nothing that was left open"),
        Row("writev", 20, 66, write, (profile,), "glibc's last words before abort"),
    )


#: The second filter, on top of the first: what it does not name is left to the first.
SEALED_ROWS: Final = (
    Row("mmap", 9, 222, _NO_EXEC_NO_FILE, _RUNNER, "no code after the module, and no file"),
    Row("mprotect", 10, 226, _NO_EXEC, _RUNNER, "no code after the module was loaded"),
    Row("pkey_mprotect", 329, 288, _NO_EXEC, _RUNNER, "no code after the module was loaded"),
    Row("recvmsg", 47, 212, _NEVER, _RUNNER, "no descriptor may come in any more"),
    *_by_number("core"),
    *_by_number("runner", *LOOP_FDS),
    Row("dup", 32, 23, _NEVER, _RUNNER, "no descriptor takes the number of another"),
    Row("dup2", 33, None, _NEVER, _RUNNER, "no descriptor takes the number of another"),
    Row("dup3", 292, 24, _NEVER, _RUNNER, "no descriptor takes the number of another"),
    Row("fcntl", 72, 25, _DUPLICATED, ("runner",), "the event loop duplicates its epoll"),
    Row(
        "prctl",
        157,
        167,
        Rule(
            (
                Clause((Match(0, (kernel.PR_SET_NAME,)),), ALLOW),
                Clause((Match(0, (CANARY_SEALED,)),), errno_action(CANARY_ERRNO)),
                _CANARY_LOCKED,
                _NAME_MAPPING,
            )
        ),
        _RUNNER,
        "names of threads; the canaries",
    ),
    Row("seccomp", 317, 277, _NEVER, _RUNNER, "no filter after this one"),
)

#: The same for a guest that only computes: what WASI needs and it does not is gone as well.
SEALED_CORE_ROWS: Final = (
    *SEALED_ROWS,
    *(
        Row(row.name, row.x86_64, row.aarch64, _NEVER, ("core",), "for WASI alone: " + row.reason)
        for row in ROWS
        if "runner" in row.profiles and "core" not in row.profiles
    ),
)


def rules(rows: tuple[Row, ...], machine: str, profile: Profile) -> dict[int, Rule]:
    """The rules of one table by system call number. Raises ValueError if two rows collide."""
    found: dict[int, Rule] = {}
    for row in rows:
        number = row.number(machine)
        if number is None or profile not in row.profiles:
            continue
        if number in found:
            raise ValueError(f"system call {number} ({row.name}) has two rows")
        found[number] = row.rule
    return found
