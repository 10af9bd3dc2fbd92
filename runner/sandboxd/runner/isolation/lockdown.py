"""Locking a child in: one list of named steps, in the order in which they must happen.

Each step is applied and then verified; a layer is active only if its verification passed. A
layer that the policy requires and that does not hold raises IsolationError: the caller must
then end the process. One that is not required comes back inactive, with the reason.

Everything that can be done before the fork is: filters are assembled once, and a Planner describes
each step in the parent (see program.py for why).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

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
    CGROUP,
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
from sandboxd.runner.isolation.program import (
    OWN_PID,
    SCRATCH,
    Check,
    Work,
    call,
    pointer,
    prctl,
    run,
)

__all__ = [
    "REQUIRED_DEFAULT",
    "SEAL_REQUIRED_DEFAULT",
    "STEPS",
    "ChildPolicy",
    "IsolationError",
    "LayerState",
    "Plan",
    "Planner",
    "apply_layers",
    "lock_down",
    "seal_after_load",
]

_SIGKILL: Final = 9
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
_KNOWN_PLANS: Final = 1024
_signal, _SIGNAL = SCRATCH.take(4)


def _alone() -> Work:
    try:
        return Work((call("unshare", kernel.CLONE_VM),))
    except OSError:
        return Work()  # an unknown architecture: no layer holds on it


_ALONE: Final = _alone()


def _assembled(
    rows: tuple[syscalls.Row, ...], profile: Profile, default: int
) -> seccomp.Program | None:
    if kernel.MACHINE not in seccomp.AUDIT_ARCH:
        return None
    rules = syscalls.rules(rows, kernel.MACHINE, profile)
    return seccomp.assemble(kernel.MACHINE, rules, default)


_PROFILES: Final[tuple[Profile, ...]] = ("core", "runner", "files", "compiler")
_LOCKED: Final = {
    profile: _assembled(syscalls.ROWS, profile, seccomp.KILL_PROCESS) for profile in _PROFILES
}
_SEALED: Final = {
    "runner": _assembled(syscalls.SEALED_ROWS, "runner", seccomp.ALLOW),
    "core": _assembled(syscalls.SEALED_CORE_ROWS, "core", seccomp.ALLOW),
}


# -- steps ---------------------------------------------------------------------------------------


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


def _load(program: seccomp.Program | None) -> Work:
    """Load a filter, in which the process id is filled in at last."""
    if program is None:
        raise NotInForceError(f"no system call table for {kernel.MACHINE}")
    code, held = pointer(program.code)
    fprog, held_too = pointer(struct.pack("=H6xQ", len(program.code) // 8, code))
    load = call(
        "seccomp",
        *(_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, fprog),
        wrong="seccomp: another thread could not be bound",
    )
    view = memoryview(held).cast("B")
    places = tuple(view[offset : offset + 4] for offset in program.own_pid_offsets)
    return Work((load,), held=(held, held_too), own_pid=places)


def _ask(canary: int) -> Work:
    wrong = "the canary call was not answered by the filter"
    return Work((prctl(canary, expected=-syscalls.CANARY_ERRNO, wrong=wrong),))


def _load_filter(policy: ChildPolicy) -> Work:
    return _load(_LOCKED[policy.profile])


def _verify_locked(policy: ChildPolicy) -> Work:
    detail = f"{policy.profile} filter answered its canary"
    return replace(_ask(syscalls.CANARY_LOCKED), detail=detail)


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


# -- planning, before the fork -------------------------------------------------------------------


class _PlannedStep(NamedTuple):
    layer: str
    #: To be run one after the other, or why the step cannot be taken.
    works: tuple[Work, Work] | Exception
    required: bool


class Plan(NamedTuple):
    """The lock-down of one child, ready to be run by it."""

    steps: tuple[_PlannedStep, ...]
    #: The answer if every step does what its description says.
    expected: tuple[LayerState, ...]


class Planner:
    """Plans lock-downs for children of this process, and keeps what they have in common.

    What it describes depends on this process's limits and credentials as they are at the first
    plan: they must not change afterwards.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Work, Work] | Exception] = {}
        self._plans: dict[tuple[ChildPolicy, frozenset[str]], Plan] = {}

    def plan(self, policy: ChildPolicy, names: frozenset[str] = LAYERS) -> Plan:
        """Describe the named layers of one child; fails for none, only the child does."""
        plan = self._plans.get((policy, names))
        if plan is None:
            if len(self._plans) > _KNOWN_PLANS:
                self._plans.clear()
                self._known.clear()
            plan = self._plans[policy, names] = self._make(policy, names)
        return plan

    def _make(self, policy: ChildPolicy, names: frozenset[str]) -> Plan:
        steps = tuple(
            _PlannedStep(step.layer, self._describe(at, step, policy), policy.requires(step.layer))
            for at, step in enumerate(STEPS)
            if step.layer in names
        )
        done = [
            (step.layer, "" if isinstance(step.works, Exception) else step.works[1].detail)
            for step in steps
        ]
        return Plan(steps, _states([(layer, detail, True) for layer, detail in done]))

    def _describe(self, at: int, step: Step, policy: ChildPolicy) -> tuple[Work, Work] | Exception:
        key = (at, *(getattr(policy, name) for name in step.depends))
        works = self._known.get(key)
        if works is None:
            try:
                works = (step.apply(policy), step.verify(policy))
            except (OSError, ValueError, NotInForceError) as error:
                works = error
            self._known[key] = works
        return works


