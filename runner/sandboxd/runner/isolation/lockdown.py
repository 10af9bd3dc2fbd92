"""Locking a child in: one list of named steps, in the order in which they must happen.

Each step is applied and then verified; a layer is active only if its verification passed. A
layer that the policy requires and that does not hold raises IsolationError: the caller must
then end the process. One that is not required comes back inactive, with the reason.

Everything that can be done before the fork is: filters are assembled once, and a Planner describes
each step in the parent (see program.py for why).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from sandboxd.runner.isolation import filters, kernel, syscalls
from sandboxd.runner.isolation.layers import (
    MDWE,
    REQUIRED_DEFAULT,
    SEAL_REQUIRED_DEFAULT,
    SECCOMP_SEALED,
    SINGLE_THREAD,
    IsolationError,
    LayerState,
    NotInForceError,
    refused,
)
from sandboxd.runner.isolation.policy import ChildPolicy, Profile
from sandboxd.runner.isolation.program import SCRATCH, Work, call, run
from sandboxd.runner.isolation.steps import LAYERS, STEPS, Step

__all__ = [
    "LAYERS",
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

_KNOWN_PLANS: Final = 1024


def _alone() -> Work:
    try:
        return Work((call("unshare", kernel.CLONE_VM),))
    except OSError:
        return Work()  # an unknown architecture: no layer holds on it


_ALONE: Final = _alone()


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
    run(filters.ask(syscalls.CANARY_LOCKED))
    run(filters.load(filters.SEALED[profile]))
    run(filters.ask(syscalls.CANARY_SEALED))
    return f"second {profile} filter answered its canary"
