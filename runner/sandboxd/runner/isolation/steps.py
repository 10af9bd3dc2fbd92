"""The steps of a child's lock-down, in the order in which they must happen.

Each one is described in the parent, before the fork (see program.py for why), and taken by the
child: lockdown.py.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from sandboxd.runner.isolation import (
    credentials,
    descriptors,
    filters,
    kernel,
    landlock,
    libffi,
    limits,
    syscalls,
)
from sandboxd.runner.isolation.layers import (
    CAPABILITIES,
    CGROUP,
    DESCRIPTORS,
    LANDLOCK,
    LIBFFI_PAGE,
    NO_NEW_PRIVS,
    NON_DUMPABLE,
    PARENT_DEATH,
    RLIMITS,
    SECCOMP,
    SESSION,
    UID,
    NotInForceError,
)
from sandboxd.runner.isolation.policy import ChildPolicy
from sandboxd.runner.isolation.program import OWN_PID, SCRATCH, Check, Work, call, prctl

_SIGKILL: Final = 9
_signal, _SIGNAL = SCRATCH.take(4)


def _start_session(_policy: ChildPolicy) -> Work:
    # EPERM: it leads one already. The verification tells.
    return Work((call("setsid", expected=(OWN_PID, -errno.EPERM)),))


def _verify_session(_policy: ChildPolicy) -> Work:
    wrong = "the child does not lead a session of its own"
    calls = (call(name, expected=(OWN_PID,), wrong=wrong) for name in ("getsid", "getpgid"))
    return Work(tuple(calls), detail="leads a session of its own, without a terminal")


def _join_cgroup(policy: ChildPolicy) -> Work:
    if isinstance(policy.cgroup, str):
        raise NotInForceError(policy.cgroup)
    return Work(act=policy.cgroup.join)


def _verify_cgroup(policy: ChildPolicy) -> Work:
    if isinstance(policy.cgroup, str):
        raise NotInForceError(policy.cgroup)
    return Work(act=policy.cgroup.verify_joined)


def _deny_dumps(_policy: ChildPolicy) -> Work:
    return Work((prctl(kernel.PR_SET_DUMPABLE, 0),))


def _verify_no_dumps(_policy: ChildPolicy) -> Work:
    get = prctl(kernel.PR_GET_DUMPABLE, wrong="PR_GET_DUMPABLE is not 0")
    return Work((get,), detail="PR_GET_DUMPABLE reads 0")


def _forgo_privileges(_policy: ChildPolicy) -> Work:
    return Work((prctl(kernel.PR_SET_NO_NEW_PRIVS, 1),))


def _verify_no_privileges(_policy: ChildPolicy) -> Work:
    get = prctl(kernel.PR_GET_NO_NEW_PRIVS, expected=1, wrong="PR_GET_NO_NEW_PRIVS is not 1")
    return Work((get,), detail="PR_GET_NO_NEW_PRIVS reads 1")


def _die_with_parent(_policy: ChildPolicy) -> Work:
    return Work((prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL),))


def _verify_parent(policy: ChildPolicy) -> Work:
    # CAVEAT: a parent that died before the signal was armed sends none; then the child has
    # another parent by now.
    another = f"the parent is not {policy.parent_pid}"
    return Work(
        (
            prctl(kernel.PR_GET_PDEATHSIG, _signal),
            call("getppid", expected=(policy.parent_pid,), wrong=another),
        ),
        (Check(_SIGNAL, struct.pack("=i", _SIGKILL), lambda _: "PR_GET_PDEATHSIG is not SIGKILL"),),
        "SIGKILL when the parent dies",
    )


def _load_filter(policy: ChildPolicy) -> Work:
    return filters.load(filters.LOCKED[policy.profile])


def _verify_locked(policy: ChildPolicy) -> Work:
    detail = f"{policy.profile} filter answered its canary"
    return replace(filters.ask(syscalls.CANARY_LOCKED), detail=detail)


Description = Callable[[ChildPolicy], Work]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the lock-down: what it does, and how it is known to hold.

    Both describe it for a child of the calling process, and raise OSError, ValueError or
    NotInForceError if it cannot be done. `depends` are the fields of the policy that they look at.
    """

    layer: str
    apply: Description
    verify: Description
    depends: tuple[str, ...] = ()


_LIMITS: Final = (
    *("data_bytes", "cpu_seconds", "file_size_bytes", "processes"),
    *("keep_fds", "moved_fds"),
)
#: In security order. Capabilities take two steps, for leaving user id 0 needs some of them.
STEPS: Final = (
    Step(SESSION, _start_session, _verify_session),
    # Before the descriptors: it is joined through one that no child may keep.
    Step(CGROUP, _join_cgroup, _verify_cgroup, ("cgroup",)),
    Step(DESCRIPTORS, descriptors.close, descriptors.verify, ("keep_fds", "moved_fds")),
    Step(RLIMITS, limits.set_limits, limits.verify_limits, _LIMITS),
    Step(CAPABILITIES, credentials.bound, credentials.verify_bounded),
    Step(UID, credentials.change_ids, credentials.verify_ids, ("uid",)),
    Step(CAPABILITIES, credentials.clear_capabilities, credentials.verify_capabilities, ("uid",)),
    # After the ids: changing them sets this flag again and clears the parent-death signal.
    Step(NON_DUMPABLE, _deny_dumps, _verify_no_dumps),
    Step(NO_NEW_PRIVS, _forgo_privileges, _verify_no_privileges),
    Step(LANDLOCK, landlock.restrict, landlock.verify, ("parent_pid",)),
    Step(LIBFFI_PAGE, libffi.lock, libffi.verify, ("writable_code",)),
    Step(PARENT_DEATH, _die_with_parent, _verify_parent, ("parent_pid",)),
    # Last: it forbids what every other step needs.
    Step(SECCOMP, _load_filter, _verify_locked, ("profile",)),
)
LAYERS: Final = frozenset(step.layer for step in STEPS)
