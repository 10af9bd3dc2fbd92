"""Giving up capabilities and the user id, and every way to get them back."""

from __future__ import annotations

import errno
import os
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.policy import ChildPolicy

_CAP_SETPCAP: Final = 8
#: linux/securebits.h: user id 0 means nothing on exec (NOROOT), no ambient capability can be
#: raised, and every securebit is locked. NO_SETUID_FIXUP is locked at 0, so that leaving user id
#: 0 clears the capabilities as well.
_SECUREBITS: Final = 0xEB


def _last_capability() -> int:
    capability = 0
    try:
        while kernel.prctl(kernel.PR_CAPBSET_READ, capability) >= 0:
            capability += 1
    except OSError:
        return capability - 1
    return capability - 1


#: Highest capability that the running kernel knows.
LAST_CAPABILITY: Final = _last_capability()


def _may_bound() -> bool:
    return bool(kernel.capabilities()[0] >> _CAP_SETPCAP & 1)


def bound_capabilities(_policy: ChildPolicy | None = None) -> None:
    """Empty the bounding and ambient sets and lock the securebits.

    Children inherit all three: a parent that has done this once, and keeps the capabilities that
    it holds, saves each of them 40 copies of its credentials. A process without CAP_SETPCAP
    cannot shrink its bounding set. It has no capability to keep either, and NO_NEW_PRIVS makes
    the set unreachable.
    """
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    if not _may_bound():
        return
    for capability in range(LAST_CAPABILITY + 1):
        if kernel.prctl(kernel.PR_CAPBSET_READ, capability):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    kernel.prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS)


def verify_bounded(_policy: ChildPolicy) -> str:
    """Check the bounding set and the securebits; return what was checked."""
    bounding = sum(
        kernel.prctl(kernel.PR_CAPBSET_READ, capability)
        for capability in range(LAST_CAPABILITY + 1)
    )
    if not _may_bound():
        return f"bounding set of {bounding} unreachable without CAP_SETPCAP"
    securebits = kernel.prctl(kernel.PR_GET_SECUREBITS)
    if bounding or securebits != _SECUREBITS:
        raise NotInForceError(f"bounding set of {bounding}, securebits {securebits:#x}")
    return "bounding set empty, securebits locked"


def change_ids(policy: ChildPolicy) -> None:
    """Take the user and group id of the policy, without supplementary groups."""
    if policy.uid == 0:
        if os.geteuid() == 0:
            raise NotInForceError("the child would keep user id 0")
        return
    if os.geteuid() != 0:
        raise NotInForceError(f"user id {os.geteuid()} cannot change to {policy.uid}")
    os.setgroups(())
    os.setresgid(policy.uid, policy.uid, policy.uid)
    os.setresuid(policy.uid, policy.uid, policy.uid)


def verify_ids(policy: ChildPolicy) -> str:
    """Check the ids and that user id 0 cannot be taken back; return what was checked."""
    users, groups, supplementary = os.getresuid(), os.getresgid(), os.getgroups()
    if policy.uid == 0:
        detail = f"runs as user {users[0]}, {len(supplementary)} supplementary groups"
        if len(set(users)) != 1 or len(set(groups)) != 1 or 0 in users:
            raise NotInForceError(f"user ids {users}, group ids {groups}")
    else:
        detail = f"took user and group {policy.uid}, no supplementary groups"
        if set(users + groups) != {policy.uid} or supplementary:
            raise NotInForceError(f"user ids {users}, group ids {groups} and {supplementary}")
    try:
        os.setresuid(0, 0, 0)
    except OSError as error:
        # EINVAL: user id 0 does not exist in this user namespace.
        if error.errno not in {errno.EPERM, errno.EINVAL}:
            raise
    else:
        raise NotInForceError("user id 0 could be taken back")
    return detail


def clear_capabilities(_policy: ChildPolicy) -> None:
    """Empty the effective, permitted and inheritable sets."""
    kernel.clear_capabilities()


def verify_capabilities(_policy: ChildPolicy) -> str:
    """Check that no set holds a capability; return what was checked."""
    if any(kernel.capabilities()):
        raise NotInForceError("capabilities are left: " + str(kernel.capabilities()))
    ambient = sum(
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_IS_SET, capability)
        for capability in range(LAST_CAPABILITY + 1)
    )
    if ambient:
        raise NotInForceError(f"{ambient} ambient capabilities are left")
    return "effective, permitted, inheritable and ambient sets empty"
