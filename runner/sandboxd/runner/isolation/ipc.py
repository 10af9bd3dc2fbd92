"""No object of System V or POSIX message queues in the IPC namespace: its limits are 0.

Shared memory of System V belongs to no process: neither RLIMIT_DATA nor a process's end bounds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sandboxd.runner.isolation.layers import NO_IPC, LayerState, NotInForceError, refused


class _Setting(NamedTuple):
    """A sysctl of the IPC namespace, and what is written to it and read back."""

    path: str
    value: str


#: The kernel's Documentation/admin-guide/sysctl. The first three numbers of sem are the defaults
#: of linux/sem.h: only the last one, of sets in the namespace, is needed.
_SETTINGS: Final = (
    _Setting("/proc/sys/kernel/shmmax", "0"),
    _Setting("/proc/sys/kernel/shmall", "0"),
    _Setting("/proc/sys/kernel/shmmni", "0"),
    _Setting("/proc/sys/kernel/msgmni", "0"),
    _Setting("/proc/sys/kernel/sem", "32000 1024000000 500 0"),
    _Setting("/proc/sys/fs/mqueue/queues_max", "0"),
)
_IPC_PRIVATE: Final = 0
_PAGE_BYTES: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)
#: Each makes an object of its kind, and the errno that says that there is room for none.
_ATTEMPTS: Final[tuple[tuple[str, Callable[[], int], int], ...]] = (
    ("shared memory", lambda: int(_libc.shmget(_IPC_PRIVATE, _PAGE_BYTES, 0o1600)), errno.EINVAL),
    ("message queue", lambda: int(_libc.msgget(_IPC_PRIVATE, 0o1600)), errno.ENOSPC),
    ("semaphore", lambda: int(_libc.semget(_IPC_PRIVATE, 1, 0o1600)), errno.ENOSPC),
)


def forbid() -> None:
    """Set the limits of the calling process's IPC namespace, which must be its own.

    The kernel allows it to root, and to user 0 of the user namespace that the IPC namespace was
    made in. Raises OSError. A kernel without System V IPC or message queues has less to set.
    """
    for setting in _SETTINGS:
        with contextlib.suppress(FileNotFoundError):
            Path(setting.path).write_text(setting.value, "utf-8")


def forbidden(required: bool) -> LayerState:
    """Check that :func:`namespaces.unshare` has set the limits; to be called while /proc is there.

    Raises IsolationError if they are not set and required, or returns the inactive state.
    """
    try:
        detail = _verify()
    except (OSError, NotInForceError) as error:
        return refused(NO_IPC, error, required)
    return LayerState(NO_IPC, active=True, detail=detail)


def _verify() -> str:
    for setting in _SETTINGS:
        with contextlib.suppress(FileNotFoundError):
            found = Path(setting.path).read_text("utf-8").split()
            if found != setting.value.split():
                raise NotInForceError(f"{setting.path} reads {' '.join(found)}")
    for kind, make, expected in _ATTEMPTS:
        made = make()
        # ENOSYS: the kernel has none of the kind.
        if made >= 0 or ctypes.get_errno() not in {expected, errno.ENOSYS}:
            answer = "can still be made" if made >= 0 else os.strerror(ctypes.get_errno())
            raise NotInForceError(f"a System V {kind}: {answer}")
    return "limits of 0 read back; no System V object can be made"
