"""Calls of one module share few processes, and do not wait in vain for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.supervisor.fakes import FakeZygote, key, make_pool, turn
from tests.supervisor.test_pool import LONG_S, begin, finish

from sandboxd.supervisor import faults
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.runner import Runner

A, B = key("a"), key("b")
PATIENCE_S = 0.05
ENOUGH_S = 20.0


class Bench:
    """A pool in which two calls of a module run at once before the next one waits."""

    def __init__(self, **changes: float) -> None:
        chosen = {"capacity": 4, "spares": 4, "busy_per_module": 2, "patience_s": PATIENCE_S}
        self.pool: Pool = make_pool(FakeZygote(), **{**chosen, **changes})

    async def call(self, wanted: Key = A, fresh: bool = False) -> Runner:
        runner = self.pool.acquire_nowait(wanted, fresh)
        if runner is None:
            deadline_at = asyncio.get_running_loop().time() + LONG_S
            runner = await self.pool.acquire(wanted, fresh, deadline_at)
        begin(runner, wanted)
        return runner

    async def end(self, runner: Runner, clean: bool = True) -> None:
        if clean:
            finish(runner)
        self.pool.release(runner, reusable=clean)
        await turn()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await turn()
    yield made
    await made.pool.close()


async def test_the_third_call_of_a_module_takes_the_process_that_is_free_first(
    bench: Bench,
) -> None:
    first, second = await bench.call(), await bench.call()
    third = asyncio.ensure_future(bench.call())
    await turn()
    assert not third.done(), "spares are free, but it waits"
    assert bench.pool.queue_depth == 1
    await bench.end(second)
    assert await third is second
    assert bench.pool.queue_depth == 0
    assert first is not second


async def test_a_call_that_waits_in_vain_goes_on_as_if_it_had_not(bench: Bench) -> None:
    busy = [await bench.call(), await bench.call()]
    began_at = asyncio.get_running_loop().time()
    async with asyncio.timeout(ENOUGH_S):
        third = await bench.call()
    assert third not in busy
    assert asyncio.get_running_loop().time() - began_at >= PATIENCE_S


async def test_after_one_has_waited_in_vain_others_do_not_wait(bench: Bench) -> None:
    for _ in range(3):
        await bench.call()
    assert bench.pool.acquire_nowait(A, fresh=False) is not None


async def test_calls_of_other_modules_and_of_fresh_processes_do_not_wait(bench: Bench) -> None:
    await bench.call()
    await bench.call()
    assert bench.pool.acquire_nowait(B, fresh=False) is not None
    assert bench.pool.acquire_nowait(A, fresh=True) is not None


async def test_a_process_that_dies_lets_go_on_who_waited_for_it(bench: Bench) -> None:
    first, _ = await bench.call(), await bench.call()
    third = asyncio.ensure_future(bench.call())
    await turn()
    await bench.end(first, clean=False)
    await turn()
    assert third.done(), "long before its patience ends"
    assert third.result() is not first


async def test_a_cancelled_call_waits_no_more_and_takes_nothing(bench: Bench) -> None:
    first, _ = await bench.call(), await bench.call()
    third = asyncio.ensure_future(bench.call())
    await turn()
    third.cancel()
    await turn()
    await bench.end(first)
    assert bench.pool.queue_depth == 0
    assert bench.pool.acquire_nowait(A, fresh=False) is first


async def test_stopping_refuses_those_who_wait_patiently_too(bench: Bench) -> None:
    await bench.call()
    await bench.call()
    third = asyncio.ensure_future(bench.call())
    await turn()
    bench.pool.fail_waiters(faults.ShuttingDown("stop", retry_after_s=1.0))
    with pytest.raises(faults.ShuttingDown):
        await third


async def test_who_waited_in_vain_is_refused_by_a_full_queue() -> None:
    bench = Bench(capacity=2, spares=0, queue_capacity=1)
    await bench.call()
    await bench.call()
    in_line = asyncio.ensure_future(bench.call(B))
    await turn()
    patient = asyncio.ensure_future(bench.call())
    with pytest.raises(faults.QueueFull):
        async with asyncio.timeout(ENOUGH_S):
            await patient
    in_line.cancel()
    await bench.pool.close()


async def test_nothing_is_remembered_of_a_module_that_is_gone(bench: Bench) -> None:
    first, second = await bench.call(), await bench.call()
    third = asyncio.ensure_future(bench.call())
    await turn()
    await bench.end(first)
    for runner in (second, await third):
        await bench.end(runner, clean=False)
    await asyncio.sleep(2 * PATIENCE_S)
    assert bench.pool._modules == {}
