"""Who gets a runner, who waits, who makes room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.supervisor.fakes import (
    BOUND,
    DONE,
    FakeChild,
    FakeZygote,
    fake_child,
    key,
    make_pool,
    module_artifact,
    turn,
)

from sandboxd.supervisor import faults
from sandboxd.supervisor import pool as pool_module
from sandboxd.supervisor.forecast import Expected
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.line import QueueDeadline
from sandboxd.supervisor.pool import MAX_OVERTAKEN
from sandboxd.supervisor.runner import Runner
from sandboxd.wire.v1 import runner_pb2

A, B, C = key("a"), key("b"), key("c")
LONG_S = 1000.0


class Bench:
    """A pool over a fake zygote, and what calls do with it."""

    def __init__(self, **changes: float) -> None:
        self.zygote = FakeZygote()
        self.pool = make_pool(self.zygote, **changes)

    async def lease(self, wanted: Key = A, fresh: bool = False, within_s: float = LONG_S) -> Runner:
        """Get a runner as a call does, waiting if need be, and begin to work."""
        runner = self.pool.acquire_nowait(wanted, fresh)
        while runner is None or runner.state not in (State.SPARE, State.IDLE):
            deadline_at = asyncio.get_running_loop().time() + within_s
            runner = await self.pool.acquire(wanted, fresh, deadline_at)
        begin(runner, wanted)
        return runner

    def waiting(self, wanted: Key = A, fresh: bool = False) -> asyncio.Task[Runner]:
        return asyncio.ensure_future(self.lease(wanted, fresh))

    def give_back(self, runner: Runner, clean: bool = True) -> None:
        finish(runner)
        self.pool.release(runner, reusable=clean)


def begin(runner: Runner, wanted: Key) -> None:
    was_spare = runner.state is State.SPARE
    runner.begin(b"", wanted, module_artifact())
    if was_spare:
        fake_child(runner).say(BOUND)


def finish(runner: Runner) -> None:
    fake_child(runner).say(DONE)
    now = asyncio.get_running_loop().time()
    runner.finish(now, runner.child.cpu_time_ns())


MakeBench = Callable[..., Bench]


@pytest.fixture
async def make_bench() -> AsyncIterator[MakeBench]:
    made: list[Bench] = []

    def make(**changes: float) -> Bench:
        made.append(Bench(**changes))
        return made[-1]

    yield make
    for bench in made:
        await bench.pool.close()
        assert all(child.closed for child in bench.zygote.children)
        assert bench.pool.started_total == bench.pool.ended_total


# --- getting one ----------------------------------------------------------------------------------


async def test_a_runner_serves_its_module_again_and_no_other(make_bench: MakeBench) -> None:
    bench = make_bench(spares=2)
    await turn()
    first = await bench.lease(A)
    bench.give_back(first)
    assert bench.pool.acquire_nowait(B, fresh=False) is not first
    assert bench.pool.acquire_nowait(A, fresh=False) is first


async def test_the_variant_with_fuel_is_another_module(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    plain = await bench.lease(A)
    bench.give_back(plain)
    assert bench.pool.acquire_nowait(A._replace(fuel=True), fresh=False) is None


async def test_a_fresh_call_gets_a_process_that_ran_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=2)
    used = await bench.lease(A)
    bench.give_back(used)
    fresh = await bench.lease(A, fresh=True)
    assert fresh is not used
    assert fresh.executions == 1
    assert used.state is State.IDLE


async def test_the_runner_that_was_used_last_is_used_next(make_bench: MakeBench) -> None:
    bench = make_bench()
    first, second = await bench.lease(A), await bench.lease(A)
    bench.give_back(first)
    bench.give_back(second)
    assert bench.pool.acquire_nowait(A, fresh=False) is second


async def test_what_did_not_end_clean_is_killed_and_replaced(make_bench: MakeBench) -> None:
    bench = make_bench(spares=1)
    await turn()
    runner = await bench.lease(A)
    bench.give_back(runner, clean=False)
    assert fake_child(runner).kills == 1
    await turn(20)
    assert bench.pool.acquire_nowait(A, fresh=False) not in (None, runner)


async def test_spares_are_forked_ahead_and_replenished(make_bench: MakeBench) -> None:
    bench = make_bench(spares=3, capacity=10)
    for used in range(4):
        # While others are left, the replacement is not in a hurry.
        await asyncio.sleep(0.002)
        await turn()
        spare = [one for one in bench.pool.runners if one.state is State.SPARE]
        assert len(spare) == 3, used
        await bench.lease(A)


async def test_spares_come_back_after_those_who_waited_took_them(make_bench: MakeBench) -> None:
    bench = make_bench(spares=2, capacity=10)
    calls = [bench.waiting(A) for _ in range(5)]
    await asyncio.gather(*calls)
    await turn(20)
    states = [runner.state for runner in bench.pool.runners]
    assert states.count(State.SPARE) == 2


async def test_spares_never_exceed_the_capacity(make_bench: MakeBench) -> None:
    bench = make_bench(spares=3, capacity=4)
    for _ in range(4):
        await bench.lease(A)
        await turn()
    assert len(bench.pool.runners) == 4


# --- making room ----------------------------------------------------------------------------------


async def test_the_idle_runner_unused_for_longest_makes_room(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=3)
    runners = [await bench.lease(one) for one in (A, B, C)]
    for runner in (runners[1], runners[0], runners[2]):
        bench.give_back(runner)
    await bench.lease(key("d"))
    assert [fake_child(runner).kills for runner in runners] == [0, 1, 0]


async def test_a_busy_runner_never_makes_room(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    waiting = bench.waiting(B)
    await turn(20)
    assert not waiting.done()
    assert fake_child(busy).kills == 0
    bench.give_back(busy)
    assert (await waiting).key == B
    assert fake_child(busy).kills == 1


@pytest.mark.parametrize("limit", [1, 10, 100])
async def test_a_runner_is_retired_after_its_executions(make_bench: MakeBench, limit: int) -> None:
    bench = make_bench(max_executions=limit)
    first = await bench.lease(A)
    served = 1
    while fake_child(first).kills == 0:
        bench.give_back(first)
        if fake_child(first).kills == 0:
            assert await bench.lease(A) is first
            served += 1
    assert 0.8 * limit - 1 <= served <= limit


async def test_a_runner_is_retired_at_its_age(make_bench: MakeBench) -> None:
    bench = make_bench(max_age_s=0.0)
    runner = await bench.lease(A)
    bench.give_back(runner)
    assert fake_child(runner).kills == 1


async def test_runners_started_together_are_not_retired_together(make_bench: MakeBench) -> None:
    bench = make_bench(spares=30, capacity=30, max_executions=1000, max_age_s=1000.0)
    await turn()
    counts = {runner.retire_after_executions for runner in bench.pool.runners}
    ages = {runner.retire_at for runner in bench.pool.runners}
    assert len(counts) > 5
    assert len(ages) > 5
    assert all(800 <= count <= 1000 for count in counts)


async def test_what_idles_too_long_is_let_go(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SWEEP_INTERVAL_S", 0.01)
    bench = make_bench(idle_timeout_s=0.0)
    runner = await bench.lease(A)
    bench.give_back(runner)
    async with asyncio.timeout(20):
        await runner.child.gone
    assert bench.pool.acquire_nowait(A, fresh=False) is None


async def test_spares_that_are_too_old_are_replaced(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SWEEP_INTERVAL_S", 0.01)
    bench = make_bench(spares=1, max_age_s=0.05)
    await turn()
    (spare,) = bench.pool.runners
    async with asyncio.timeout(20):
        await spare.child.gone
        while not any(one.state is State.SPARE for one in bench.pool.runners):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# --- waiting --------------------------------------------------------------------------------------


async def test_calls_are_served_in_the_order_in_which_they_came(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    order: list[int] = []

    async def call(number: int) -> None:
        runner = await bench.lease(A if number % 2 else B)
        order.append(number)
        bench.give_back(runner, clean=False)

    calls = [asyncio.ensure_future(call(number)) for number in range(6)]
    await turn()
    bench.give_back(busy, clean=False)
    await asyncio.gather(*calls)
    assert order == list(range(6))


async def test_a_hot_module_overtakes_the_first_in_line_only_so_often(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=1)
    order: list[Key] = []

    async def call(wanted: Key) -> None:
        runner = await bench.lease(wanted)
        order.append(wanted)
        bench.give_back(runner)

    busy = await bench.lease(A)
    other = asyncio.ensure_future(call(B))
    await turn()
    hot = [asyncio.ensure_future(call(A)) for _ in range(3 * MAX_OVERTAKEN)]
    await turn()
    bench.give_back(busy)
    await asyncio.gather(other, *hot)
    assert order.index(B) == MAX_OVERTAKEN
    assert len(order) == 1 + 3 * MAX_OVERTAKEN


async def test_a_waiting_fresh_call_never_gets_a_used_process(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    used = await bench.lease(A)
    waiting = bench.waiting(A, fresh=True)
    await turn()
    bench.give_back(used)
    runner = await waiting
    assert runner is not used
    assert runner.executions == 1


async def test_a_full_queue_refuses_with_a_time_to_retry(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1, queue_capacity=2)
    await bench.lease(A)
    waiting = [bench.waiting(A), bench.waiting(B)]
    await turn()
    assert bench.pool.queue_depth == 2
    with pytest.raises(faults.QueueFull) as caught:
        await bench.lease(A)
    assert caught.value.retry_after_s
    assert bench.pool.refused_total == 1
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert bench.pool.queue_depth == 0


async def test_a_call_that_waited_to_its_deadline_leaves_the_queue(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    with pytest.raises(QueueDeadline):
        await bench.lease(B, within_s=0.02)
    assert bench.pool.queue_depth == 0
    bench.give_back(busy)
    assert bench.pool.acquire_nowait(A, fresh=False) is busy


@pytest.mark.parametrize("by", ["release", "spare"])
async def test_a_call_cancelled_in_the_turn_in_which_it_was_served_loses_no_runner(
    make_bench: MakeBench, by: str
) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    waiting = bench.waiting(A)
    await turn()
    if by == "release":
        bench.give_back(busy)
    else:
        bench.zygote.ready_at_once = False
        bench.give_back(busy, clean=False)
        await turn()
        bench.zygote.children[-1].say(runner_pb2.RunnerReply(ready=runner_pb2.Ready()))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    runner = bench.pool.acquire_nowait(A, fresh=False)
    assert runner is not None
    assert runner.executions == (1 if by == "release" else 0)


async def test_a_cancelled_call_passes_its_runner_to_the_next_in_line(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    first, second = bench.waiting(A), bench.waiting(A)
    await turn()
    bench.give_back(busy)
    first.cancel()
    assert await second is busy
    assert first.cancelled()


async def test_a_runner_that_dies_in_the_hands_of_a_waiter_is_not_used(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    waiting = bench.waiting(A)
    await turn()
    bench.give_back(busy)
    fake_child(busy).end(-9)
    assert fake_child(busy).on_hangup is not None
    fake_child(busy).on_hangup()  # type: ignore[misc]
    assert await waiting is not busy


# --- when things go wrong -------------------------------------------------------------------------


async def test_the_start_is_proved_by_the_first_runner(make_bench: MakeBench) -> None:
    assert await make_bench().pool.prove() == ""


async def test_a_runner_that_cannot_be_locked_down_fails_the_start_with_its_reason() -> None:
    zygote = FakeZygote(ready_at_once=False)
    pool = make_pool(zygote, spares=1)
    proof = asyncio.ensure_future(pool.prove())
    await turn()
    failed = runner_pb2.Failed(message="landlock: not here")
    zygote.children[0].say(runner_pb2.RunnerReply(failed=failed))
    assert "landlock: not here" in await proof
    await turn(20)
    # It is not tried again at once: that would be a fork loop.
    assert len(zygote.children) == 1
    await pool.close()


async def test_a_runner_that_ends_without_a_word_fails_the_start_at_once() -> None:
    zygote = FakeZygote(ready_at_once=False)
    pool = make_pool(zygote, spares=1)
    proof = asyncio.ensure_future(pool.prove())
    await turn()
    zygote.children[0].end(-31)
    assert "without a word" in await proof
    await pool.close()


async def test_a_lost_zygote_empties_the_pool_and_the_next_fills_it(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(spares=2)
    await turn()
    busy = await bench.lease(A)
    waiting = [bench.waiting(B, fresh=True) for _ in range(4)]
    await turn()
    bench.pool.use_zygote(None, 0)
    bench.zygote.lose()
    await turn(20)
    assert busy.state is State.DEAD
    assert bench.pool.runners == [] or all(task.done() for task in waiting[:3])
    following = FakeZygote()
    bench.pool.use_zygote(following, 1)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await asyncio.gather(*waiting)


async def test_closing_refuses_those_who_wait_and_kills_all(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=1)
    busy = await bench.lease(A)
    waiting = bench.waiting(B)
    await turn()
    await bench.pool.close()
    with pytest.raises(faults.ShuttingDown):
        await waiting
    with pytest.raises(faults.ShuttingDown):
        await bench.lease(A)
    assert busy.state is State.DEAD
    bench.pool.release(busy, reusable=True)  # a call that ends late


# --- binding ahead --------------------------------------------------------------------------------


def expected(wanted: Key) -> Expected:
    return Expected(wanted, module_artifact(), 1 << 20, 10, "run")


def loading(bench: Bench) -> list[Runner]:
    return [one for one in bench.pool.runners if one.state is State.LOADING]


async def call_fresh(bench: Bench, wanted: Key = A) -> Runner:
    """Have a call in a process of its own, which ends well; what is due is loaded."""
    runner = await bench.lease(wanted, fresh=True)
    fake_child(runner).say(DONE)
    bench.pool.expect(expected(wanted))
    bench.pool.discard(runner)
    await turn(20)
    for one in loading(bench):
        fake_child(one).say(BOUND)
    return runner


async def test_a_module_that_is_called_fresh_again_and_again_is_bound_ahead(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=10, spares=2, ahead=3)
    await call_fresh(bench)
    assert bench.pool.ahead == 0, "once is no habit"
    await call_fresh(bench)
    assert bench.pool.ahead == 1
    runner = bench.pool.acquire_nowait(A, fresh=True)
    assert runner is not None
    assert (runner.key, runner.executions, runner.state) == (A, 0, State.IDLE)


async def test_a_call_that_takes_any_process_prefers_a_used_one(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=10, spares=1, ahead=3)
    used = await bench.lease(A)
    bench.give_back(used)
    for _ in range(2):
        await call_fresh(bench)
    assert bench.pool.ahead == 1
    assert bench.pool.acquire_nowait(A, fresh=False) is used
    other = bench.pool.acquire_nowait(A, fresh=False)
    assert other is not None
    assert other.key == A
    assert bench.pool.ahead == 0


async def test_as_many_are_ahead_as_the_limit_allows(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=20, spares=2, ahead=3)
    burst = [await bench.lease(A, fresh=True) for _ in range(6)]
    for runner in burst:
        fake_child(runner).say(DONE)
        bench.pool.expect(expected(A))
        bench.pool.discard(runner)
    await turn(30)
    assert len(loading(bench)) == 3
    states = [runner.state for runner in bench.pool.runners]
    assert states.count(State.SPARE) == 2, "spares are as many as ever"


async def test_one_that_waits_in_vain_makes_room_for_another_module(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(capacity=10, spares=1, ahead=1)
    for _ in range(2):
        await call_fresh(bench, A)
    for _ in range(2):
        await call_fresh(bench, B)
    (ahead,) = [one for one in bench.pool.runners if one.state is State.IDLE]
    assert ahead.key == A, "it has not waited for long"
    monkeypatch.setattr(pool_module, "AHEAD_PATIENCE_S", 0.0)
    await call_fresh(bench, B)
    await turn(20)
    for one in loading(bench):
        fake_child(one).say(BOUND)
    (ahead,) = [one for one in bench.pool.runners if one.state is State.IDLE]
    assert ahead.key == B


async def test_nothing_is_bound_ahead_while_a_call_waits(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=2, spares=0, ahead=2)
    busy = [await bench.lease(A, fresh=True) for _ in range(2)]
    call = bench.waiting(B)
    await turn()
    for _ in range(2):
        bench.pool.expect(expected(A))
    fake_child(busy[0]).say(DONE)
    bench.pool.discard(busy[0])
    assert fake_child(busy[0]).kills == 1, "its place is needed now"
    assert (await call).key == B


async def test_a_fresh_call_that_waits_gets_the_one_that_was_bound_for_it(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=3, spares=0, ahead=1)
    for _ in range(2):
        runner = await bench.lease(A, fresh=True)
        fake_child(runner).say(DONE)
        bench.pool.expect(expected(A))
        bench.pool.discard(runner)
        await turn(20)
    (soon,) = loading(bench)
    for _ in range(2):
        await bench.lease(B)
    call = bench.waiting(A, fresh=True)
    await turn()
    fake_child(soon).say(BOUND)
    assert await call is soon


async def test_one_that_cannot_be_bound_ahead_ends_and_harms_nobody(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=10, spares=1, ahead=2)
    for _ in range(2):
        runner = await bench.lease(A, fresh=True)
        fake_child(runner).say(DONE)
        bench.pool.expect(expected(A))
        bench.pool.discard(runner)
        await turn(20)
    (broken,) = loading(bench)
    fake_child(broken).say(
        runner_pb2.RunnerReply(bound=runner_pb2.Bound(error="no memory")),
    )
    await turn(20)
    assert broken.state is State.DEAD
    assert not loading(bench), "it is not tried again until there is another call"
    assert (await bench.lease(A, fresh=True)).executions == 1


async def test_one_that_never_says_that_it_is_bound_is_killed(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "START_TIMEOUT_S", 0.01)
    bench = make_bench(capacity=10, spares=1, ahead=2)
    for _ in range(2):
        runner = await bench.lease(A, fresh=True)
        fake_child(runner).say(DONE)
        bench.pool.expect(expected(A))
        bench.pool.discard(runner)
        await turn(20)
    (silent,) = loading(bench)
    await silent_end(silent)
    assert not loading(bench)


async def silent_end(runner: Runner) -> None:
    while runner.state is not State.DEAD:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.005)


async def test_a_runner_for_a_call_that_waits_is_forked_as_awaited(make_bench: MakeBench) -> None:
    bench = make_bench(capacity=4, spares=1)
    await turn(20)
    assert bench.zygote.awaited == [False]
    await asyncio.gather(bench.waiting(A), bench.waiting(A))
    await turn(20)
    assert bench.zygote.awaited[1:] == [True, False]


async def test_a_runner_that_served_its_one_call_is_killed_when_calls_pause(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(capacity=4, spares=2, pause_s=0.02)
    await turn(20)
    runner = await bench.lease(A, fresh=True)
    fake_child(runner).say(DONE)
    bench.pool.discard(runner)
    assert fake_child(runner).kills == 0
    await silent_end(runner)
    assert fake_child(runner).kills == 1


# --- any order of events --------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """Calls come, end, fail, are cancelled; runners die; nobody is forgotten or served twice."""

    CAPACITY, SPARES, AHEAD, QUEUE = 4, 1, 2, 5

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.working: list[Runner] = []
        self.waiting: list[asyncio.Task[None]] = []
        self.bench = self.do(self._make())

    async def _make(self) -> Bench:
        return Bench(
            capacity=self.CAPACITY,
            spares=self.SPARES,
            ahead=self.AHEAD,
            queue_capacity=self.QUEUE,
        )

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _settle(self) -> None:
        await turn(10)
        self.waiting = [task for task in self.waiting if not task.done()]
        for runner in self.working:
            if runner.state is not State.BUSY:
                self.bench.pool.release(runner, reusable=False)
        self.working = [runner for runner in self.working if runner.state is State.BUSY]

    async def _call(self, wanted: Key, fresh: bool) -> None:
        runner = await self.bench.lease(wanted, fresh)
        assert runner not in self.working
        assert not fresh or runner.executions == 1
        self.working.append(runner)

    @rule(wanted=st.sampled_from([A, B, C]), fresh=st.booleans(), settle=st.booleans())
    def a_call_comes(self, wanted: Key, fresh: bool, settle: bool) -> None:
        async def come() -> None:
            full = self.bench.pool.queue_depth == self.QUEUE
            task = asyncio.ensure_future(self._call(wanted, fresh))
            await turn(1)
            if task.done() and task.exception() is not None:
                assert isinstance(task.exception(), faults.QueueFull)
                assert full
            else:
                self.waiting.append(task)
            if settle:
                await self._settle()

        self.do(come())

    @precondition(lambda self: self.working)
    @rule(data=st.data(), clean=st.booleans(), settle=st.booleans())
    def a_call_ends(self, data: st.DataObject, clean: bool, settle: bool) -> None:
        async def end() -> None:
            runner = data.draw(st.sampled_from(self.working))
            self.working.remove(runner)
            if runner.state is State.BUSY and clean and data.draw(st.booleans()):
                fake_child(runner).say(DONE)
                assert runner.key is not None
                self.bench.pool.expect(expected(runner.key))
                self.bench.pool.discard(runner)
            elif runner.state is State.BUSY:
                self.bench.give_back(runner, clean)
            else:
                self.bench.pool.release(runner, reusable=False)
            if settle:
                await self._settle()

        self.do(end())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_call_is_cancelled(self, data: st.DataObject) -> None:
        async def cancel() -> None:
            # In the turn after a release it may have been served already; that is the point.
            data.draw(st.sampled_from(self.waiting)).cancel()
            await self._settle()

        self.do(cancel())

    @rule(data=st.data(), settle=st.booleans())
    def a_runner_dies(self, data: st.DataObject, settle: bool) -> None:
        async def die() -> None:
            living = [child for child in self.bench.zygote.children if child.exit_status is None]
            if living:
                victim: FakeChild = data.draw(st.sampled_from(living))
                victim.end(-9)
            if settle:
                await self._settle()

        self.do(die())

    @rule(data=st.data())
    def a_module_is_loaded(self, data: st.DataObject) -> None:
        async def load() -> None:
            if ready := loading(self.bench):
                fake_child(data.draw(st.sampled_from(ready))).say(BOUND)
            await self._settle()

        self.do(load())

    @rule()
    def time_passes(self) -> None:
        self.do(self._settle())

    @invariant()
    def no_more_runners_live_than_the_capacity_allows(self) -> None:
        living = [
            runner
            for runner in self.bench.pool.runners
            if runner.state not in (State.DYING, State.DEAD)
        ]
        assert len(living) <= self.CAPACITY
        assert self.bench.pool.queue_depth <= self.QUEUE
        assert self.bench.pool.ahead + len(loading(self.bench)) <= self.AHEAD

    def teardown(self) -> None:
        self.do(self._finish())
        self.loop.close()

    async def _finish(self) -> None:
        """When all calls end, all who wait are served, and the spares come back."""
        pool = self.bench.pool
        # A runner that died while starting makes the pool pause; not for these tests.
        pool._paused_until = 0.0
        pool.provision()
        for _ in range(1000):
            await self._settle()
            if not self.waiting and not self.working:
                break
            for runner in loading(self.bench):
                fake_child(runner).say(BOUND)
            for runner in self.working:
                self.bench.give_back(runner)
            self.working.clear()
        assert not self.waiting, "a call was forgotten"
        assert pool.queue_depth == 0
        await turn(10)
        states = [runner.state for runner in pool.runners]
        assert states.count(State.SPARE) >= 1 or states.count(State.IDLE) == self.CAPACITY, states
        await pool.close()
        assert pool.runners == []
        assert pool.started_total == pool.ended_total == len(self.bench.zygote.children)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
