"""The two seccomp filters of a child: assembled once, loaded after the fork, asked to answer.

The first one, `LOCKED`, is the last step of the lock-down; `SEALED` is stacked on it after a runner
has loaded its module. What they allow is a table: see syscalls.py.
"""

from __future__ import annotations

import struct
from typing import Final

from sandboxd.runner.isolation import kernel, seccomp, syscalls
from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.policy import Profile
from sandboxd.runner.isolation.program import Work, call, pointer, prctl

_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1


def assembled(
    rows: tuple[syscalls.Row, ...], profile: Profile, default: int
) -> seccomp.Program | None:
    """Make the filter of a profile; None if there is no table for this machine."""
    if kernel.MACHINE not in seccomp.AUDIT_ARCH:
        return None
    rules = syscalls.rules(rows, kernel.MACHINE, profile)
    return seccomp.assemble(kernel.MACHINE, rules, default)


_PROFILES: Final[tuple[Profile, ...]] = ("core", "runner", "files", "compiler")
#: The first filter of each profile.
LOCKED: Final = {
    profile: assembled(syscalls.ROWS, profile, seccomp.KILL_PROCESS) for profile in _PROFILES
}
#: The second one, of runners with WASI and without.
SEALED: Final = {
    "runner": assembled(syscalls.SEALED_ROWS, "runner", seccomp.ALLOW),
    "core": assembled(syscalls.SEALED_CORE_ROWS, "core", seccomp.ALLOW),
}


def load(program: seccomp.Program | None) -> Work:
    """Load a filter, in which the process id is filled in at last."""
    if program is None:
        raise NotInForceError(f"no system call table for {kernel.MACHINE}")
    code, held = pointer(program.code)
    fprog, held_too = pointer(struct.pack("=H6xQ", len(program.code) // 8, code))
    loading = call(
        "seccomp",
        *(_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, fprog),
        wrong="seccomp: another thread could not be bound",
    )
    view = memoryview(held).cast("B")
    places = tuple(view[offset : offset + 4] for offset in program.own_pid_offsets)
    return Work((loading,), held=(held, held_too), own_pid=places)


def ask(canary: int) -> Work:
    """Make the call that the filter of this canary answers, and no kernel does."""
    wrong = "the canary call was not answered by the filter"
    return Work((prctl(canary, expected=-syscalls.CANARY_ERRNO, wrong=wrong),))
