"""Namespaces and the empty root, entered once by the zygote and inherited by every child."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final, NoReturn

from sandboxd.runner.isolation import ipc, kernel, refusals
from sandboxd.runner.isolation.layers import (
    EMPTY_ROOT,
    NAMESPACES,
    IsolationError,
    LayerState,
    NotInForceError,
    refused,
)

#: Flag of unshare(2) and link in /proc/self/ns, for every namespace that is always entered.
_NAMESPACES: Final = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid_for_children": 0x20000000,
    "net": 0x40000000,
}

_MADE: Final = b"made"

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2

#: Where the empty root is mounted before it becomes the root: /proc exists on every host that
#: this package works on.
_MOUNT_POINT: Final = "/proc"
#: One page and two inodes: the root itself and the directory in it that children live in.
_OPTIONS: Final = "size=4k,nr_inodes=2,mode=0755"
_INNER: Final = "empty"
#: Directories of the host that must be out of reach afterwards.
_HOST_DIRECTORIES: Final = ("/proc", "/etc", "/usr", "/dev", "/sys", "/tmp")  # noqa: S108


def unshare(required: bool) -> LayerState:
    """Put this process into new mount, cgroup, uts, ipc and net namespaces, and its next child
    into a new PID namespace; without root, into a new user namespace first.

    The caller must have one thread. In the user namespace its own user and group id map to
    themselves. The IPC namespace can hold nothing, where the kernel lets its limits be set: that
    is :func:`ipc.forbidden` to check. If the host refuses, this process is unchanged: the attempt
    is made in a forked child first. Then raises IsolationError if required, or returns the
    inactive state.
    """
    try:
        _try_in_child()
        before = _identities()
        _enter()
        _verify_entered(before)
    except (OSError, NotInForceError) as error:
        return refused(NAMESPACES, error, required)
    names = ["user", *_NAMESPACES] if os.geteuid() else list(_NAMESPACES)
    return LayerState(NAMESPACES, active=True, detail="new " + ", ".join(names))


def _enter() -> None:
    before = _identities()
    if os.geteuid() == 0:
        kernel.unshare(sum(_NAMESPACES.values()))
        _forbid_ipc(before)
        return
    _join_user_namespace(before)
    kernel.unshare(sum(flag for name, flag in _NAMESPACES.items() if name != "ipc"))


def _join_user_namespace(before: dict[str, str]) -> None:
    """Enter a user and an IPC namespace that a child of this process makes.

    Ids are mapped through files in /proc/self, and those of a process that is not dumpable belong
    to root. This process is not, and must not be for a moment: whoever traced it then would keep
    it. Of the child nothing is kept but namespaces, over which its user has every power anyway.
    """
    made_reading, made_writing = os.pipe2(os.O_CLOEXEC)
    stay_reading, stay_writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(stay_writing)
        _make_user_namespace(before, made_writing, stay_reading)
    os.close(made_writing)
    os.close(stay_reading)
    pidfd = -1
    try:
        with open(made_reading, "rb", buffering=0) as made:
            if (answer := made.read(1024)) != _MADE:
                text = (answer or b"").decode(errors="replace")
                raise NotInForceError(text or "a user namespace cannot be made")
        pidfd = os.pidfd_open(child)
        kernel.setns(pidfd, kernel.CLONE_NEWUSER | _NAMESPACES["ipc"])
    finally:
        if pidfd >= 0:
            os.close(pidfd)
        os.close(stay_writing)
        os.waitpid(child, 0)
    _verify_mapped()


def _make_user_namespace(before: dict[str, str], made: int, stay: int) -> NoReturn:
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        # Two: the limits of an IPC namespace are user 0's, of the one that it was made in, to set.
        # In the second one everybody is who they were, and has no say over the first.
        kernel.unshare(kernel.CLONE_NEWUSER | _NAMESPACES["ipc"])
        _write("/proc/self/setgroups", "deny")
        _map(user, group, inside=(0, 0))
        _forbid_ipc(before)
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map(0, 0, inside=(user, group))
        os.write(made, _MADE)
        os.read(stay, 1)  # until the other has entered, or is gone
    except OSError as error:
        os.write(made, refusals.explain(error).encode())
    finally:
        os._exit(0)


def _map(user: int, group: int, inside: tuple[int, int]) -> None:
    _write("/proc/self/uid_map", f"{inside[0]} {user} 1")
    _write("/proc/self/gid_map", f"{inside[1]} {group} 1")


def _verify_mapped() -> None:
    for name, number in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        mapped = Path("/proc/self", name).read_text("utf-8").split()
        # To user 0 of the user namespace around this one, which is the same user.
        if mapped != [str(number), "0", "1"]:
            raise NotInForceError(f"{name} reads {mapped}")


def _forbid_ipc(before: dict[str, str]) -> None:
    # CAVEAT: were the namespace still the old one, these limits would be the host's.
    if _identity("ipc") != before["ipc"]:
        with contextlib.suppress(OSError):
            ipc.forbid()


def _write(path: str, text: str) -> None:
    # One write(2): the kernel takes a mapping whole or not at all.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _identities() -> dict[str, str]:
    return {name: _identity(name) for name in _NAMESPACES}


def _identity(name: str) -> str:
    return str(Path(f"/proc/self/ns/{name}").readlink())


def _verify_entered(before: dict[str, str]) -> None:
    # The link pid_for_children cannot be read before the namespace has its first process.
    for name in before.keys() - {"pid_for_children"}:
        if _identity(name) == before[name]:
            raise NotInForceError(f"namespace {name} is still the old one")


def _try_in_child() -> None:
    """Raise in this process what entering the namespaces raises in a child of it.

    CAVEAT: a user namespace whose mapping is refused after it was entered cannot be left; the
    zygote would go on as nobody.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _report_attempt(writing)
    os.close(writing)
    with open(reading, "rb") as report:
        text = report.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise NotInForceError(text or "the attempt in a child ended without a word")


