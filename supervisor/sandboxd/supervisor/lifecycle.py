"""A runner's life as one table.

Every change of a runner's state is a look-up in `TRANSITIONS`. An event that the table does not
list for the current state raises `IllegalTransition` and changes nothing, so that a confused caller
or a lying runner cannot move a runner into a state that it never reached.

`diagram()` renders the table; docs/architecture.md holds its output and a test compares the two.
"""

from __future__ import annotations

import enum
from typing import Final


class _Member(enum.Enum):
    """A member by identity. The hash of `enum.Enum` is written in Python, and every call hashes."""

    __hash__ = object.__hash__


class State(_Member):
    """Where a runner is in its life."""

    STARTING = "starting"
    """Asked for or forked; not yet locked down."""
    SPARE = "spare"
    """Locked down; has seen no tenant's byte."""
    LOADING = "loading"
    """Loading a module ahead of its call."""
    BINDING = "binding"
    """Loading the module of its first call."""
    IDLE = "idle"
    """Bound to one (tenant, module, variant); waiting for a call."""
    BUSY = "busy"
    """Running a call."""
    STOPPING = "stopping"
    """Asked to interrupt its call; will be killed after the grace."""
    DYING = "dying"
    """Killed, or found dead; not yet reaped."""
    DEAD = "dead"
    """Reaped. Final."""


class Event(_Member):
    """What can happen to a runner."""

    READY = "ready"
    """It reported that its lock-down holds, and the supervisor holds its pidfd."""
    LOAD = "load"
    """It was handed a module, and no call yet."""
    BIND = "bind"
    """It was handed a module and the first call."""
    BOUND = "bound"
    """It reported that the module is loaded; it now runs the call, if it has one."""
    EXECUTE = "execute"
    """It was handed a call."""
    ANSWERED = "answered"
    """It answered the call, cleanly and in time."""
    STOP = "stop"
    """The call has to end: deadline, CPU budget, cancel, or client gone."""
    KILL = "kill"
    """It was sent SIGKILL, or it hung up."""
    EXITED = "exited"
    """The kernel confirmed that it is gone."""


class IllegalTransition(Exception):  # noqa: N818 - names the event, as the table does
    """An event that a runner in this state cannot have; nothing was changed.

    Attributes: state, event.
    """

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"a runner that is {state.value} cannot have the event {event.value}")
        self.state = state
        self.event = event


class _Table(dict[tuple[State, Event], State]):
    def __missing__(self, step: tuple[State, Event]) -> State:
        raise IllegalTransition(*step)


TRANSITIONS: Final = _Table(
    {
        (State.STARTING, Event.READY): State.SPARE,
        (State.STARTING, Event.KILL): State.DYING,
        (State.SPARE, Event.LOAD): State.LOADING,
        (State.SPARE, Event.BIND): State.BINDING,
        (State.SPARE, Event.KILL): State.DYING,
        (State.LOADING, Event.BOUND): State.IDLE,
        (State.LOADING, Event.KILL): State.DYING,
        (State.BINDING, Event.BOUND): State.BUSY,
        (State.BINDING, Event.STOP): State.STOPPING,
        (State.BINDING, Event.KILL): State.DYING,
        (State.IDLE, Event.EXECUTE): State.BUSY,
        (State.IDLE, Event.KILL): State.DYING,
        (State.BUSY, Event.ANSWERED): State.IDLE,
        (State.BUSY, Event.STOP): State.STOPPING,
        (State.BUSY, Event.KILL): State.DYING,
        (State.STOPPING, Event.KILL): State.DYING,
        (State.DYING, Event.EXITED): State.DEAD,
    }
)


def advance(state: State, event: Event) -> State:
    """Return the state after `event`; raise `IllegalTransition` if there is none."""
    return TRANSITIONS[state, event]


def diagram() -> str:
    """Return the table as a Mermaid state diagram, without a trailing newline."""
    lines = ["stateDiagram-v2", "    [*] --> starting"]
    lines += [
        f"    {state.value} --> {target.value}: {event.value}"
        for (state, event), target in TRANSITIONS.items()
    ]
    return "\n".join([*lines, "    dead --> [*]"])
