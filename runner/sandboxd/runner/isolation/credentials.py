"""Giving up capabilities and the user id, and every way to get them back."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import (
    DAEMON_NON_DUMPABLE,
    ZYGOTE_CAPABILITIES,
    LayerState,
    NotInForceError,
    refused,
)
from sandboxd.runner.isolation.policy import ChildPolicy
from sandboxd.runner.isolation.program import SCRATCH, Check, Work, call, pointer, prctl

_CAP_KILL: Final = 5
_CAP_SETGID: Final = 6
_CAP_SETUID: Final = 7
_CAP_SETPCAP: Final = 8
#: What a zygote that is root keeps: SETUID and SETGID put a child into its slot, and without KILL
#: the parent-death signal would not reach it there.
_KEPT_BY_ROOT: Final = 1 << _CAP_KILL | 1 << _CAP_SETGID | 1 << _CAP_SETUID
#: linux/securebits.h: user id 0 means nothing on exec (NOROOT), no ambient capability can be
#: raised, and every securebit is locked. NO_SETUID_FIXUP is locked at 0, so that leaving user id
#: 0 clears the capabilities as well.
_SECUREBITS: Final = 0xEB


_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITY_BYTES: Final = 24
_header, _HEADER = pointer(struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0))
_empty, _EMPTY = pointer(bytes(_CAPABILITY_BYTES))
_sets, _SETS = SCRATCH.take(_CAPABILITY_BYTES)
_ids, _IDS = SCRATCH.take(24)


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


def limit_zygote(required: bool) -> LayerState:
    """Leave this process what forking into uid slots needs, for good: three capabilities as root,
    none otherwise.

    To be called by the zygote after it has entered its root. Bounding set and securebits are
    inherited by children, who need not pay for them again. Raises IsolationError if required, or
    returns the inactive state.
    """
    kept = _KEPT_BY_ROOT if os.geteuid() == 0 else 0
    try:
        bound_capabilities()
        # First: without CAP_SETPCAP nobody could make up for a set that is not empty.
        bounding = _verify_bounding(kept)
        kernel.set_capabilities(kept)
        held = kernel.capabilities()
        if held != (kept, kept, 0):
            raise NotInForceError(f"capabilities {held[0]:#x}, {held[1]:#x}, {held[2]:#x} are held")
    except (OSError, NotInForceError) as error:
        return refused(ZYGOTE_CAPABILITIES, error, required)
    names = "CAP_KILL, CAP_SETGID and CAP_SETUID" if kept else "no capability"
    detail = f"holds {names}; bounding set of {bounding}"
    return LayerState(ZYGOTE_CAPABILITIES, active=True, detail=detail)


def verify_no_dumps(required: bool) -> LayerState:
    """Check that this process is not dumpable, nor are those above it that it was forked from.

    Raises IsolationError if required, or returns the inactive state.
    """
    try:
        if value := kernel.prctl(kernel.PR_GET_DUMPABLE):
            raise NotInForceError(f"PR_GET_DUMPABLE reads {value}")
    except (OSError, NotInForceError) as error:
        return refused(DAEMON_NON_DUMPABLE, error, required)
    return LayerState(DAEMON_NON_DUMPABLE, active=True, detail="PR_GET_DUMPABLE reads 0")


def _verify_bounding(kept: int) -> int:
    """Return the size of the bounding set, which must be empty if capabilities are kept."""
    bounding = sum(_bounding())
    securebits = kernel.prctl(kernel.PR_GET_SECUREBITS)
    if kept and (bounding or securebits != _SECUREBITS):
        raise NotInForceError(f"bounding set of {bounding}, securebits {securebits:#x}")
    return bounding


def _bounding() -> Iterator[int]:
    for capability in range(LAST_CAPABILITY + 1):
        yield kernel.prctl(kernel.PR_CAPBSET_READ, capability)


def _may_bound() -> bool:
    return bool(kernel.capabilities()[0] >> _CAP_SETPCAP & 1)


def bound_capabilities() -> None:
    """Empty the bounding and ambient sets and lock the securebits of this process.

    Children inherit all three, and none can grow again. A process without CAP_SETPCAP cannot
    shrink its bounding set. It has no capability to keep either, and NO_NEW_PRIVS makes the set
    unreachable.
    """
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    if not _may_bound():
        return
    for capability, held in enumerate(_bounding()):
        if held:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    kernel.prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS)


# -- what a child does -----------------------------------------------------------------------------


def bound(_policy: ChildPolicy) -> Work:
    """Empty the bounding and ambient sets and lock the securebits, as far as they are not."""
    calls = [prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)]
    if _may_bound():
        held = [capability for capability, bit in enumerate(_bounding()) if bit]
        calls += [prctl(kernel.PR_CAPBSET_DROP, capability) for capability in held]
        calls.append(prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS))
    return Work(tuple(calls))


def verify_bounded(_policy: ChildPolicy) -> Work:
    """Read bounding set and securebits back.

    What was empty and locked in the process that describes this is so in every child of it: a
    bounding set is inherited, and can only shrink.
    """
    securebits = prctl(
        kernel.PR_GET_SECUREBITS,
        expected=_SECUREBITS,
        wrong="the securebits are not locked",
    )
    held = [capability for capability, bit in enumerate(_bounding()) if bit]
    if not held and kernel.prctl(kernel.PR_GET_SECUREBITS) == _SECUREBITS:
        return Work((securebits,), detail="bounding set empty, securebits locked")
    if not _may_bound():
        return Work(detail=f"bounding set of {len(held)} unreachable without CAP_SETPCAP")
    reads = (
        prctl(kernel.PR_CAPBSET_READ, number, wrong=f"capability {number} is in the bounding set")
        for number in held
    )
    return Work((*reads, securebits), detail="bounding set empty, securebits locked")


def change_ids(policy: ChildPolicy) -> Work:
    """Take the user and group id of the policy, without supplementary groups.

    Raises NotInForceError if that cannot be: root must give an id, and nobody else can.
    """
    if policy.uid == 0:
        if os.geteuid() == 0:
            raise NotInForceError("the child would keep user id 0")
        raise NotInForceError(f"shares user {os.geteuid()} with its siblings and the daemon")
    if os.geteuid() != 0:
        raise NotInForceError(f"user id {os.geteuid()} cannot change to {policy.uid}")
    # A process with one thread, which is verified, needs no word to its others.
    return Work(
        (
            call("setgroups"),
            call("setresgid", policy.uid, policy.uid, policy.uid),
            call("setresuid", policy.uid, policy.uid, policy.uid),
        )
    )


def verify_ids(policy: ChildPolicy) -> Work:
    """Check the ids and that user id 0 cannot be taken back."""
    detail = f"took user and group {policy.uid}, no supplementary groups"
    ids = (policy.uid,) * 3
    return _verify_never_root(ids, ids, 0, detail)


def _verify_never_root(
    users: tuple[int, ...], groups: tuple[int, ...], supplementary: int, detail: str
) -> Work:
    # EINVAL: user id 0 does not exist in this user namespace.
    take_back = call(
        "setresuid",
        expected=(-errno.EPERM, -errno.EINVAL),
        wrong="user id 0 could be taken back",
    )
    wrong = f"the process is not left with {supplementary} supplementary groups"
    return Work(
        (
            call("getresuid", _ids, _ids + 4, _ids + 8),
            call("getresgid", _ids + 12, _ids + 16, _ids + 20),
            call("getgroups", expected=(supplementary,), wrong=wrong),
            take_back,
        ),
        (Check(_IDS, struct.pack("=6I", *users, *groups), _say_ids),),
        detail,
    )


def _say_ids(answer: bytes) -> str:
    ids = struct.unpack("=6I", answer)
    return f"user ids {ids[:3]}, group ids {ids[3:]}"


def clear_capabilities(_policy: ChildPolicy) -> Work:
    """Empty the effective, permitted and inheritable sets."""
    return Work((call("capset", _header, _empty),))


def verify_capabilities(policy: ChildPolicy) -> Work:
    """Check that no set holds a capability: the ambient set is part of the permitted one.

    A child that keeps its user id is checked here not to be root, and unable to become it: it does
    not have the layer that checks it for the others.
    """
    empty = Work(
        (call("capget", _header, _sets),),
        (Check(_SETS, bytes(_CAPABILITY_BYTES), _say_sets),),
        "effective, permitted, inheritable and ambient sets empty",
    )
    if policy.uid != 0:
        return empty
    users, groups = os.getresuid(), os.getresgid()
    if len(set(users)) != 1 or len(set(groups)) != 1 or 0 in users:
        raise NotInForceError(f"user ids {users}, group ids {groups}")
    detail = f"user {users[0]} cannot become root"
    kept = _verify_never_root(users, groups, len(os.getgroups()), detail)
    return Work(
        (*empty.calls, *kept.calls), (*empty.checks, *kept.checks), f"{empty.detail}; {detail}"
    )


def _say_sets(answer: bytes) -> str:
    low, high = answer[:12], answer[12:]
    words = zip(struct.unpack("=3I", low), struct.unpack("=3I", high), strict=True)
    return f"capabilities are left: {[hex(one | two << 32) for one, two in words]}"
