"""All layers in security order: what each is for, whether this host can do it, what to do if not.

A probe never touches its caller: it applies the layer to a forked child, verifies it there as the
lock-down does, and reports. So its answer is the one that a real child would get.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from sandboxd.runner.isolation import (
    cgroups,
    credentials,
    ipc,
    kernel,
    lockdown,
    memfd,
    namespaces,
    passing,
)
from sandboxd.runner.isolation.layers import (
    CGROUP,
    DAEMON_NON_DUMPABLE,
    EMPTY_ROOT,
    LANDLOCK,
    MDWE,
    MEMFD_NOEXEC,
    NAMESPACES,
    NO_IPC,
    NO_NEW_PRIVS,
    NO_PASSED_DESCRIPTORS,
    REASONS,
    REMEDIES,
    SECCOMP,
    SECCOMP_SEALED,
    ZYGOTE_CAPABILITIES,
    IsolationError,
    LayerState,
)
from sandboxd.runner.isolation.policy import SOCKET_FD, ChildPolicy

#: Who takes the layer: the supervisor, on its end of each child's socket; the zygote, for all
#: children; each child; a runner after it has loaded.
Taker = Literal["supervisor", "zygote", "child", "loaded runner"]
_PROBE_UID: Final = 65_533
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `hold` applies it to the calling process, for good, and verifies it."""

    name: str
    taker: Taker
    hold: Callable[[ChildPolicy], LayerState]

    @property
    def reason(self) -> str:
        """What it is for."""
        return REASONS[self.name]

    @property
    def remedy(self) -> str:
        """What an operator can do about it if it does not hold."""
        return REMEDIES[self.name]

    def probe(self) -> LayerState:
        """Can this host do it, for this user? Applies and verifies it in a forked child.

        To be called in a process with one thread, after libffi.find_writable_code(). Raises
        OSError if nothing can be forked.
        """
        states, end = _in_child(lambda policy: (self.hold(policy),))
        return states[0] if states else LayerState(self.name, active=False, detail=end)


def rehearse() -> list[LayerState]:
    """Which layers can a runner take here, those after loading included?

    All are taken in turn by one forked child, as a runner takes them, but none is required: so each
    one that does not hold is told. Under root the user id is required of every process; if it does
    not hold the last ones are not tried. The cgroup is left out, for nothing is joined. To be
    called as :meth:`Layer.probe`; raises what it does.
    """
    states, end = _in_child(_hold_all)
    told = {state.name for state in states}
    untold = [LayerState(one.name, False, end) for one in SEALING if one.name not in told]
    return [state for state in states if state.name != CGROUP] + untold


def _in_child(
    hold: Callable[[ChildPolicy], Iterable[LayerState]],
) -> tuple[list[LayerState], str]:
    """Return what a forked child held, and how it ended in words, if it did so without a report."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # Where a runner has its socket: a sealed child can write nowhere else.
        os.dup2(writing, SOCKET_FD)
        _report(hold, parent)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return [], f"the probe ended with {os.waitstatus_to_exitcode(status)}"
    states = [LayerState(*state) for state in json.loads(text)]
    return states, f"not tried: {states[-1].name} does not hold"


def _report(hold: Callable[[ChildPolicy], Iterable[LayerState]], parent: int) -> None:
    try:
        try:
            states = tuple(hold(_probe_policy(parent)))
        except IsolationError as error:
            states = (LayerState(error.layer, active=False, detail=error.cause),)
        told = [[state.name, state.active, state.detail] for state in states]
        os.write(SOCKET_FD, json.dumps(told).encode())
    finally:
        os._exit(0)


def _probe_policy(parent: int) -> ChildPolicy:
    return ChildPolicy(
        profile="runner",
        keep_fds=frozenset({SOCKET_FD}),
        uid=_PROBE_UID if os.geteuid() == 0 else 0,
        data_bytes=256 * _MIB,
        cpu_seconds=10,
        file_size_bytes=0,
        processes=1 << 22,
        parent_pid=parent,
        required=frozenset(),
    )


# -- how each is held ----------------------------------------------------------------------------


def _hold_memory(_policy: ChildPolicy) -> LayerState:
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    return credentials.verify_no_dumps(required=False)


def _hold_namespaces(_policy: ChildPolicy) -> LayerState:
    return namespaces.unshare(required=False)


def _in_namespaces(hold: Callable[[bool], LayerState]) -> Callable[[ChildPolicy], LayerState]:
    """Hold a layer as PID 1 of new namespaces; the process that enters them waits and ends."""

    def held(_policy: ChildPolicy) -> LayerState:
        namespaces.unshare(required=True)
        if first := os.fork():
            os.waitpid(first, 0)
            os._exit(0)
        return hold(False)

    return held


def _hold_socket(_policy: ChildPolicy) -> LayerState:
    return passing.hold()


def _hold_capabilities(_policy: ChildPolicy) -> LayerState:
    return credentials.limit_zygote(required=False)


def _find_cgroups(_policy: ChildPolicy) -> LayerState:
    # Nothing is joined: that would move the daemon.
    places, missing = cgroups.find_places()
    found = ", ".join(f"{place.directory} (v{place.version})" for place in places)
    return LayerState(CGROUP, active=not missing, detail=missing or f"can be made in {found}")


def _of_child(name: str) -> Callable[[ChildPolicy], LayerState]:
    # Landlock and seccomp stand on NO_NEW_PRIVS; no other layer needs another.
    names = {name, NO_NEW_PRIVS} if name in {LANDLOCK, SECCOMP} else {name}

    def held(policy: ChildPolicy) -> LayerState:
        states = lockdown.apply_layers(policy, frozenset(names))
        return next(state for state in states if state.name == name)

    return held


def _hold_all(policy: ChildPolicy) -> Iterable[LayerState]:
    return (*lockdown.lock_down(policy), *lockdown.seal_after_load(required=frozenset()))


def _after_load(name: str) -> Callable[[ChildPolicy], LayerState]:
    def held(policy: ChildPolicy) -> LayerState:
        states = _hold_all(policy)
        return next(state for state in states if state.name == name)

    return held


def _child_layers() -> tuple[Layer, ...]:
    names = dict.fromkeys(step.layer for step in lockdown.STEPS)
    return tuple(
        Layer(name, "child", _find_cgroups if name == CGROUP else _of_child(name)) for name in names
    )


#: What a runner takes after it has loaded its module.
SEALING: Final = (
    Layer(MDWE, "loaded runner", _after_load(MDWE)),
    Layer(SECCOMP_SEALED, "loaded runner", _after_load(SECCOMP_SEALED)),
)
#: What the supervisor takes; its zygote tells it whether the kernel can.
PASSING: Final = Layer(NO_PASSED_DESCRIPTORS, "supervisor", _hold_socket)
#: All, in the order in which they are taken.
LAYERS: Final = (
    PASSING,
    Layer(DAEMON_NON_DUMPABLE, "zygote", _hold_memory),
    Layer(NAMESPACES, "zygote", _hold_namespaces),
    Layer(NO_IPC, "zygote", _in_namespaces(ipc.forbidden)),
    Layer(MEMFD_NOEXEC, "zygote", _in_namespaces(memfd.refuse_executable)),
    Layer(EMPTY_ROOT, "zygote", _in_namespaces(namespaces.enter_empty_root)),
    Layer(ZYGOTE_CAPABILITIES, "zygote", _hold_capabilities),
    *_child_layers(),
    *SEALING,
)
