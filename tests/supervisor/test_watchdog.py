"""The one clock: why it fires, whom it interrupts, and that it kills after the grace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from sandboxd.supervisor.alarms import Alarms
from sandboxd.supervisor.runner import Runner
from sandboxd.supervisor.watchdog import StopReason, Watchdog

LONG_S = 1000.0
LONG_NS = 10**15
GRACE_S = 0.02


class FakeRunner:
    """A runner that notes what the clock does to it."""

    def __init__(self) -> None:
        self.child = self
        self.breach = ""
        self.is_running = True
        self.acts: list[str] = []
        self.cpu_clock: Callable[[], int] = lambda: 0

    def cpu_time_ns(self) -> int:
        return self.cpu_clock()

    def interrupt(self) -> None:
        assert self.is_running
        self.is_running = False
        self.acts.append("interrupt")

    def kill(self) -> None:
        self.acts.append("kill")


def watch(
    runner: FakeRunner,
    deadline_in_s: float = LONG_S,
    cpu_limit_ns: int = LONG_NS,
    base_cpu_ns: int = 0,
    grace_s: float = GRACE_S,
) -> Watchdog:
    now = asyncio.get_running_loop().time()
    return Watchdog(
        Alarms(),
        cast(Runner, runner),
        now,
        now + deadline_in_s,
        cpu_limit_ns,
        base_cpu_ns,
        grace_s,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a test waits for what it cannot hook into
            await asyncio.sleep(0.001)


async def test_at_the_deadline_it_interrupts_and_after_the_grace_it_kills() -> None:
    runner = FakeRunner()
    watchdog = watch(runner, deadline_in_s=0.05)
    due_at = watchdog.due_at
    await until(lambda: bool(runner.acts))
    now = asyncio.get_running_loop().time()
    assert now >= due_at
    assert watchdog.reason is StopReason.DEADLINE
    await until(lambda: len(runner.acts) == 2)
    assert runner.acts == ["interrupt", "kill"]
    assert asyncio.get_running_loop().time() >= due_at + GRACE_S - 0.001
    assert watchdog.killed
    assert watchdog.due_at == due_at


async def test_a_call_that_ends_in_time_is_left_alone() -> None:
    runner = FakeRunner()
    watchdog = watch(runner, deadline_in_s=0.03)
    watchdog.disarm()
    await asyncio.sleep(0.08)
    assert runner.acts == []
    assert watchdog.reason is None


async def test_an_answer_within_the_grace_spares_the_kill() -> None:
    runner = FakeRunner()
    watchdog = watch(runner, grace_s=0.03)
    watchdog.stop(StopReason.CANCELLED)
    watchdog.disarm()
    await asyncio.sleep(0.08)
    assert runner.acts == ["interrupt"]
    assert not watchdog.killed


async def test_a_deadline_in_the_past_fires_at_once() -> None:
    runner = FakeRunner()
    watchdog = watch(runner, deadline_in_s=-1.0)
    await until(lambda: len(runner.acts) == 2)
    assert watchdog.reason is StopReason.DEADLINE


async def test_used_up_cpu_time_stops_the_call_long_before_the_deadline() -> None:
    runner = FakeRunner()
    started = time.monotonic_ns()
    # It had used 5 s before this call, and burns two clocks at once from now on.
    base = 5_000_000_000
    runner.cpu_clock = lambda: base + 2 * (time.monotonic_ns() - started)
    watchdog = watch(runner, cpu_limit_ns=60_000_000, base_cpu_ns=base)
    await until(lambda: bool(runner.acts))
    assert watchdog.reason is StopReason.CPU_TIME
    assert runner.cpu_time_ns() - base >= 60_000_000
    watchdog.disarm()


async def test_a_process_that_sleeps_is_not_looked_at_more_often_than_its_budget_needs() -> None:
    runner = FakeRunner()
    looks = 0

    def clock() -> int:
        nonlocal looks
        looks += 1
        return 0

    runner.cpu_clock = clock
    watchdog = watch(runner, cpu_limit_ns=1_000_000_000)
    await asyncio.sleep(0.1)
    assert looks <= 1
    assert runner.acts == []
    watchdog.disarm()


async def test_it_stops_a_call_for_one_reason_only() -> None:
    runner = FakeRunner()
    watchdog = watch(runner)
    watchdog.stop(StopReason.CANCELLED)
    watchdog.stop(StopReason.CPU_TIME)
    assert watchdog.reason is StopReason.CANCELLED
    assert runner.acts == ["interrupt"]
    watchdog.disarm()


async def test_a_runner_that_broke_the_rules_or_ended_is_not_interrupted() -> None:
    broken, ended = FakeRunner(), FakeRunner()
    broken.breach = "lied"
    ended.is_running = False
    for runner in (broken, ended):
        watchdog = watch(runner)
        watchdog.stop(StopReason.CANCELLED)
        await asyncio.sleep(2 * GRACE_S)
        assert runner.acts == []
        watchdog.disarm()
