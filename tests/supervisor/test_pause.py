"""Work that waits for calls to pause."""

from __future__ import annotations

import asyncio
import time

import pytest

from sandboxd.supervisor import pause as pause_module
from sandboxd.supervisor.pause import MAX_DELAY_S, Pause


async def test_work_is_done_once_when_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause_module, "MAX_DELAY_S", 60.0)
    done: list[float] = []
    pause = Pause(lambda: done.append(time.monotonic()), 0.3)
    for _ in range(3):
        pause.ask()
        asked_at = time.monotonic()
        await asyncio.sleep(0.001)
    while not done:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    assert done[0] >= asked_at + 0.29
    await asyncio.sleep(0.01)
    assert len(done) == 1


async def test_work_is_done_although_somebody_asks_all_the_time() -> None:
    done: list[float] = []
    pause = Pause(lambda: done.append(time.monotonic()), 0.01)
    began = time.monotonic()
    while not done and time.monotonic() < began + 5:
        pause.ask()
        await asyncio.sleep(0.0005)
    assert done
    assert done[0] - began >= MAX_DELAY_S * 0.9


async def test_it_can_be_asked_again_by_the_work_itself() -> None:
    done: list[int] = []

    def work() -> None:
        done.append(len(done))
        if len(done) < 3:
            pause.ask()

    pause = Pause(work, 0.0)
    pause.ask()
    await asyncio.sleep(0.02)
    assert done == [0, 1, 2]


async def test_what_was_asked_for_is_forgotten_at_the_end() -> None:
    done: list[int] = []
    pause = Pause(lambda: done.append(1), 0.0)
    pause.ask()
    pause.close()
    pause.close()
    await asyncio.sleep(0.005)
    assert not done
