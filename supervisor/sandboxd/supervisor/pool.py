"""Runners: how many, which one a call gets, who waits, and who is let go.

A call gets an idle runner of its own key if there is one, else a spare, else it waits in a bounded
queue. Spares are forked ahead of need, and some are bound ahead to modules that need a process that
has run nothing (forecast.py); when the pool is at its capacity, the idle runner that was unused for
longest makes room. Nothing here takes time proportional to the number of runners, modules or
tenants.

The queue is first come, first served, with one exception: a runner that becomes free serves the
first waiter for its own key, because anything else would cost a process. The exception is bounded:
after `MAX_OVERTAKEN` such turns the first in line is served whatever it costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import deque

from sandboxd.supervisor import faults
from sandboxd.supervisor.alarms import Alarms
from sandboxd.supervisor.birth import Hooks, PoolConfig, start_runner
from sandboxd.supervisor.forecast import Expected, Forecast
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.line import Line, Waiter
from sandboxd.supervisor.pause import Pause
from sandboxd.supervisor.runner import Runner
from sandboxd.supervisor.shelf import Shelf
from sandboxd.supervisor.zygote import Zygote

log = logging.getLogger(__name__)

MAX_OVERTAKEN = 16
SWEEP_INTERVAL_S = 5.0
# A runner that cannot even start is not asked for again at once.
START_FAILURE_PAUSE_S = 0.5
# Locking down takes milliseconds, and so does loading a module. A runner that is not ready by then
# is stopped or broken.
START_TIMEOUT_S = 5.0
# A runner that was bound ahead keeps its place for this long before another module may have it.
AHEAD_PATIENCE_S = 1.0


class Pool:
    """The runners of one daemon."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._zygote: Zygote | None = None
        self._limits = config.limits
        self._proof: asyncio.Future[str] | None = None
        self.started_total = 0
        self.ended_total = 0
        self._loop = asyncio.get_running_loop()
        self._all: set[Runner] = set()
        self._start_timers: dict[Runner, asyncio.TimerHandle] = {}
        self._alive = 0
        self._starting = 0
        self._spares: deque[Runner] = deque()
        self._shelf = Shelf()
        self._forecast = Forecast(config.ahead)
        self._loading = 0
        self._line = Line(config.queue_capacity)
        self._alarms = Alarms()
        self._paused_until = 0.0
        self._pause = Pause(self._provision_late, config.pause_s)
        self._done_with: list[Runner] = []
        self._closed = False
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    # --- looking --------------------------------------------------------------------------------

    @property
    def runners(self) -> list[Runner]:
        """All runners that are not reaped yet."""
        return list(self._all)

    @property
    def ahead(self) -> int:
        """Runners that are bound to a module and have not had a call."""
        return self._shelf.unused

    @property
    def queue_depth(self) -> int:
        """Calls that wait for a runner."""
        return len(self._line)

    @property
    def refused_total(self) -> int:
        """Calls that found the queue full."""
        return self._line.refused_total

    def use_zygote(self, zygote: Zygote | None, processes: int) -> None:
        """Fork from this zygote from now on; None while there is none.

        `processes` is the children's RLIMIT_NPROC, which depends on the zygote's namespaces.
        """
        self._zygote = zygote
        self._forecast.clear()
        self._limits = dataclasses.replace(self.config.limits, processes=processes)
        self._paused_until = 0.0
        self.provision()

    async def prove(self) -> str:
        """Wait for the first runner. Return "" when one is locked down and ready, else why not."""
        self._proof = self._loop.create_future()
        if not self._all:
            self._start()
        if self._spares:
            return ""
        return await self._proof

    def _proved(self, breach: str) -> None:
        if self._proof is not None and not self._proof.done():
            self._proof.set_result(breach)

    # --- leasing --------------------------------------------------------------------------------

    def acquire_nowait(self, key: Key, fresh: bool) -> Runner | None:
        """Return a runner for `key` if one is free right now: idle and bound to it, or a spare."""
        return self._shelf.take(key, fresh) or self._take_spare()

    def _take_spare(self) -> Runner | None:
        if not self._spares:
            return None
        runner = self._spares.popleft()
        self._provision_soon()
        return runner

    async def acquire(self, key: Key, fresh: bool, deadline_at: float) -> Runner:
        """Wait for a runner. Raises `QueueDeadline`, `faults.QueueFull`, `faults.ShuttingDown`."""
        if self._closed:
            raise faults.ShuttingDown("the daemon is stopping", retry_after_s=1.0)
        waiter = Waiter(key, fresh, self._loop.create_future())
        self._line.join(waiter)
        alarm = self._alarms.set(deadline_at, waiter.expire)
        try:
            self.provision()
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                # It was served in the same turn of the loop in which it was cancelled.
                self.release(future.result(), reusable=True)
            raise
        finally:
            self._alarms.cancel(alarm)
            self._line.leave(waiter)

    def _serve(self, waiter: Waiter, runner: Runner) -> None:
        self._line.leave(waiter)
        waiter.future.set_result(runner)

    def release(self, runner: Runner, reusable: bool) -> None:
        """Take a runner back after a call. One that is not reusable, or is due, is killed.

        A runner that was acquired and never used may come back, too.
        """
        if (
            reusable
            and runner.state is State.IDLE
            and runner.executions < runner.retire_after_executions
            and runner.idle_since < runner.retire_at
            and not self._closed
        ):
            assert runner.key is not None
            if self._line:
                self._hand_on(runner, runner.key)
            else:
                self._shelf.put(runner, runner.key)
        elif runner.state is State.SPARE:
            self._place_spare(runner)
        else:
            self.retire(runner)

    def discard(self, runner: Runner) -> None:
        """Take a runner back that has served the one call that it was for, and ended it well.

        It is killed: at once if there is need, else as soon as calls pause. The kernel takes
        milliseconds to clear a process away.
        """
        if self._line or self._closed:
            self.retire(runner)
        else:
            self._done_with.append(runner)
            self._provision_soon()

    def _kill_done(self) -> bool:
        """Kill those that have served; True if that made room."""
        alive = self._alive
        done, self._done_with = self._done_with, []
        for runner in done:
            runner.kill()
        return self._alive < alive

    def _hand_on(self, runner: Runner, key: Key) -> None:
        first = self._line.first()
        if first is None:
            self._shelf.put(runner, key)
            return
        match = self._line.first_for(key, used=runner.executions > 0)
        if match is not None and (match is first or first.overtaken < MAX_OVERTAKEN):
            first.overtaken += match is not first
            self._serve(match, runner)
            return
        self._shelf.put(runner, key)
        self.provision()

    def retire(self, runner: Runner) -> None:
        """Kill a runner, wherever it is, and make up for it."""
        if runner.state in (State.DYING, State.DEAD):
            return
        runner.kill()
        self._provision_soon()

    def _unlist(self, runner: Runner) -> None:
        if runner in self._shelf:
            self._shelf.remove(runner)
        else:
            with contextlib.suppress(ValueError):
                self._spares.remove(runner)

    # --- binding ahead ---------------------------------------------------------------------------

    def expect(self, call: Expected) -> None:
        """Take note of a call that used up a process of its module: the next one needs another."""
        now = self._loop.time()
        if not self._forecast.recurs(call.key, now):
            return
        ahead = self._loading + self.ahead + len(self._forecast)
        if ahead >= self.config.ahead and not self._make_room_ahead(call.key, now):
            return
        self._forecast.add(call)
        self._provision_soon()

    def _make_room_ahead(self, key: Key, now: float) -> bool:
        """Let a runner go that waits for calls of another module in vain; False if none does."""
        stale = self._shelf.oldest_unused()
        if stale is None or stale.key == key or now - stale.idle_since < AHEAD_PATIENCE_S:
            return False
        self.retire(stale)
        return True

    def _bind_ahead(self) -> None:
        """Bind those spares that nobody else needs to the modules that are expected."""
        while self._forecast and not self._line and len(self._spares) >= self.config.spares:
            if not self._spares:
                return
            runner = self._spares.popleft()
            self._loading += 1
            self._start_timers[runner] = self._loop.call_later(
                START_TIMEOUT_S, self._check_started, runner
            )
            runner.load(self._forecast.next(), self._on_loaded)

    def _on_loaded(self, runner: Runner) -> None:
        self._end_loading(runner)
        self.release(runner, reusable=True)

    def _end_loading(self, runner: Runner) -> None:
        self._loading -= 1
        self._start_timers.pop(runner).cancel()

    # --- forking ahead ---------------------------------------------------------------------------

    def _provision_soon(self) -> None:
        """Provision after a while: it costs milliseconds of a processor that calls may need."""
        if self._line:
            self._loop.call_soon(self.provision)
        else:
            self._pause.ask()

    def _provision_late(self) -> None:
        self._kill_done()
        self._bind_ahead()
        self.provision()

    def provision(self) -> None:
        """Ask for as many runners as spares, waiters and expected calls need, within capacity."""
        if self._closed or self._zygote is None or self._loop.time() < self._paused_until:
            return
        needed = max(self.config.spares + len(self._forecast), len(self._line))
        wanted = needed - len(self._spares) - self._starting
        while wanted > 0 and self._zygote.has_slot:
            if self._alive >= self.config.capacity and not self._evict():
                return
            try:
                self._start()
            except OSError as error:
                log.error("a runner cannot be started: %s", error.strerror)
                self._hold_back()
                return
            wanted -= 1

    def _hold_back(self) -> None:
        """Do not try again at once what has just failed."""
        self._paused_until = self._loop.time() + START_FAILURE_PAUSE_S
        self._loop.call_later(START_FAILURE_PAUSE_S + 0.01, self.provision)

    def _evict(self) -> bool:
        """Let the idle runner go that was unused for longest; False if there is none."""
        if self._kill_done():
            return True
        oldest = self._shelf.oldest()
        if oldest is None:
            return False
        oldest.kill()
        return True

    def _start(self) -> None:
        assert self._zygote is not None
        runner = start_runner(
            self._zygote,
            self.config,
            self._limits,
            Hooks(self._on_ready, self._on_kill, self._on_dead),
            awaited=len(self._line) > self._starting,
        )
        self._all.add(runner)
        self._alive += 1
        self._starting += 1
        self.started_total += 1
        self._start_timers[runner] = self._loop.call_later(
            START_TIMEOUT_S, self._check_started, runner
        )

    def _started(self, runner: Runner) -> None:
        """It is ready, or never will be."""
        self._starting -= 1
        self._start_timers.pop(runner).cancel()

    def _check_started(self, runner: Runner) -> None:
        if runner.state in (State.STARTING, State.LOADING):
            log.error("a runner was not ready within %.0f s; replacing it", START_TIMEOUT_S)
            runner.kill()

    def _on_ready(self, runner: Runner) -> None:
        self._started(runner)
        self._proved("")
        self._place_spare(runner)

    def _place_spare(self, runner: Runner) -> None:
        first = self._line.first()
        if first is not None:
            self._serve(first, runner)
            # It was wanted as a spare, too: make up for it once all who wait are served.
            self._loop.call_soon(self.provision)
        else:
            self._spares.append(runner)
            self._bind_ahead()

    def _on_kill(self, runner: Runner, previous: State) -> None:
        self._alive -= 1
        if previous is State.STARTING:
            self._started(runner)
            self._hold_back()
        elif previous is State.LOADING:
            self._end_loading(runner)
        elif previous in (State.SPARE, State.IDLE):
            self._unlist(runner)

    def _wordless(self, runner: Runner) -> str:
        """Say how a runner ended that the start waits for; "" if it waits for none."""
        if self._proof is None or self._proof.done() or self._closed:
            return ""
        return f"its process ended without a word (status {runner.exit_status.status})"

    def _on_dead(self, runner: Runner) -> None:
        if runner.key is None and (why := runner.breach or self._wordless(runner)):
            log.error("a runner could not start: %s", why)
            self._proved(why)
        elif runner.breach and runner.executions == 0:
            log.error("a runner could not be bound ahead: %s", runner.breach)
        self._all.discard(runner)
        self.ended_total += 1
        self._provision_soon()

    # --- time and the end -----------------------------------------------------------------------

    def _sweep(self) -> None:
        """Retire what has been idle for too long; spares that are too old, as well."""
        now = self._loop.time()
        while (oldest := self._shelf.oldest()) is not None:
            if now - oldest.idle_since < self.config.idle_timeout_s:
                break
            self.retire(oldest)
        for runner in [*self._shelf]:
            if now - runner.idle_since > SWEEP_INTERVAL_S:
                runner.outbox.give_back()
            if not runner.rested(runner.child.cpu_time_ns()):
                log.warning("a runner of %s computed without a call; killing it", runner.key)
                self.retire(runner)
        while self._spares and now >= self._spares[0].retire_at:
            self.retire(self._spares[0])
        self.provision()
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def fail_waiters(self, fault: faults.Fault) -> None:
        """Refuse every call that waits."""
        for waiter in [*self._line]:
            if waiter.waits:
                waiter.future.set_exception(fault)
            self._line.leave(waiter)

    async def close(self) -> None:
        """Refuse those who wait, kill all runners and wait until they are reaped."""
        self._closed = True
        self._sweeper.cancel()
        self._pause.close()
        self.fail_waiters(faults.ShuttingDown("the daemon is stopping", retry_after_s=1.0))
        for runner in list(self._all):
            runner.kill()
        for runner in list(self._all):
            await runner.wait_dead()
        self._alarms.close()