def _states(done: list[tuple[str, str, bool]]) -> tuple[LayerState, ...]:
    """One state per layer from (layer, detail, active) of each step."""
    states: dict[str, LayerState] = {}
    for layer, detail, active in done:
        before = states.get(layer)
        if before is None:
            states[layer] = LayerState(layer, active, detail)
        else:
            text = f"{before.detail}; {detail}"
            states[layer] = LayerState(layer, before.active and active, text)
    return tuple(states.values())


# -- locking down, after the fork ----------------------------------------------------------------


def lock_down(policy: ChildPolicy, plan: Plan | None = None) -> tuple[LayerState, ...]:
    """Lock this process in, for good; returns the state of every layer, in order.

    To be called first of all in a forked child that has one thread; with a plan that its parent
    made for this policy it costs a fraction. Raises IsolationError if a layer in policy.required
    does not hold or another thread is running: the process is then partly locked, has run nothing,
    and must exit. Afterwards there are no files, no new sockets and no new ctypes callbacks;
    socket objects must have been made before (making one asks for its address).
    """
    return _follow(plan or Planner().plan(policy))


def apply_layers(policy: ChildPolicy, names: frozenset[str]) -> tuple[LayerState, ...]:
    """Apply only the named layers, in security order: for self-checks that try one wall alone.

    Raises as lock_down() does, and ValueError for a name that is not a child's layer.
    """
    if unknown := names - LAYERS:
        raise ValueError(f"not layers of a child: {sorted(unknown)}")
    return _follow(Planner().plan(policy, names))


def _follow(plan: Plan) -> tuple[LayerState, ...]:
    _require_single_thread()
    SCRATCH.poison()
    as_expected = True
    done = []
    for layer, works, required in plan.steps:
        try:
            if isinstance(works, Exception):
                raise works
            apply, verify = works
            run(apply)
            detail = run(verify)
            as_expected = as_expected and detail is verify.detail
            done.append((layer, detail, True))
        except (OSError, ValueError, NotInForceError) as error:
            as_expected = False
            done.append((layer, refused(layer, error, required).detail, False))
    return plan.expected if as_expected else _states(done)


def _require_single_thread() -> None:
    # Landlock and credentials bind one thread: a second would stay outside. The kernel refuses
    # to unshare an address space that anybody else uses, and otherwise does nothing here.
    try:
        run(_ALONE)
    except OSError as error:
        raise IsolationError(SINGLE_THREAD, f"another thread is running: {error}") from error


# -- sealing -------------------------------------------------------------------------------------


def seal_after_load(
    required: frozenset[str] = SEAL_REQUIRED_DEFAULT, core: bool = False
) -> tuple[LayerState, ...]:
    """Forbid new code and incoming descriptors, on every thread of a locked-down runner.

    To be called after the module was loaded and before a guest runs. Afterwards no memory can be
    made executable, no message received, no file mapped, and no filter or prctl changed; only the
    descriptors that policy.py numbers can be read or written. With core, for a module that imports
    no WASI, the calls of input and output are gone, too. Returns the states of mdwe and
    seccomp-sealed; raises IsolationError if one in required does not hold.
    """
    profile: Profile = "core" if core else "runner"
    return (
        _seal(MDWE, _refuse_new_code, required),
        _seal(SECCOMP_SEALED, partial(_stack_second_filter, profile), required),
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


def _stack_second_filter(profile: Profile) -> str:
    # The first filter must be in force: the second alone allows what it does not name.
    run(_ask(syscalls.CANARY_LOCKED))
    run(_load(_SEALED[profile]))
    run(_ask(syscalls.CANARY_SEALED))
    return f"second {profile} filter answered its canary"
