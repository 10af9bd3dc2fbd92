"""POSIX message queues that attackers left in the host's IPC namespace, and their removal.

Landlock refuses to open a queue only after the kernel has made it, so an attacker may leave one
behind that it never held.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from tests.escape import native

_PREFIX: Final = "sandboxd-escape-own-"
_MOUNTED: Final = Path("/dev/mqueue")
#: Process ids to try where no directory lists the queues.
_HIGHEST_PID: Final = 1 << 16


def name_of(pid: int) -> bytes:
    """Name of the queue that the attacker with this process id makes."""
    return f"{_PREFIX}{pid}".encode()


def remove_of(pid: int) -> None:
    """Remove the queue of an attacker that has ended, if there is one."""
    name, keep = native.text(name_of(pid))
    with contextlib.suppress(OSError):
        native.call("mq_unlink", name)
    del keep


def sweep() -> None:
    """Remove the queues of all attackers that no longer live."""
    for pid in candidates():
        if not os.path.exists(f"/proc/{pid}"):
            remove_of(pid)


def candidates() -> list[int]:
    """Process ids whose attackers may have left a queue."""
    try:
        names = os.listdir(_MOUNTED)
    except OSError:
        names = []
    found = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    if os.path.ismount(_MOUNTED):
        return [int(number) for number in found if number.isdecimal()]
    highest = int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))
    return list(range(1, min(highest, _HIGHEST_PID)))
