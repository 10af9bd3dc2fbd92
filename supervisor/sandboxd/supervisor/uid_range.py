"""User ids for the children of a daemon that was started as root, its own and nobody else's.

Two daemons that shared a range would share users between their runners: a wall fewer between them,
and limits that count both. So each one locks its range. The lock file stands for the user ids of
this machine, one byte each; a POSIX record lock over a range of its bytes is that range, and
overlaps are refused by the kernel. The lock ends with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pwd
from collections.abc import Iterable

from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.text import for_people

LOCK_PATH = "/run/sandboxd-uids.lock"
_USERS_FILE = "/etc/passwd"
# Above what systemd gives to containers and dynamic users (up to 1,879,048,191, see UIDS-GIDS), and
# below 2^31, where some tools take a user id for a negative number.
FIRST = 1_900_000_000
_STEP = 10_000
_LAST = 2**31 - 1
# The one above means "leave it as it is" to the kernel, which for a runner would be root.
MAX_UID = 2**32 - 2


class UidRangeUnavailable(StartError):  # noqa: N818 - a state of the world
    """No range of user ids could be taken; the message says why and what to do."""


class UidRange:
    """A locked range. CAVEAT: closing any descriptor of the lock file would give it up."""

    def __init__(self, ids: range, lock_fd: int) -> None:
        self.ids = ids
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Give it up; idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def is_automatic(uid: int) -> bool:
    """True for a user id that only daemons take, by themselves."""
    return FIRST <= uid <= _LAST


def take(
    first: int | None, count: int, lock_path: str = LOCK_PATH, before: int | None = None
) -> UidRange:
    """Lock `count` user ids from `first` on. If that is None: from `before` on, if daemons take
    those and they are free, else the first free ones.

    `before` is where this daemon's ids began the last time: what it left on disk is its own still,
    and nobody else's. An operator's choice is never replaced by another: what lies beside it may be
    in use. Raises `UidRangeUnavailable`.
    """
    if first is not None and first + count - 1 > MAX_UID:
        raise UidRangeUnavailable(
            f"--uid-base can be {MAX_UID + 1 - count} at most: {count} user ids are taken"
        )
    if first is not None:
        _refuse_real_users(range(first, first + count))
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UidRangeUnavailable(
            f"user ids are locked in {lock_path}: {error.strerror}; make its directory writable"
        ) from error
    for base in _bases(first, count, before):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, count, base)
        except (BlockingIOError, PermissionError):
            continue
        return UidRange(range(base, base + count), fd)
    os.close(fd)
    raise UidRangeUnavailable(
        "another sandboxd takes user ids of this range; pass another --uid-base, or none"
    )


def _refuse_real_users(ids: range) -> None:
    """Raise `UidRangeUnavailable` if somebody is known by an id of the range.

    The whole range is looked for in the file of users, where those of this machine are; in the
    other databases only its ends: one question to a directory server may take long, and there
    would be one for each runner.
    """
    taken = {}
    with (
        contextlib.suppress(OSError),
        open(_USERS_FILE, encoding="utf-8", errors="replace") as lines,
    ):
        for fields in (line.split(":") for line in lines):
            if len(fields) > 2 and fields[2].isdecimal() and int(fields[2]) in ids:
                taken[int(fields[2])] = fields[0]
    for end in {ids[0], ids[-1]} - taken.keys():
        with contextlib.suppress(KeyError):
            taken[end] = pwd.getpwuid(end).pw_name
    if taken:
        first = min(taken)
        raise UidRangeUnavailable(
            f"--uid-base takes {len(ids)} user ids from {ids[0]} to {ids[-1]} for runners, and "
            f"{first} is the user {for_people(taken[first], 64)}; pass a range without users, or "
            "none"
        )


def _bases(first: int | None, count: int, before: int | None) -> Iterable[int]:
    if first is not None:
        return (first,)
    automatic = range(FIRST, _LAST - count, max(_STEP, count))
    if before is not None and FIRST <= before < _LAST - count:
        return itertools.chain((before,), automatic)
    return automatic
