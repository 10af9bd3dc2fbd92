"""Files and directories that only the daemon may have touched, reached by descriptor.

Names are looked up in a directory that is open already and symbolic links are not followed, so
nobody can lead the daemon elsewhere, and it needs no path to the state directory once it gave root
up. What somebody else owns or can write is not used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Collection
from typing import Final

_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ANYTHING: Final = stat.S_IRWXG | stat.S_IRWXO


class NotPrivate(Exception):  # noqa: N818 - a state of the world
    """Not to be used: of another kind, owned by somebody else, or open to others."""


def check(
    status: os.stat_result, owners: Collection[int], forbidden: int = _OTHERS_MAY_WRITE
) -> None:
    """Raise `NotPrivate` unless one of `owners` owns it and no mode bit of `forbidden` is set."""
    if status.st_uid not in owners:
        raise NotPrivate(f"user {status.st_uid} owns it")
    if status.st_mode & forbidden:
        raise NotPrivate(f"its mode is {stat.S_IMODE(status.st_mode):04o}")


def open_file(
    name: str, dir_fd: int, owners: Collection[int], forbidden: int = _OTHERS_MAY_WRITE
) -> int:
    """Open a regular file for reading. Raises `NotPrivate`, FileNotFoundError, OSError."""
    # O_NONBLOCK: a FIFO in its place must not hold the daemon up.
    fd = _open(name, dir_fd, os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate("it is no regular file")
        check(status, owners, forbidden)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_file(name: str, dir_fd: int) -> int:
    """Create a file for writing, mode 0600. Raises OSError, FileExistsError among them."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=dir_fd)


def open_directory(name: str, dir_fd: int, owners: Collection[int]) -> int:
    """Open a directory. Raises `NotPrivate`, FileNotFoundError, OSError."""
    fd = _open(name, dir_fd, os.O_DIRECTORY)
    try:
        check(os.fstat(fd), owners)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_directory(name: str, dir_fd: int, owners: Collection[int]) -> int:
    """Open a directory, making it, mode 0700, if there is none. Raises as `open_directory`."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    return open_directory(name, dir_fd, owners)


def _open(name: str, dir_fd: int, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise NotPrivate("it is of another kind, perhaps a symbolic link") from None


def remove(name: str, dir_fd: int) -> None:
    """Remove whatever has this name, a directory with all in it. Nothing there is no error."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(name, ignore_errors=True, dir_fd=dir_fd)
