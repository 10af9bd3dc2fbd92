"""Locking a child in: one list of named steps, in the order in which they must happen.

Each step is applied and then verified; a layer is active only if its verification passed. A
layer that the policy requires and that does not hold raises IsolationError: the caller must
then end the process. One that is not required comes back inactive, with the reason.

Everything that does not depend on the child is computed when this module is imported, in the
parent: filters are assembled once and inherited by fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.isolation import (
    credentials,
    descriptors,
    kernel,
    landlock,
    libffi,
    limits,
    seccomp,
    syscalls,
)
from sandboxd.runner.isolation.layers import (
    CAPABILITIES,
    DESCRIPTORS,
    LANDLOCK,
    LIBFFI_PAGE,
    MDWE,
    NO_NEW_PRIVS,
    NON_DUMPABLE,
    PARENT_DEATH,
    REQUIRED_DEFAULT,
    RLIMITS,
    SEAL_REQUIRED_DEFAULT,
    SECCOMP,
    SECCOMP_SEALED,
    SESSION,
    SINGLE_THREAD,
    UID,
    IsolationError,
    LayerState,
    NotInForceError,
    refused,
)
from sandboxd.runner.isolation.policy import ChildPolicy, Profile

__all__ = [
    "REQUIRED_DEFAULT",
    "SEAL_REQUIRED_DEFAULT",
    "STEPS",
    "ChildPolicy",
    "IsolationError",
    "LayerState",
    "apply_layers",
    "lock_down",
    "seal_after_load",
]

_SIGKILL: Final = 9


def _assembled(
    rows: tuple[syscalls.Row, ...], profile: Profile, default: int
) -> seccomp.Program | None:
    if kernel.MACHINE not in seccomp.AUDIT_ARCH:
        return None
    rules = syscalls.rules(rows, kernel.MACHINE, profile)
    return seccomp.assemble(kernel.MACHINE, rules, default)


_LOCKED: Final = {
    "runner": _assembled(syscalls.ROWS, "runner", seccomp.KILL_PROCESS),
    "compiler": _assembled(syscalls.ROWS, "compiler", seccomp.KILL_PROCESS),
}
_SEALED: Final = _assembled(syscalls.SEALED_ROWS, "runner", seccomp.ALLOW)


# -- steps ---------------------------------------------------------------------------------------


def _close_descriptors(policy: ChildPolicy) -> None:
    descriptors.close_all_but(policy.keep_fds)


def _verify_descriptors(policy: ChildPolicy) -> str:
    return descriptors.verify_closed(policy.keep_fds)


def _start_session(_policy: ChildPolicy) -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()


def _verify_session(_policy: ChildPolicy) -> str:
    if not os.getsid(0) == os.getpgid(0) == os.getpid():
        raise NotInForceError("the child does not lead a session of its own")
    return "leads a session of its own, without a terminal"


def _deny_dumps(_policy: ChildPolicy) -> None:
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _verify_no_dumps(_policy: ChildPolicy) -> str:
    if kernel.prctl(kernel.PR_GET_DUMPABLE) != 0:
        raise NotInForceError("PR_GET_DUMPABLE is not 0")
    return "PR_GET_DUMPABLE reads 0"


def _forgo_privileges(_policy: ChildPolicy) -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _verify_no_privileges(_policy: ChildPolicy) -> str:
    if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) != 1:
        raise NotInForceError("PR_GET_NO_NEW_PRIVS is not 1")
    return "PR_GET_NO_NEW_PRIVS reads 1"


def _restrict_files(policy: ChildPolicy) -> None:
    landlock.restrict(policy.parent_pid)


def _verify_files(policy: ChildPolicy) -> str:
    return landlock.verify_restricted(policy.parent_pid)


def _lock_code_page(policy: ChildPolicy) -> None:
    libffi.lock_pages(policy.writable_code)


def _verify_code_page(policy: ChildPolicy) -> str:
    return libffi.verify_locked(policy.writable_code)


def _die_with_parent(_policy: ChildPolicy) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)


def _verify_parent(policy: ChildPolicy) -> str:
    if kernel.parent_death_signal() != _SIGKILL:
        raise NotInForceError("PR_GET_PDEATHSIG is not SIGKILL")
    # CAVEAT: a parent that died before the signal was armed sends none; then the child has
    # another parent by now.
    parent = os.getppid()
    if parent != policy.parent_pid:
        raise NotInForceError(f"the parent is {parent}, not {policy.parent_pid}")
    return "SIGKILL when the parent dies"


def _load(program: seccomp.Program | None) -> None:
    if program is None:
        raise NotInForceError(f"no system call table for {kernel.MACHINE}")
    kernel.load_filter(program.for_process(os.getpid()))


def _verify_filter(canary: int) -> None:
    try:
        kernel.prctl(canary)
    except OSError as error:
        if error.errno == syscalls.CANARY_ERRNO:
            return
    raise NotInForceError("the canary call was not answered by the filter")


def _load_filter(policy: ChildPolicy) -> None:
    _load(_LOCKED[policy.profile])


def _verify_locked(policy: ChildPolicy) -> str:
    _verify_filter(syscalls.CANARY_LOCKED)
    return f"{policy.profile} filter answered its canary"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the lock-down: what it does, and how it is known to hold.

    Both raise OSError, ValueError or NotInForceError if the layer does not hold; verify returns
    what it checked, for people.
    """

    layer: str
    apply: Callable[[ChildPolicy], None]
    verify: Callable[[ChildPolicy], str]


