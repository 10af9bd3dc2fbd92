"""A batch without processes: what its workers do when a call, the client or the daemon fails."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from google.rpc import error_details_pb2, status_pb2

from sandboxd.supervisor import batch_execution, faults
from sandboxd.supervisor.batch_execution import BatchExecutor
from sandboxd.supervisor.call import Received
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.gate import Gate
from sandboxd.supervisor.held import HeldMemory, HeldResults
from sandboxd.supervisor.result_stream import MAX_WAITING_BYTES, ResultStream
from sandboxd.supervisor.stats import Stats
from sandboxd.v1 import sandbox_pb2

DIGESTS = [f"sha256:{number:064x}" for number in range(40)]


class Calls:
    """Stands for the executor: a call answers its digest, or does what a test wants of it."""

    def __init__(self) -> None:
        self.held = HeldMemory(1 << 20)
        self.taken: list[str] = []
        self.remaining_s: list[float | None] = []
        self.at_once = self.most_at_once = 0
        self.on_call: Callable[[str], bytes] = lambda digest: b""

    async def execute(self, tenant: str, received: Received, remaining_s: float | None) -> bytes:
        digest = received[0].digest
        self.taken.append(digest)
        self.remaining_s.append(remaining_s)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            output = self.on_call(digest)
        finally:
            self.at_once -= 1
        return sandbox_pb2.ExecuteResponse(
            stdout=output, receipt=sandbox_pb2.Receipt(module_digest=digest)
        ).SerializeToString()


class Bench:
    """A batch executor over those calls, and a client that keeps what it is written."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.gate = Gate()
        self.stats = Stats()
        self.held_results = HeldResults(1 << 30, 1 << 20)
        self.executor: BatchExecutor | None = None
        self.results: dict[int, sandbox_pb2.BatchResult] = {}
        self.reads = asyncio.Event()
        self.reads.set()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        for result in sandbox_pb2.ExecuteBatchResponse.FromString(message).results:
            assert result.index not in self.results
            self.results[result.index] = result

    async def run(self, parallel: int = 3, remaining_s: float | None = None) -> None:
        executor = self.executor or BatchExecutor(
            cast(Executor, self.calls), self.gate, self.stats, 4, self.held_results
        )
        requests = [sandbox_pb2.ExecuteRequest(digest=digest) for digest in DIGESTS]
        batch = sandbox_pb2.ExecuteBatchRequest(requests=requests, max_parallel=parallel)
        async with asyncio.timeout(20):
            await executor.execute("t", batch.SerializeToString(), self.write, remaining_s)

    def again(self) -> Bench:
        """Another client of the same executor, if there is one, and the same calls."""
        other = Bench()
        other.calls, other.gate, other.stats = self.calls, self.gate, self.stats
        other.held_results, other.executor, other.reads = (
            self.held_results,
            self.executor,
            self.reads,
        )
        return other

    def codes(self) -> set[int]:
        return {result.error.code for result in self.results.values()}


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (3, 3), (100, 4)])
async def test_items_are_taken_in_order_so_many_at_once(
    bench: Bench, asked: int, expected: int
) -> None:
    await bench.run(asked)
    assert bench.calls.taken == DIGESTS
    assert bench.calls.most_at_once == expected
    for index, digest in enumerate(DIGESTS):
        assert bench.results[index].response.receipt.module_digest == digest
    assert bench.calls.held.size_bytes == 0
    assert set(bench.calls.remaining_s) == {None}