def _report_attempt(writing: int) -> None:
    code = 1
    try:
        before = _identities()
        _enter()
        _verify_entered(before)
        # The PID namespace is real only if a process can be born into it.
        first = os.fork()
        if first == 0:
            os._exit(0 if os.getpid() == 1 else 1)
        _, status = os.waitpid(first, 0)
        code = os.waitstatus_to_exitcode(status)
    except OSError as error:
        os.write(writing, refusals.explain(error).encode())
    except NotInForceError as error:
        os.write(writing, str(error).encode())
    finally:
        os._exit(code)


def enter_empty_root(required: bool) -> LayerState:
    """Replace the root by an empty, read-only directory with no way back.

    To be called by PID 1 of the namespaces that unshare() made, after every import. All of the
    host's files disappear, /proc among them. The new root is one directory deep in a read-only
    tmpfs of one page: a chrooted process cannot create user namespaces. If the host refuses the
    mount or the pivot, this process is as before; then raises IsolationError if required, or
    returns the inactive state. Once the old root is gone every failure raises.
    """
    try:
        _pivot()
    except OSError as error:
        return refused(EMPTY_ROOT, error, required)
    try:
        _close_behind()
        _verify_empty()
    except (OSError, NotInForceError) as error:
        raise IsolationError(EMPTY_ROOT, str(error)) from error
    return LayerState(EMPTY_ROOT, active=True, detail="read-only, nothing in it, chrooted")


def _pivot() -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    kernel.mount("", "/", "", _MS_REC | _MS_PRIVATE)
    kernel.mount("sandboxd", _MOUNT_POINT, "tmpfs", flags, _OPTIONS)
    try:
        Path(_MOUNT_POINT, _INNER).mkdir(mode=0o555)
        os.chdir(_MOUNT_POINT)
        # Both arguments the same: the old root ends up mounted on top of the new one, and no
        # directory is needed to put it in.
        kernel.pivot_root(".", ".")
    except OSError:
        os.chdir("/")
        kernel.umount(_MOUNT_POINT, _MNT_DETACH)
        raise


def _close_behind() -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    kernel.umount(".", _MNT_DETACH)
    os.chdir("/")
    # A lookup of '..' in the root climbs onto whatever is mounted over it.
    if not os.path.samestat(os.stat("/"), os.stat("/..")):
        raise NotInForceError("the old root is still mounted over the new one")
    kernel.mount("", "/", "", _MS_REMOUNT | _MS_RDONLY | flags, _OPTIONS)
    os.chdir(_INNER)
    os.chroot(".")
    os.chdir("/")


def _verify_empty() -> None:
    if names := os.listdir("/"):
        raise NotInForceError(f"the root holds {names}")
    if reachable := [path for path in _HOST_DIRECTORIES if os.access(path, os.F_OK)]:
        raise NotInForceError(f"still reachable: {reachable}")
    here, root, above = os.stat("."), os.stat("/"), os.stat("/..")
    if not os.path.samestat(here, root) or not os.path.samestat(root, above):
        raise NotInForceError("'.' or '..' leads out of the root")
    try:
        os.close(os.open("/probe", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    else:
        raise NotInForceError("a file can be created in the root")
