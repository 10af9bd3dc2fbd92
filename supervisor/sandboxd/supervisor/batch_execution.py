"""One ExecuteBatch: workers take its items in order, and each item is an Execute.

    split -> workers: decode, execute, put the result into its field -> stream of results

What a batch saves is the transport: the rest of an item's way is that of a call
(execution.py). An item is decoded only when a worker takes it up, and a worker takes up none while
the daemon stops, after the batch's deadline, or while more results wait than its client reads.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import batch as wire
from sandboxd.supervisor import faults, refusal
from sandboxd.supervisor.call import Received, decode
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.gate import Gate, shutting_down
from sandboxd.supervisor.held import HeldResults
from sandboxd.supervisor.pacer import Pacer
from sandboxd.supervisor.result_stream import ResultStream
from sandboxd.supervisor.stats import Stats

# Batches at once. Each may hold a result or two of the largest kind whatever the others hold.
MAX_BATCHES = 256
_NO_MORE: tuple[int, slice | None] = (0, None)

Write = Callable[[bytes], Awaitable[None]]
"""Sends one serialized ExecuteBatchResponse; returns when the transport has taken it."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all batches have in common."""

    executor: Executor
    gate: Gate
    stats: Stats
    results: HeldResults
    pacer: Pacer


class BatchExecutor:
    """Runs batches. Shared by all of them; holds no state of any one.

    `max_parallel`: more items of one batch than this are never under way at once. `results` counts
    what their clients have not taken yet.
    """

    def __init__(
        self,
        executor: Executor,
        gate: Gate,
        stats: Stats,
        max_parallel: int,
        results: HeldResults,
    ) -> None:
        self._shared = _Shared(executor, gate, stats, results, Pacer())
        self._under_way = 0
        self._max_parallel = max_parallel
        # One call for every processor, and one to go on with while a result is on its way here.
        # Compared by hand on two processors: 5 to 7 % more calls per second, none if they are busy.
        self._default_parallel = min(max_parallel, len(os.sched_getaffinity(0)) + 1)

    async def execute(
        self, tenant: str, raw: bytes, write: Write, grpc_remaining_s: float | None
    ) -> None:
        """Run the items of a serialized ExecuteBatchRequest and write what comes of them.

        Raises `faults.Fault` for what is wrong with the batch as a whole, and what `write` raises.
        """
        deadline_at = None if grpc_remaining_s is None else time.monotonic() + grpc_remaining_s
        if self._under_way >= MAX_BATCHES:
            raise faults.QueueFull(
                f"{MAX_BATCHES} batches are under way already; retry later", retry_after_s=0.5
            )
        self._under_way += 1
        held, pacer = self._shared.executor.held, self._shared.pacer
        try:
            with held.hold(len(raw)):
                while pacer.over and not await pacer.wait():
                    pass
                batch = _split(raw)
                with held.hold(batch.held_bytes - len(raw)):
                    await self._run(tenant, batch, write, deadline_at)
        finally:
            self._under_way -= 1

    async def _run(
        self, tenant: str, batch: wire.Batch, write: Write, deadline_at: float | None
    ) -> None:
        parallel = min(batch.max_parallel or self._default_parallel, self._max_parallel)
        stream = ResultStream(write, self._shared.results)
        run = _Run(self._shared, tenant, batch, stream, deadline_at)
        try:
            await _without_frames(run.to_the_end(min(parallel, len(batch.items))))
        finally:
            stream.close()


def _split(raw: bytes) -> wire.Batch:
    try:
        return wire.split(raw)
    except DecodeError:
        raise refusal.malformed() from None


async def _without_frames(work: Awaitable[None]) -> None:
    """Await work that has a TaskGroup; raise what ended the group, and nothing of its frames.

    A TaskGroup leaves its exception in a reference cycle with its own frame, and with it results,
    runners and requests: megabytes that would wait for the garbage collector.
    """
    cause: Exception | None = None
    try:
        await work
    except asyncio.CancelledError as error:
        _let_go(error)
        raise
    except ExceptionGroup as group:
        # What is wrong with an item is its result: this is what ended the batch.
        cause = group.exceptions[0]
        _let_go(group)
    if cause is not None:
        try:
            # Not in the handler, where the group would become its context.
            raise cause
        finally:
            del cause


def _let_go(error: BaseException) -> None:
    """Take an exception's frames from it, and those of the ones that it groups."""
    error.__traceback__ = error.__context__ = None
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            _let_go(one)


class _Run:
    """One batch under way."""

    def __init__(
        self,
        shared: _Shared,
        tenant: str,
        batch: wire.Batch,
        results: ResultStream,
        deadline_at: float | None,
    ) -> None:
        self._shared = shared
        self._tenant = tenant
        self._raw = batch.raw
        # Shared by the workers: whoever is free takes the next one.
        self._items = enumerate(batch.items)
        self._results = results
        self._deadline_at = deadline_at
        self._making = 0

    async def to_the_end(self, workers: int) -> None:
        """Run and write everything. Cancelled, or if one of them fails, all of them end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._results.run())
            working = [group.create_task(self._work()) for _ in range(workers)]
            await asyncio.wait(working)
            self._results.finish()

    async def _work(self) -> None:
        results, held, pacer = self._results, self._shared.results, self._shared.pacer
        while True:
            if results.full or held.full or pacer.over:
                await self._may_go_on(held, pacer)
            index, place = next(self._items, _NO_MORE)
            if place is None:
                return
            self._making += 1
            held.count(held.result_bytes)
            try:
                results.add(await self._result(index, place))
            finally:
                held.count(-held.result_bytes)
                self._making -= 1

    async def _may_go_on(self, held: HeldResults, pacer: Pacer) -> None:
        """Wait until there is room for a result, and it is this batch's turn to make one."""
        while True:
            if self._results.full:
                await self._results.room()
            elif held.full and (self._making or not self._results.empty):
                # One that has nothing under way may always go on: clients that take nothing must
                # not bring all others to a stop.
                await held.room()
            elif not pacer.over or await pacer.wait():
                return

    async def _result(self, index: int, place: slice) -> bytes:
        remaining_s = self._remaining_s()
        try:
            response = await self._shared.executor.execute(
                self._tenant, self._take_up(place), remaining_s
            )
        except Exception as error:  # noqa: BLE001 - as what an Execute raises
            return wire.error_result(index, refusal.status_of(error, self._shared.stats))
        return wire.response_result(index, response)

    def _take_up(self, place: slice) -> Received:
        """Decode an item. Raises `faults.ShuttingDown` or `faults.MalformedMessage`."""
        if self._shared.gate.closed:
            raise shutting_down()
        try:
            return decode(self._raw[place])
        except DecodeError:
            raise refusal.malformed() from None

    def _remaining_s(self) -> float | None:
        """Return the seconds that are left of the batch's deadline; None if it has none.

        Raises `faults.DeadlineFault` if it passed: the transport tells a moment later.
        """
        if self._deadline_at is None:
            return None
        remaining_s = self._deadline_at - time.monotonic()
        if remaining_s <= 0:
            raise faults.DeadlineFault("the deadline passed before all of the batch was run")
        return remaining_s