async def test_a_bug_in_one_call_is_logged_and_is_its_result(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(digest: str) -> bytes:
        if digest == DIGESTS[3]:
            raise RuntimeError("a bug")
        return b""

    bench.calls.on_call = fail
    with caplog.at_level(logging.ERROR):
        await bench.run()
    error = bench.results[3].error
    assert (error.code, "see the daemon's log" in error.message) == (13, True)
    assert "a bug" in caplog.text
    assert bench.stats.faults == {"INTERNAL": 1}
    assert sum(result.HasField("response") for result in bench.results.values()) == 39


async def test_a_shortage_is_no_bug(bench: Bench) -> None:
    def fail(digest: str) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    bench.calls.on_call = fail
    await bench.run()
    info = error_details_pb2.ErrorInfo()
    status: status_pb2.Status = bench.results[0].error
    assert status.details[0].Unpack(info)
    assert (status.code, info.reason) == (8, "OVERLOADED")
    assert bench.stats.faults == {"OVERLOADED": 40}


async def test_once_the_gate_is_closed_no_item_is_taken_up(bench: Bench) -> None:
    def close(digest: str) -> bytes:
        if digest == DIGESTS[9]:
            bench.gate.close()
        return b""

    bench.calls.on_call = close
    await bench.run(1)
    assert bench.calls.taken == DIGESTS[:10]
    assert len(bench.results) == 40
    assert bench.codes() == {0, 14}
    assert bench.stats.faults == {"SHUTTING_DOWN": 30}


async def test_after_the_deadline_no_item_is_taken_up(bench: Bench) -> None:
    with pytest.raises(faults.DeadlineFault):
        await bench.run(remaining_s=0.0)
    assert bench.calls.taken == []
    assert bench.calls.held.size_bytes == 0


async def test_an_item_is_told_what_is_left_of_the_deadline(bench: Bench) -> None:
    await bench.run(remaining_s=100.0)
    left = [remaining for remaining in bench.calls.remaining_s if remaining is not None]
    assert len(left) == 40
    assert left == sorted(left, reverse=True)
    assert 50 < left[-1] <= left[0] <= 100


async def test_a_write_that_fails_ends_the_batch(bench: Bench) -> None:
    async def gone(message: bytes) -> None:
        raise ConnectionError("the client is gone")

    bench.write = gone  # type: ignore[method-assign]
    bench.calls.on_call = lambda digest: bytes(MAX_WAITING_BYTES)
    with pytest.raises(ConnectionError):
        await bench.run(1)
    assert len(bench.calls.taken) < 40
    assert bench.calls.at_once == bench.calls.held.size_bytes == 0


async def test_while_nobody_reads_each_worker_makes_one_result_too_many_at_most(
    bench: Bench,
) -> None:
    bench.reads.clear()
    bench.calls.on_call = lambda digest: bytes(MAX_WAITING_BYTES // 8)
    running = asyncio.ensure_future(bench.run())
    taken = -1
    while taken < 8 or taken != len(bench.calls.taken):
        taken = len(bench.calls.taken)
        for _ in range(100):
            await asyncio.sleep(0)
    # One message is with the transport: two results, each an eighth of what may wait.
    assert 8 <= taken <= 8 + 2 + 3
    assert bench.calls.at_once == 0, "nobody holds a runner while it waits"
    bench.reads.set()
    await running
    assert len(bench.results) == 40


async def test_cancelled_it_stops_all_and_holds_nothing(bench: Bench) -> None:
    bench.reads.clear()
    begun = asyncio.Event()

    def begin(digest: str) -> bytes:
        begun.set()
        return bytes(MAX_WAITING_BYTES // 4)

    bench.calls.on_call = begin
    running = asyncio.ensure_future(bench.run())
    await begun.wait()
    assert bench.calls.held.size_bytes
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    taken = len(bench.calls.taken)
    await asyncio.sleep(0)
    assert len(bench.calls.taken) == taken < 40
    assert bench.calls.at_once == bench.calls.held.size_bytes == 0


async def test_what_is_held_already_leaves_no_room_for_a_batch(bench: Bench) -> None:
    with bench.calls.held.hold(1 << 20), pytest.raises(faults.QueueFull) as caught:
        await bench.run()
    assert caught.value.retry_after_s
    assert bench.calls.taken == []


@pytest.mark.parametrize("ending", ["cancel", "a write that fails"])
async def test_nothing_of_a_batch_that_broke_off_waits_for_the_garbage_collector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Results, runners and requests are megabytes, and a client can break off as it likes."""
    streams: list[weakref.ref[ResultStream]] = []

    def watched(write: Callable[[bytes], Awaitable[None]], held: HeldResults) -> ResultStream:
        stream = ResultStream(write, held)
        streams.append(weakref.ref(stream))
        return stream

    async def fail(message: bytes) -> None:
        raise ConnectionError("the client is gone")

    monkeypatch.setattr(batch_execution, "ResultStream", watched)
    gc.collect()
    gc.disable()
    try:
        if ending == "cancel":
            bench.reads.clear()
            task = asyncio.ensure_future(bench.run())
            while not bench.calls.taken:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        else:
            monkeypatch.setattr(bench, "write", fail)
            with pytest.raises(ConnectionError):
                await bench.run()
        await asyncio.sleep(0)
        assert [stream() for stream in streams] == [None]
    finally:
        gc.enable()


async def test_results_that_nobody_takes_leave_each_batch_one_call_at_a_time(bench: Bench) -> None:
    bench.held_results.count((1 << 30) - (1 << 19))  # of others
    await bench.run(3)
    assert bench.calls.most_at_once == 1
    assert len(bench.results) == len(DIGESTS)
    assert bench.held_results.size_bytes == (1 << 30) - (1 << 19)


async def test_calls_go_on_together_once_others_have_taken_their_results(bench: Bench) -> None:
    bench.held_results.count(1 << 30)
    running = asyncio.ensure_future(bench.run(3))
    while len(bench.calls.taken) < 3:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    assert bench.calls.most_at_once == 1
    bench.held_results.count(-(1 << 30))
    await running
    assert bench.calls.most_at_once == 3


async def test_calls_that_never_wait_leave_the_loop_to_others(bench: Bench) -> None:
    def work(digest: str) -> bytes:
        end = time.monotonic() + 0.002
        while time.monotonic() < end:
            pass
        return b""

    bench.calls.on_call = work
    turns: list[float] = []

    async def others() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(others())
    await asyncio.gather(*(bench.again().run(4) for _ in range(5)))
    watching.cancel()
    assert len(turns) > len(DIGESTS) * 5 / 8, "a turn of the loop has a few such calls at most"


async def test_so_many_batches_at_once_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_execution, "MAX_BATCHES", 2)
    bench.reads.clear()
    bench.executor = BatchExecutor(
        cast(Executor, bench.calls), bench.gate, bench.stats, 4, bench.held_results
    )
    running = [asyncio.ensure_future(bench.again().run()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(faults.QueueFull, match="2 batches"):
        await bench.run()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    bench.reads.set()
    await bench.run()
    assert len(bench.results) == len(DIGESTS)
