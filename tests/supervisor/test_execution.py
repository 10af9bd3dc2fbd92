"""What becomes of a runner's word, and of its silence: the outcome, the receipt, the process."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from tests.supervisor.fakes import (
    BOUND,
    DONE,
    ENGINE,
    MAX_OUTPUT_BYTES,
    FakeChild,
    FakeZygote,
    make_pool,
    result,
    turn,
)

from sandboxd.supervisor import faults, frames
from sandboxd.supervisor.artifacts import Artifact, ModuleInfo
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.outbox import REGIONS_OFFSET, Outbox
from sandboxd.supervisor.runner import MAX_IDLE_CPU_NS
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store
from sandboxd.v1 import call_pb2, module_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

DIGEST = "sha256:" + "0" * 64
LIMITS = CallLimits(60_000, 60_000, 1 << 20, 100, 1000)
RUN = call_pb2.Extern(name="run", kind=call_pb2.EXTERN_KIND_FUNCTION)

Behaviour = Callable[[FakeChild], None]


class Compiled:
    """A compile service in which the one module is compiled already."""

    def __init__(self) -> None:
        self._artifact = Artifact(os.memfd_create("a"), 1, ModuleInfo.of((), (RUN,)), ENGINE)
        self.cache = self

    def get(self, key: object) -> Artifact:
        return self._artifact


class OneModule:
    def get(self, tenant: str, digest: str) -> module_pb2.Module:
        return module_pb2.Module(digest=digest)


class Bench:
    """An executor over one runner that behaves as told."""

    def __init__(self, grace_s: float = 0.02) -> None:
        self.zygote = FakeZygote()
        self.pool = make_pool(self.zygote, capacity=1)
        self.stats = Stats()
        self.executor = Executor(
            self.pool,
            cast(CompileService, Compiled()),
            cast(Store, OneModule()),
            LimitPolicy(LIMITS, LIMITS),
            self.stats,
            grace_s,
        )

    @property
    def child(self) -> FakeChild:
        return self.zygote.children[-1]

    async def execute(
        self, behaviour: Behaviour, grpc_remaining_s: float | None = None, **limits: int
    ) -> sandbox_pb2.ExecuteResponse:
        """Run one call in which the child does this on being handed it."""
        if not self.pool.runners:
            assert await self.pool.prove() == ""
        child = self.child
        child.on_sent = lambda _: behaviour(child)
        request = sandbox_pb2.ExecuteRequest(
            digest=DIGEST,
            typed=call_pb2.TypedCall(export="run"),
            limits=sandbox_pb2.Limits(**limits),
        )
        received = (request, request.SerializeToString())
        response = await self.executor.execute("default", received, grpc_remaining_s)
        return sandbox_pb2.ExecuteResponse.FromString(response)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.pool.close()
    await made.executor.close()


def answer(*replies: runner_pb2.RunnerReply) -> Behaviour:
    return lambda child: child.say(BOUND, *replies)


def write(child: FakeChild, lengths: tuple[int, int, int], log: bytes = b"") -> None:
    """What a runner leaves in its outbox."""
    capacity = Outbox(MAX_OUTPUT_BYTES).capacity_bytes
    os.pwrite(child.outbox_fd, log, REGIONS_OFFSET + 2 * capacity)
    os.pwrite(child.outbox_fd, struct.pack("<QQQ", *lengths), 0)


async def test_a_completed_call_keeps_its_process(bench: Bench) -> None:
    def behave(child: FakeChild) -> None:
        child.cpu_ns = 5000
        done = call_pb2.Completed(results=[call_pb2.Value(i32=1)])
        child.say(BOUND, result(completed=done, run_time_ns=7))

    response = await bench.execute(behave)
    assert list(response.completed.results) == [call_pb2.Value(i32=1)]
    receipt = response.receipt
    assert receipt.start_kind == sandbox_pb2.START_KIND_SPARE
    assert receipt.cpu_time_ns == 5000
    assert receipt.bytes_out == 8
    assert receipt.self_reported.run_time_ns == 7
    assert receipt.limits == LIMITS.message()
    assert bench.child.kills == 0
    response = await bench.execute(lambda child: child.say(DONE))
    assert response.receipt.start_kind == sandbox_pb2.START_KIND_REUSED
    assert response.receipt.bind_time_ns == 0
    assert bench.stats.outcomes == {"completed": 2}


def claims(lengths: tuple[int, int, int], log: bytes = b"") -> Behaviour:
    """Claim to have written so much, and complete."""

    def behave(child: FakeChild) -> None:
        write(child, lengths, log)
        child.say(BOUND, DONE)

    return behave


LIES: dict[str, Behaviour] = {
    "a log that is not one": claims((0, 0, 3), b"\xff\xff\xff"),
    "more output than the limit": claims((900, 101, 0)),
    "a length beyond the outbox": claims((2**63, 0, 0)),
    "a result beyond the limit": answer(
        result(completed=call_pb2.Completed(output=bytes(1000 + 64 * 1024 + 1)))
    ),
    "no outcome": answer(runner_pb2.RunnerReply(result=runner_pb2.Result())),
    "a result before it is bound": lambda child: child.say(DONE),
    "bytes that are not a message": lambda child: child.say_bytes(frames.encode(b"\xff")),
    "a frame that is too long": lambda child: child.say_bytes(b"\xff\xff\xff\x7f"),
    "an end without an answer": lambda child: child.end(0),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_told_as_such_and_ends_the_process(bench: Bench, lie: str) -> None:
    response = await bench.execute(LIES[lie])
    assert response.WhichOneof("outcome") == "protocol_violation", response
    assert response.protocol_violation.message
    assert len(response.stdout) + len(response.stderr) <= LIMITS.output_bytes
    await turn()
    assert bench.zygote.children[0].exit_status is not None
    assert bench.stats.outcomes == {"protocol_violation": 1}


async def test_a_second_result_ends_the_process(bench: Bench) -> None:
    response = await bench.execute(answer(DONE, DONE))
    assert response.WhichOneof("outcome") in ("completed", "protocol_violation")
    assert bench.zygote.children[0].kills == 1


@pytest.mark.parametrize(
    ("status", "outcome"), [(-11, "crashed"), (-6, "crashed"), (-31, "sandbox_violation")]
)
async def test_a_death_by_signal_is_an_outcome(bench: Bench, status: int, outcome: str) -> None:
    response = await bench.execute(lambda child: child.end(status))
    assert response.WhichOneof("outcome") == outcome
    if outcome == "crashed":
        assert response.crashed.signal == -status
        assert response.crashed.signal_name.startswith("SIG")


@pytest.mark.parametrize(
    ("status", "known", "kind"), [(-9, True, faults.RunnerLost), (0, False, faults.ZygoteLost)]
)
async def test_a_death_from_outside_is_a_retryable_fault(
    bench: Bench, status: int, known: bool, kind: type[faults.Fault]
) -> None:
    with pytest.raises(kind) as caught:
        await bench.execute(lambda child: child.end(status, known))
    assert caught.value.retry_after_s


async def test_a_runner_that_refuses_the_call_is_not_used_again(bench: Bench) -> None:
    rejected = runner_pb2.Rejected(field="typed.args", message="no")
    with pytest.raises(faults.ArgumentMismatch) as caught:
        await bench.execute(answer(result(rejected=rejected)))
    assert caught.value.field == "typed.args"
    assert bench.child.kills == 1


async def test_a_call_without_a_client_is_stopped_and_counted(bench: Bench) -> None:
    call = asyncio.ensure_future(bench.execute(answer()))
    await turn()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert bench.stats.outcomes == {}
    await bench.executor.close()
    assert bench.zygote.children[0].exit_status is not None
    assert bench.stats.outcomes == {"cancelled": 1}


async def test_a_call_that_is_cancelled_in_the_turn_of_its_answer_is_counted_once(
    bench: Bench,
) -> None:
    call = asyncio.ensure_future(bench.execute(answer()))
    await turn()
    bench.child.say(DONE)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await bench.executor.close()
    assert bench.stats.outcomes == {"cancelled": 1}
    assert bench.zygote.children[0].kills == 1


async def test_an_answer_within_the_grace_keeps_its_outcome(bench: Bench) -> None:
    bench = Bench(grace_s=60)

    def behave(child: FakeChild) -> None:
        child.say(BOUND)
        asyncio.get_running_loop().call_later(0.1, child.say, DONE)

    response = await bench.execute(behave, wall_time_ms=20)
    assert response.WhichOneof("outcome") == "completed"
    assert bench.child.kills == 1, "whoever had to be stopped is not reused"
    await bench.pool.close()


async def test_an_interrupted_call_tells_where_it_was(bench: Bench) -> None:
    bench = Bench(grace_s=60)
    frame = call_pb2.Frame(function_index=3, function_name="spin")
    trapped = call_pb2.Trapped(code=call_pb2.TRAP_CODE_INTERRUPT, frames=[frame])

    def behave(child: FakeChild) -> None:
        child.say(BOUND)
        asyncio.get_running_loop().call_later(0.1, child.say, result(trapped=trapped))

    response = await bench.execute(behave, wall_time_ms=20)
    stop = response.deadline_exceeded.stop
    assert stop.method == sandbox_pb2.STOP_METHOD_INTERRUPTED
    assert stop.stage == sandbox_pb2.STAGE_RUN
    assert list(stop.frames) == [frame]
    assert 0 < stop.overshoot_ns < 10**10
    assert response.deadline_exceeded.wall_time_ns == 20_000_000
    await bench.pool.close()


async def test_a_call_that_hangs_while_binding_is_killed_and_says_so(bench: Bench) -> None:
    response = await bench.execute(lambda child: None, wall_time_ms=20)
    stop = response.deadline_exceeded.stop
    assert stop.stage == sandbox_pb2.STAGE_BIND
    assert stop.method == sandbox_pb2.STOP_METHOD_KILLED
    assert not response.receipt.HasField("self_reported")


async def test_the_earlier_of_wall_time_and_grpc_deadline_applies(bench: Bench) -> None:
    response = await bench.execute(answer(), grpc_remaining_s=0.02, wall_time_ms=50_000)
    assert response.deadline_exceeded.wall_time_ns == 20_000_000


@pytest.mark.parametrize("remaining_s", [0.0, -5.0])
async def test_a_deadline_that_has_passed_starts_nothing(bench: Bench, remaining_s: float) -> None:
    response = await bench.execute(answer(DONE), grpc_remaining_s=remaining_s)
    stop = response.deadline_exceeded.stop
    assert stop.method == sandbox_pb2.STOP_METHOD_NOT_STARTED
    assert response.receipt.start_kind == sandbox_pb2.START_KIND_UNSPECIFIED
    assert bench.child.sent == b""


async def test_a_cancellation_at_the_grpc_deadline_counts_as_the_deadline(bench: Bench) -> None:
    # The transport's deadline and its timer differ a little: it rounds what it sends.
    call = asyncio.ensure_future(bench.execute(answer(), grpc_remaining_s=2.0))
    await asyncio.sleep(1.985)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await bench.executor.close()
    assert bench.stats.outcomes == {"deadline_exceeded": 1}


async def test_a_log_beyond_all_output_is_not_passed_on(bench: Bench) -> None:
    """Standard output and log may each be within the limit, and together be too much."""
    log = call_pb2.Logs(entries=[call_pb2.LogEntry(message=bytes(60_000))]).SerializeToString()

    def behave(child: FakeChild) -> None:
        write(child, (60_000, 0, len(log)), log)
        child.say(BOUND, DONE)

    response = await bench.execute(behave, output_bytes=60_000)
    assert response.HasField("protocol_violation"), response
    assert not response.HasField("logs")
    assert len(response.stdout) <= 60_000


@pytest.mark.parametrize(
    "completed",
    [call_pb2.Completed(output=b"x"), call_pb2.Completed(output=b"x", results=[call_pb2.Value()])],
)
async def test_a_result_of_another_kind_of_call_is_a_lie(
    bench: Bench, completed: call_pb2.Completed
) -> None:
    response = await bench.execute(answer(result(completed=completed)))
    assert response.HasField("protocol_violation"), response
    assert bench.child.kills == 1


async def test_a_long_result_of_a_call_that_has_none_is_a_lie(bench: Bench) -> None:
    def behave(child: FakeChild) -> None:
        os.pwrite(child.outbox_fd, struct.pack("<QQQQ", 0, 0, 0, 50), 0)
        child.say(BOUND, DONE)

    response = await bench.execute(behave)
    assert response.HasField("protocol_violation"), response


async def test_names_in_a_link_error_are_fit_for_people(bench: Bench) -> None:
    error = call_pb2.LinkError(module="\x1b[31m", name="a\x07", message="missing\x00")
    response = await bench.execute(answer(result(link_error=error)))
    told = response.link_error
    assert (told.module + told.name + told.message).isprintable()


def uses(cpu_ns: int) -> Behaviour:
    def behave(child: FakeChild) -> None:
        child.cpu_ns = cpu_ns
        child.say(BOUND, DONE)

    return behave


async def test_a_process_that_computes_between_calls_is_not_used_again(bench: Bench) -> None:
    await bench.execute(uses(1000))
    bench.child.cpu_ns += MAX_IDLE_CPU_NS + 1
    response = await bench.execute(lambda child: child.say(DONE))
    assert response.HasField("completed")
    assert bench.child.kills == 1


async def test_tidying_up_between_calls_is_allowed(bench: Bench) -> None:
    await bench.execute(uses(1000))
    bench.child.cpu_ns += MAX_IDLE_CPU_NS // 2
    await bench.execute(lambda child: child.say(DONE))
    assert bench.child.kills == 0


async def test_calls_that_wait_hold_no_more_memory_than_allowed(bench: Bench) -> None:
    executor = bench.executor
    executor.held.most_bytes = 100_000
    hung = asyncio.ensure_future(bench.execute(lambda child: child.say(BOUND)))
    await turn(20)
    request = sandbox_pb2.ExecuteRequest(
        digest=DIGEST, typed=call_pb2.TypedCall(export="run"), require_layers=[]
    )
    raw = request.SerializeToString() + b"\x9a\x06" + b"\xdc\x0b" + bytes(1500)
    waiting = asyncio.ensure_future(executor.execute("default", (request, raw), None))
    await turn(20)
    assert not waiting.done()
    with pytest.raises(faults.QueueFull):
        await executor.execute("default", (request, raw), None)
    waiting.cancel()
    await turn()
    assert executor.held.size_bytes == 0
    hung.cancel()
    await turn()
