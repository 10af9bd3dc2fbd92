"""Linux calls that Python 3.11 does not offer, as prebuilt ctypes functions.

Every function raises OSError with the kernel's errno and the name of the call. Constants are
those of the kernel's uapi headers, named as there. Nothing here creates a ctypes callback.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

MACHINE: Final = platform.machine()

# Only what lock-down itself calls; the allowlist has a table of its own.
_NUMBERS: Final = {
    "x86_64": {"pivot_root": 155, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "seccomp": 277},
}.get(MACHINE, {})
# It came after the numbers were unified, and is the same everywhere.
_LANDLOCK_CREATE_RULESET: Final = 444

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SET_MDWE: Final = 65
PR_GET_MDWE: Final = 66
PR_MDWE_REFUSE_EXEC_GAIN: Final = 1

PROT_READ: Final = 1
PROT_EXEC: Final = 4

CLONE_VM: Final = 0x00000100
CLONE_NEWUSER: Final = 0x10000000

_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_ulong = ctypes.c_ulong


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _prototype(name: str, *argtypes: type) -> ctypes._NamedFuncPointer:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    return function  # type: ignore[no-any-return]


_syscall = _prototype("syscall", *([_ulong] * 7))
_prctl = _prototype("prctl", ctypes.c_int, *([_ulong] * 4))
_unshare = _prototype("unshare", ctypes.c_int)
_setns = _prototype("setns", ctypes.c_int, ctypes.c_int)
_mprotect = _prototype("mprotect", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_capget = _prototype("capget", ctypes.c_void_p, ctypes.c_void_p)
_capset = _prototype("capset", ctypes.c_void_p, ctypes.c_void_p)
_umount2 = _prototype("umount2", ctypes.c_char_p, ctypes.c_int)
_mount = _prototype(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, _ulong, ctypes.c_char_p
)


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _numbered(call: str) -> int:
    try:
        return _NUMBERS[call]
    except KeyError:
        raise OSError(0, f"{call}: unsupported architecture {MACHINE}") from None


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2); returns its non-negative result."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    # The lock-down makes a hundred of these calls: the message is only made when it is needed.
    return result if result != -1 else _checked(result, f"prctl({option}, {arg2})")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_unshare(flags), "unshare")


def setns(pidfd: int, flags: int) -> None:
    """setns(2) with a process's descriptor; needs Linux 5.8."""
    _checked(_setns(pidfd, flags), "setns")


def mprotect(address: int, length: int, protection: int) -> None:
    """mprotect(2); address and length in bytes, whole pages."""
    _checked(_mprotect(address, length, protection), "mprotect")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


# Made here and not where it is used: making a ctypes type costs more than the call.
_CapabilitySets = _CapabilityData * 2


def capabilities() -> tuple[int, int, int]:
    """This thread's effective, permitted and inheritable sets, as 64-bit masks."""
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = _CapabilitySets()
    _checked(_capget(ctypes.addressof(header), ctypes.addressof(data)), "capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_capabilities(mask: int) -> None:
    """Hold exactly these capabilities, as effective and permitted; none is inheritable."""
    header = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = _CapabilitySets()
    for word, half in zip(data, (mask & 0xFFFFFFFF, mask >> 32), strict=True):
        word.effective = word.permitted = half
    _checked(_capset(ctypes.addressof(header), ctypes.addressof(data)), "capset")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2); an empty source, kind or options is passed as NULL."""
    arguments = [text.encode() or None for text in (source, target, kind, options)]
    _checked(_mount(arguments[0], arguments[1], arguments[2], flags, arguments[3]), "mount")


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_umount2(target.encode(), flags), "umount2")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    new, old = ctypes.c_char_p(new_root.encode()), ctypes.c_char_p(put_old.encode())
    new_address = ctypes.cast(new, ctypes.c_void_p).value or 0
    old_address = ctypes.cast(old, ctypes.c_void_p).value or 0
    _checked(_syscall(_numbered("pivot_root"), new_address, old_address, 0, 0, 0, 0), "pivot_root")


def landlock_abi() -> int:
    """Highest Landlock ABI of the running kernel; 0 if it has none or it is switched off."""
    try:
        return _checked(
            _syscall(_LANDLOCK_CREATE_RULESET, 0, 0, _LANDLOCK_CREATE_RULESET_VERSION, 0, 0, 0),
            "landlock_create_ruleset",
        )
    except OSError:
        return 0


def load_filter(program: bytes) -> None:
    """Stack a classic-BPF program (packed sock_filter entries) on all threads of this process."""
    fprog = _SockFprog(len(program) // 8, program)
    result = _checked(
        _syscall(
            _numbered("seccomp"),
            _SECCOMP_SET_MODE_FILTER,
            _SECCOMP_FILTER_FLAG_TSYNC,
            ctypes.addressof(fprog),
            0,
            0,
            0,
        ),
        "seccomp",
    )
    if result != 0:
        raise OSError(0, f"seccomp: thread {result} could not be synchronised")
