"""The runner's life: the table is the only way from state to state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandboxd.supervisor.lifecycle import (
    TRANSITIONS,
    Event,
    IllegalTransition,
    State,
    advance,
    diagram,
)

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


class Life(RuleBasedStateMachine):
    """Any events in any order, as a confused caller or a lying runner could cause them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STARTING
        self.seen = [State.STARTING]
        self.bound = 0

    @rule(event=st.sampled_from(Event))
    def something_happens(self, event: Event) -> None:
        before = self.state
        if (before, event) in TRANSITIONS:
            self.state = advance(before, event)
            self.seen.append(self.state)
            self.bound += event in (Event.BIND, Event.LOAD)
            return
        with pytest.raises(IllegalTransition) as caught:
            self.state = advance(before, event)
        assert (caught.value.state, caught.value.event) == (before, event)
        assert before.value in str(caught.value)
        assert event.value in str(caught.value)
        assert self.state is before

    @invariant()
    def it_is_bound_at_most_once(self) -> None:
        assert self.bound <= 1

    @invariant()
    def no_call_runs_in_a_process_that_was_never_bound(self) -> None:
        if self.state in (State.BUSY, State.IDLE):
            assert self.bound == 1

    @invariant()
    def whoever_is_dying_only_gets_dead(self) -> None:
        if State.DYING in self.seen:
            after = self.seen[self.seen.index(State.DYING) :]
            assert after in ([State.DYING], [State.DYING, State.DEAD])

    @invariant()
    def nobody_comes_back_from_being_stopped(self) -> None:
        if State.STOPPING in self.seen:
            after = set(self.seen[self.seen.index(State.STOPPING) :])
            assert after <= {State.STOPPING, State.DYING, State.DEAD}


TestLife = Life.TestCase


def reachable(start: State) -> set[State]:
    found = {start}
    while True:
        more = {target for (state, _), target in TRANSITIONS.items() if state in found} | found
        if more == found:
            return found
        found = more


def test_every_state_is_reached_from_the_start() -> None:
    assert reachable(State.STARTING) == set(State)


def test_every_event_happens_in_some_state() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


@given(st.sampled_from([state for state in State if state is not State.DEAD]))
def test_every_living_state_can_end(state: State) -> None:
    assert State.DEAD in reachable(state)


@given(st.sampled_from(Event))
def test_dead_is_final(event: Event) -> None:
    with pytest.raises(IllegalTransition):
        advance(State.DEAD, event)


@given(st.sampled_from([state for state in State if state not in (State.DYING, State.DEAD)]))
def test_every_living_state_but_the_dying_can_be_killed(state: State) -> None:
    assert advance(state, Event.KILL) is State.DYING


def test_the_architecture_page_shows_the_diagram_of_the_table() -> None:
    if not ARCHITECTURE.exists():
        pytest.skip("docs/architecture.md is not written yet")
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", ARCHITECTURE.read_text(), re.M | re.S)
    assert diagram() in blocks
