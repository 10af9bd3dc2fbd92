"""Who does much at once lets others go first."""

from __future__ import annotations

import asyncio
import time

from sandboxd.supervisor.pacer import Pacer


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def is_over(pacer: Pacer) -> bool:
    """It changes with time, which a type checker cannot know."""
    return pacer.over


async def test_a_turn_is_over_when_its_share_is_used_up() -> None:
    pacer = Pacer(0.005)
    assert not pacer.over
    work(0.006)
    assert is_over(pacer)
    await pacer.wait()
    assert not is_over(pacer)


async def test_all_get_their_turn_however_busy_the_loop_is() -> None:
    pacer = Pacer(0.0)
    done: list[int] = []

    async def one(number: int) -> None:
        while pacer.over and not await pacer.wait():
            pass
        done.append(number)

    await asyncio.wait_for(asyncio.gather(*map(one, range(100))), 20)
    assert sorted(done) == list(range(100))


async def test_one_that_is_cancelled_holds_up_nobody() -> None:
    pacer = Pacer(0.0)
    assert not pacer.over
    waiting = [asyncio.ensure_future(pacer.wait()) for _ in range(20)]
    await asyncio.sleep(0)
    for task in waiting[:19]:
        task.cancel()
    await asyncio.wait_for(waiting[19], 20)
