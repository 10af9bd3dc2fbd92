"""Many alarms on one timer: each is called once, in order, on time, and never after `cancel`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor.alarms import Alarms

SOON_S = 0.01


@pytest.fixture
async def alarms() -> AsyncIterator[Alarms]:
    made = Alarms()
    yield made
    made.close()


async def ring(alarms: Alarms) -> None:
    """Wait until all that are set have been called."""
    async with asyncio.timeout(20):
        while len(alarms):  # noqa: ASYNC110 - a test waits for what it cannot hook into
            await asyncio.sleep(0.001)


async def test_alarms_are_called_in_the_order_of_their_time(alarms: Alarms) -> None:
    called: list[int] = []
    now = time.monotonic()
    for late in (3, 1, 2, 1):
        alarms.set(now + late * SOON_S, lambda late=late: called.append(late))  # type: ignore[misc]
    await ring(alarms)
    assert called == [1, 1, 2, 3]


async def test_an_alarm_is_not_called_before_its_time(alarms: Alarms) -> None:
    called_at: list[float] = []
    due_at = time.monotonic() + SOON_S
    alarms.set(due_at + 1000, lambda: called_at.append(0.0))
    alarms.set(due_at, lambda: called_at.append(time.monotonic()))
    async with asyncio.timeout(20):
        while not called_at:  # noqa: ASYNC110 - a test waits for what it cannot hook into
            await asyncio.sleep(0.001)
    assert called_at[0] >= due_at


async def test_an_alarm_that_is_due_already_is_called_in_the_next_turn(alarms: Alarms) -> None:
    called: list[str] = []
    alarms.set(time.monotonic() - 1, lambda: called.append("late"))
    assert called == []
    await ring(alarms)
    assert called == ["late"]


async def test_a_cancelled_alarm_is_not_called_and_cancelling_twice_is_once(alarms: Alarms) -> None:
    called: list[str] = []
    now = time.monotonic()
    cancelled = alarms.set(now + SOON_S, lambda: called.append("cancelled"))
    alarms.set(now + 2 * SOON_S, lambda: called.append("kept"))
    alarms.cancel(cancelled)
    alarms.cancel(cancelled)
    assert len(alarms) == 1
    await ring(alarms)
    assert called == ["kept"]


async def test_an_alarm_may_set_and_cancel_others(alarms: Alarms) -> None:
    called: list[str] = []
    now = time.monotonic()
    victim = alarms.set(now + 2 * SOON_S, lambda: called.append("victim"))

    def act() -> None:
        called.append("first")
        alarms.cancel(victim)
        alarms.set(time.monotonic(), lambda: called.append("child"))

    alarms.set(now + SOON_S, act)
    await ring(alarms)
    assert called == ["first", "child"]


async def test_one_that_fails_does_not_keep_others_from_being_called(
    alarms: Alarms, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    now = time.monotonic()
    alarms.set(now, fail)
    alarms.set(now, lambda: called.append("next"))
    with caplog.at_level(logging.CRITICAL):
        await ring(alarms)
    assert called == ["next"]


async def test_cancelled_alarms_do_not_pile_up(alarms: Alarms) -> None:
    far = time.monotonic() + 1000
    for _ in range(10_000):
        alarms.cancel(alarms.set(far, lambda: None))
    assert len(alarms) == 0
    assert len(alarms._heap) < 1000


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_exactly_those_not_cancelled_are_called(planned: list[tuple[int, bool]]) -> None:
    async def run() -> None:
        alarms = Alarms()
        called: list[int] = []
        now = time.monotonic()
        handles = [
            alarms.set(now + late / 10_000, lambda number=number: called.append(number))  # type: ignore[misc]
            for number, (late, _) in enumerate(planned)
        ]
        for handle, (_, cancel) in zip(handles, planned, strict=True):
            if cancel:
                alarms.cancel(handle)
        await ring(alarms)
        wanted = [number for number, (_, cancel) in enumerate(planned) if not cancel]
        assert sorted(called) == wanted
        assert [planned[number][0] for number in called] == sorted(
            planned[number][0] for number in called
        )

    asyncio.run(run())
