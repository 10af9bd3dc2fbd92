"""Runs a command on a host that can take away user namespaces while the command runs.

`python shrinking_host.py FILE COMMAND...` enters a user namespace, as an ordinary user of it,
leaves a process behind, and execs the command. FILE gets that process's id. On SIGUSR1 it forbids
new user namespaces there, and ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_INNER_ID = 1001
_LIFE_S = 300


def enter() -> None:
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        sys.exit(f"no user namespace: {os.strerror(ctypes.get_errno())}")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_INNER_ID} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_INNER_ID} {group} 1")


def wait_and_shrink(ready: int) -> None:
    signal.alarm(_LIFE_S)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.write(ready, b"!")
    os.close(ready)
    signal.sigwait({signal.SIGUSR1})
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main() -> None:
    enter()
    reading, writing = os.pipe()
    if (middle := os.fork()) == 0:
        # Twice: it must be no child of the command's.
        controller = os.fork()
        if controller == 0:
            try:
                wait_and_shrink(writing)
            finally:
                os._exit(0)
        Path(sys.argv[1]).write_text(str(controller))
        os._exit(0)
    os.close(writing)
    os.waitpid(middle, 0)
    os.read(reading, 1)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