#: In security order. Capabilities take two steps, for leaving user id 0 needs some of them.
STEPS: Final = (
    Step(DESCRIPTORS, _close_descriptors, _verify_descriptors),
    Step(SESSION, _start_session, _verify_session),
    Step(RLIMITS, limits.set_limits, limits.verify_limits),
    Step(CAPABILITIES, credentials.bound_capabilities, credentials.verify_bounded),
    Step(UID, credentials.change_ids, credentials.verify_ids),
    Step(CAPABILITIES, credentials.clear_capabilities, credentials.verify_capabilities),
    # After the ids: changing them sets this flag again and clears the parent-death signal.
    Step(NON_DUMPABLE, _deny_dumps, _verify_no_dumps),
    Step(NO_NEW_PRIVS, _forgo_privileges, _verify_no_privileges),
    Step(LANDLOCK, _restrict_files, _verify_files),
    Step(LIBFFI_PAGE, _lock_code_page, _verify_code_page),
    Step(PARENT_DEATH, _die_with_parent, _verify_parent),
    # Last: it forbids what every other step needs.
    Step(SECCOMP, _load_filter, _verify_locked),
)
LAYERS: Final = frozenset(step.layer for step in STEPS)


def lock_down(policy: ChildPolicy) -> tuple[LayerState, ...]:
    """Lock this process in, for good; returns the state of every layer, in order.

    To be called first of all in a forked child that has one thread. Raises IsolationError if a
    layer in policy.required does not hold or another thread is running: the process is then
    partly locked, has run nothing, and must exit. Afterwards there are no files, no new sockets
    and no new ctypes callbacks; socket objects must have been made before (making one asks for
    its address).
    """
    return apply_layers(policy, LAYERS)


def apply_layers(policy: ChildPolicy, names: frozenset[str]) -> tuple[LayerState, ...]:
    """Apply only the named layers, in security order: for self-checks that try one wall alone.

    Raises as lock_down() does, and ValueError for a name that is not a child's layer.
    """
    if unknown := names - LAYERS:
        raise ValueError(f"not layers of a child: {sorted(unknown)}")
    _require_single_thread()
    states: dict[str, LayerState] = {}
    for step in STEPS:
        if step.layer not in names:
            continue
        state = _take(step, policy)
        before = states.get(step.layer)
        if before is not None:
            active = before.active and state.active
            state = LayerState(step.layer, active, f"{before.detail}; {state.detail}")
        states[step.layer] = state
    return tuple(states.values())


def _require_single_thread() -> None:
    # Landlock and credentials bind one thread: a second would stay outside. The kernel refuses
    # to unshare an address space that anybody else uses, and otherwise does nothing here.
    try:
        kernel.unshare(kernel.CLONE_VM)
    except OSError as error:
        raise IsolationError(SINGLE_THREAD, f"another thread is running: {error}") from error


def _take(step: Step, policy: ChildPolicy) -> LayerState:
    try:
        step.apply(policy)
        return LayerState(step.layer, active=True, detail=step.verify(policy))
    except (OSError, ValueError, NotInForceError) as error:
        return refused(step.layer, error, required=step.layer in policy.required)


# -- sealing -------------------------------------------------------------------------------------


def seal_after_load(
    required: frozenset[str] = SEAL_REQUIRED_DEFAULT,
) -> tuple[LayerState, ...]:
    """Forbid new code and incoming descriptors, on every thread of a locked-down runner.

    To be called after the module was loaded and before a guest runs. Afterwards no memory can be
    made executable, no message received, and no filter or prctl changed. Returns the states of
    mdwe and seccomp-sealed; raises IsolationError if one in required does not hold.
    """
    return (
        _seal(MDWE, _refuse_new_code, required),
        _seal(SECCOMP_SEALED, _stack_second_filter, required),
    )


def _seal(layer: str, step: Callable[[], str], required: frozenset[str]) -> LayerState:
    try:
        return LayerState(layer, active=True, detail=step())
    except (OSError, ValueError, NotInForceError) as error:
        return refused(layer, error, required=layer in required)


def _refuse_new_code() -> str:
    kernel.prctl(kernel.PR_SET_MDWE, kernel.PR_MDWE_REFUSE_EXEC_GAIN)
    if kernel.prctl(kernel.PR_GET_MDWE) != kernel.PR_MDWE_REFUSE_EXEC_GAIN:
        raise NotInForceError("PR_GET_MDWE does not read back")
    return "PR_GET_MDWE reads 1"


def _stack_second_filter() -> str:
    # The first filter must be in force: the second alone allows what it does not name.
    _verify_filter(syscalls.CANARY_LOCKED)
    _load(_SEALED)
    _verify_filter(syscalls.CANARY_SEALED)
    return "second filter answered its canary"
