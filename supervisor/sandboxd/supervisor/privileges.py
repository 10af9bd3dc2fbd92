"""What the supervisor gives up: its memory to others, and root.

The process that speaks gRPC never runs as root. Started as root, the daemon execs the launcher,
binds its sockets, and then becomes an ordinary user for good, before it reads its state and answers
the first byte. One capability stays: CAP_KILL. Every runner has a user id of its own, the kernel
checks a pidfd's signal against it when it is sent, and the certain kill must not depend on any
other process.

Bounding set and no-new-privs belong to a thread, and are inherited by those that it starts: they go
before gRPC starts its own. The C library changes the ids of every thread.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from sandboxd.supervisor import uid_range
from sandboxd.supervisor.errors import StartError

DEFAULT_USER = "sandboxd"

_libc = ctypes.CDLL(None, use_errno=True)
# include/uapi/linux/prctl.h, capability.h
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAP_KILL = 5
_LAST_CAP_POSSIBLE = 63
_CAPABILITY_VERSION_3 = 0x20080522


class PrivilegeError(StartError):
    """Root could not be given up; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who the daemon becomes."""

    uid: int
    gid: int


def account(user: str, fallback_uid: int) -> Account:
    """Return the account to become: a name or number, else the user sandboxd, else `fallback_uid`.

    Raises `PrivilegeError` for a name that does not exist, for root, and for no user's number.
    """
    if user.isascii() and user.isdecimal():
        number = int(user)
        if number > uid_range.MAX_UID:
            raise PrivilegeError(f"a user's number is at most {uid_range.MAX_UID}: {user}")
        chosen = Account(number, number)
    elif user or _exists(DEFAULT_USER):
        try:
            entry = pwd.getpwnam(user or DEFAULT_USER)
        except KeyError:
            raise PrivilegeError(
                f"there is no user {user or DEFAULT_USER!r}; create it, or pass a number"
            ) from None
        chosen = Account(entry.pw_uid, entry.pw_gid)
    else:
        chosen = Account(fallback_uid, fallback_uid)
    if chosen.uid == 0 or chosen.gid == 0:
        raise PrivilegeError("the daemon does not speak gRPC as root; pass another --user")
    return chosen


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def hide_memory() -> None:
    """Let no process of the same user trace this one or read its memory; see `is_dumpable`.

    To be called again after a change of user. The files below /proc/self belong to root from then
    on; those that are open to others can be read still.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_dumpable() -> bool:
    """True if processes of the same user may trace this one."""
    return bool(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0)


def forgo_privileges() -> None:
    """Empty the bounding set of all but CAP_KILL and set no-new-privs, for this and later threads.

    Root keeps what it has, but cannot pass it on. Raises `PrivilegeError`, also if there is
    another thread already, which would be left out. `give_up_root` verifies it.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise PrivilegeError("privileges cannot be given up: another thread is running")
    try:
        for capability in range(_LAST_CAP_POSSIBLE + 1):
            if capability != _CAP_KILL and _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
                _checked(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    except OSError as error:
        raise PrivilegeError(f"privileges cannot be given up: {error.strerror}") from error


def give_up_root(to: Account) -> None:
    """Become the account, keeping CAP_KILL alone, and verify it. Raises `PrivilegeError`.

    `forgo_privileges` must have come before the first thread.
    """
    try:
        _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        # The C library changes the ids of every thread; only this one keeps capabilities.
        os.setgroups([])
        os.setresgid(to.gid, to.gid, to.gid)
        os.setresuid(to.uid, to.uid, to.uid)
        _keep_only_kill()
        hide_memory()
    except OSError as error:
        raise PrivilegeError(f"root cannot be given up: {error.strerror}") from error
    _verify(to)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _keep_only_kill() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: the low words, then the high words
    data = (ctypes.c_uint32 * 6)(1 << _CAP_KILL, 1 << _CAP_KILL, 0, 0, 0, 0)
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _verify(to: Account) -> None:
    """Read back, for every thread, who it runs as and what it may do."""
    for task in Path("/proc/self/task").iterdir():
        fields = dict(
            line.split(":\t", 1)
            for line in (task / "status").read_text().splitlines()
            if ":\t" in line
        )
        if set(fields["Uid"].split()) != {str(to.uid)} or fields["Groups"].strip():
            raise PrivilegeError(f"thread {task.name} still runs as {fields['Uid']}")
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            if int(fields[name], 16) & ~(1 << _CAP_KILL):
                raise PrivilegeError(f"thread {task.name} still has {name} {fields[name]}")
        if fields["NoNewPrivs"] != "1":
            raise PrivilegeError(f"thread {task.name} could gain privileges")
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise PrivilegeError("root could be taken again")
