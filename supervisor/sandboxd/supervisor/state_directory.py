"""The state directory, as root meets it at a start: it belongs to an ordinary user.

Whoever took the daemon over once may have left anything in it, and may still be changing it. So
root follows no name in it. It opens the directory, over a way that nobody else can change; makes or
opens `lock` in it, without following a link; and gives the directory to the daemon's user if that
has changed. Whatever else is done in it is done after root was given up.

What changes owner is decided by the inode that was opened, not by its name: a directory, or a
regular file without a second name, that belongs to the directory's former owner already. So nothing
of anybody else's can be had by planting a link, or by swapping one in.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

from sandboxd.supervisor import uid_range
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.privileges import Account

log = logging.getLogger(__name__)

LOCK_NAME: Final = "lock"
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# modules/<tenant>/<digest>/<file>: nothing of ours lies deeper.
_MAX_DEPTH: Final = 4
_MAX_LINKS: Final = 40


class StateDirectoryUnusable(StartError):  # noqa: N818 - a state of the world
    """The state directory cannot be used; the message says why and what to do."""


class StateDirectoryBusy(StateDirectoryUnusable):
    """Another daemon uses the state directory."""


class StateDirectoryForeign(StateDirectoryUnusable):
    """The directory is somebody else's: it holds what no daemon made, or others can replace it."""


# --- opening -------------------------------------------------------------------------------------


def open_or_make(path: Path) -> int:
    """Open the directory for reading; make it, mode 0700, if there is none.

    As root every directory on the way must be root's alone. Raises `StateDirectoryForeign`,
    OSError.
    """
    if os.geteuid() != 0:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return os.open(_real_path(path.absolute(), 0o700, _MAX_LINKS), _DIRECTORY)


def require_makable(path: Path) -> None:
    """Raise what `open_or_make` would for a directory that is not there, and make nothing."""
    path = path.absolute()
    nearest = next(one for one in path.parents if os.path.lexists(one))
    if os.path.lexists(path) or not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if os.geteuid() == 0:
        _require_root_owns(_real_path(nearest, 0o755, _MAX_LINKS))
    try_making_in(nearest)


def try_making_in(directory: Path) -> None:
    """Raise OSError, with the directory's name, if no other can be made in it: one is, and goes."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".sandboxd-", dir=directory))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(directory)) from error


def _real_path(path: Path, mode: int, links: int) -> Path:
    """Return the path without links; nobody but root can change what it leads to."""
    if path == path.parent:
        return path
    parent = _real_path(path.parent, 0o755, links)
    _require_root_owns(parent)
    here = parent / path.name
    try:
        status = os.lstat(here)
    except FileNotFoundError:
        here.mkdir(mode)
        return here
    if not stat.S_ISLNK(status.st_mode):
        return here
    if links == 0:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if status.st_uid != 0:  # somebody else's, in a directory like /tmp
        raise StateDirectoryForeign(f"{here} is a link of user {status.st_uid}: root follows none")
    return _real_path(parent / os.readlink(here), mode, links - 1)


def _require_root_owns(directory: Path) -> None:
    status = os.stat(directory, follow_symlinks=False)
    # In a sticky directory nobody can rename what is root's.
    shared = status.st_mode & _OTHERS_MAY_WRITE and not status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or shared:
        who = "others" if status.st_uid == 0 else f"user {status.st_uid}"
        raise StateDirectoryForeign(
            f"{directory}: {who} can replace what is in it, which root must not use; give it to "
            "root alone, pass another --state-dir, or start the daemon as an ordinary user"
        )


def lock(base_fd: int, path: Path) -> int:
    """Lock the directory for this process and return the descriptor that holds the lock.

    Raises `StateDirectoryBusy`, `StateDirectoryForeign`, OSError.
    """
    fd = _open_lock(base_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise StateDirectoryForeign(f"{path}/{LOCK_NAME} is no file of a daemon's; remove it")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StateDirectoryBusy(
            f"another sandboxd uses {path}; stop it or pass another --state-dir"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_lock(base_fd: int) -> int:
    try:
        fd = os.open(LOCK_NAME, _LOCK | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=base_fd)
    except FileExistsError:
        return os.open(LOCK_NAME, _LOCK, dir_fd=base_fd)
    # Made here, so whose it is can be said. Where root made it: whose the directory is.
    owner = os.fstat(base_fd)
    if os.geteuid() == 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


# --- handing over --------------------------------------------------------------------------------


def hand_over(base_fd: int, path: Path, to: Account) -> None:
    """As root, give the directory and what is certainly a daemon's in it to the account.

    Nothing is done if it is the account's already. Otherwise its owner must be root, or a user id
    of a range that daemons take. Such an owner is believed: it was a daemon's supervisor (children
    never see the directory), as this one was before its range changed, and a daemon trusts what
    its former self has left. What is not handed over cannot be used later, which is told then.
    Raises `StateDirectoryForeign`, OSError.
    """
    if not must_hand_over(base_fd, path, to):
        return
    former = os.fstat(base_fd).st_uid
    left: list[str] = []
    _give(base_fd, frozenset({former, to.uid}), to, _MAX_DEPTH, left)
    if left:
        log.warning("%d names in %s are not handed over, %r first", len(left), path, left[0])
    # Last: should this be interrupted, the next start begins anew.
    os.fchown(base_fd, to.uid, to.gid)


def must_hand_over(base_fd: int, path: Path, to: Account) -> bool:
    """Whether the directory is not the account's yet.

    Raises `StateDirectoryForeign` if it must not be given to it.
    """
    status = os.fstat(base_fd)
    former = status.st_uid
    if former == to.uid:
        return False
    if former != 0 and not uid_range.is_automatic(former):
        raise StateDirectoryForeign(
            f"{path} belongs to user {former}, and this daemon becomes user {to.uid}: pass --user "
            f"{former}, or another --state-dir, or give all of it away: chown -R {to.uid} {path}"
        )
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise StateDirectoryForeign(f"others can write {path}; chmod 0700 it, or pass another")
    return True


def _give(
    directory_fd: int, owners: Collection[int], to: Account, depth: int, left: list[str]
) -> None:
    for name in os.listdir(directory_fd):
        # O_PATH: a device or FIFO in a file's place is looked at, not opened.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            status = os.fstat(fd)
            is_directory = stat.S_ISDIR(status.st_mode)
            is_file = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if status.st_uid not in owners or depth == 0 or not (is_directory or is_file):
                left.append(name)
                continue
            if is_directory:
                inner = os.open(".", _DIRECTORY, dir_fd=fd)
                try:
                    _give(inner, owners, to, depth - 1, left)
                finally:
                    os.close(inner)
            # Of what was opened, whatever has its name by now.
            os.chown(f"/proc/self/fd/{fd}", to.uid, to.gid)
        finally:
            os.close(fd)
