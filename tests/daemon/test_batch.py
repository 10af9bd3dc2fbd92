"""ExecuteBatch against a running daemon: every item is an Execute, and no item is another's."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.daemon.calls import (
    PATIENCE_S,
    Caller,
    Request,
    Response,
    bytes_call,
    calling,
    count,
    eventually,
    i32,
    i64,
    refused,
    typed,
    wasi,
)
from tests.hostile import http2

from sandboxd.client import AsyncClient, BatchCall, Client, Execution, ModuleNotFound, TypedCall
from sandboxd.supervisor.batch import MAX_ITEMS
from sandboxd.supervisor.result_stream import MAX_WAITING_BYTES, MESSAGE_BYTES
from sandboxd.v1 import sandbox_pb2

ABSENT = "sha256:" + "e" * 64
STOCK_CLIENT_BYTES = 4 << 20
# Answers a short input with 64 KiB, and (input of 16 bytes) with 960 KiB.
LARGE = """
(module
  (memory (export "memory") 16)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "large") (param i32 i32) (result i64)
    (select (i64.const 983040) (i64.const 65536)
            (i32.eq (local.get 1) (i32.const 16)))))
"""
LARGE_BYTES = 64 * 1024
HUGE_BYTES = 960 * 1024


@pytest.fixture(scope="module")
def large(daemon: Any, wat: Callable[[str], bytes]) -> str:
    return str(daemon.push(wat(LARGE)))


def start(
    caller: Caller, requests: list[Request], parallel: int = 0, timeout: float = PATIENCE_S
) -> Any:
    batch = sandbox_pb2.ExecuteBatchRequest(requests=requests, max_parallel=parallel)
    return caller.sandbox.ExecuteBatch(batch, timeout=timeout)


def run(
    caller: Caller, requests: list[Request], parallel: int = 0
) -> dict[int, sandbox_pb2.BatchResult]:
    """Run a batch to its end; every item must have just one result."""
    return collect(start(caller, requests, parallel), len(requests))


def collect(messages: Any, items: int) -> dict[int, sandbox_pb2.BatchResult]:
    results = [result for message in messages for result in message.results]
    assert sorted(result.index for result in results) == list(range(items))
    return {result.index: result for result in results}


def reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "sandboxd"
    return str(info.reason)


def add(digest: str, number: int) -> Request:
    return typed(digest, "add", i32(number), i32(1))


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [0, 1, 4])
def test_calls_of_every_kind_have_the_results_that_they_have_alone(
    caller: Caller, sink: str, sink_wasm: bytes, parallel: int
) -> None:
    kinds = [
        typed(sink, "add", i32(20), i32(22)),
        bytes_call(sink, "echo", b"x" * 64),
        bytes_call(sink, "echo", b"y" * 40_000),
        wasi(sink, "prog"),
        typed(sink_wasm, "add", i32(1), i32(2)),
        typed(sink, "add", i32(1), i32(2), fresh=True),
        typed(sink, "add", i32(1), i32(2), fuel=10_000),
        typed(sink, "trap"),
        typed(sink, "exit", i32(7)),
        typed(sink, "spin", wall_time_ms=150),
    ] * 2
    results = run(caller, kinds, parallel)
    for index, request in enumerate(kinds):
        assert told(results[index].response) == told(caller.execute(request)), index
        receipt = results[index].response.receipt
        assert receipt.module_digest == sink
        assert receipt.limits.HasField("fuel") == request.limits.HasField("fuel")
        assert receipt.isolation_layers


def told(response: Response) -> Response:
    """What does not differ from run to run."""
    kept = Response()
    kept.CopyFrom(response)
    kept.ClearField("receipt")
    if response.HasField("deadline_exceeded"):
        # On a busy machine the grace can be over before the guest has answered the interrupt.
        stop = response.deadline_exceeded.stop
        assert stop.frames or stop.method == sandbox_pb2.STOP_METHOD_KILLED
        kept.deadline_exceeded.ClearField("stop")
    assert response.receipt.engine_version
    return kept


def test_the_index_tells_whose_result_it_is(caller: Caller, sink: str) -> None:
    results = run(caller, [add(sink, number) for number in range(700)], 3)
    assert [results[n].response.completed.results[0].i32 for n in range(700)] == [
        n + 1 for n in range(700)
    ]


def test_every_item_has_a_fresh_instance(caller: Caller, sink: str) -> None:
    results = run(caller, [typed(sink, "remember", i32(n + 1)) for n in range(50)], 2)
    assert {result.response.completed.results[0].i32 for result in results.values()} == {0}


def test_what_is_wrong_with_one_item_is_told_as_it_would_be_alone_and_harms_no_other(
    caller: Caller, sink: str
) -> None:
    good = [add(sink, 1)] * 3
    bad = [
        typed(ABSENT, "add", i32(1), i32(1)),
        typed(sink, "none"),
        typed(sink, "add", i32(1)),
        typed(sink, "add", i32(1), i32(1), wall_time_ms=0),
        Request(digest=sink),
        typed(b"\x7fELF", "f"),
        typed(b"\0asm\x01\0\0\0\xff", "f"),
    ]
    results = run(caller, [*good, *bad, *good])
    for index in (0, 1, 2, 10, 11, 12):
        assert results[index].response.completed.results[0].i32 == 2
    for index, request in enumerate(bad, start=3):
        with pytest.raises(grpc.RpcError) as caught:
            caller.execute(request)
        alone: Any = caught.value
        trailers = dict(alone.trailing_metadata())
        expected = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert results[index].error == expected, index
        assert results[index].error.code == alone.code().value[0]


def test_an_item_that_is_no_message_is_refused_alone(caller: Caller, sink: str) -> None:
    good = sandbox_pb2.ExecuteBatchRequest(requests=[add(sink, 1)]).SerializeToString()
    execute: Any = caller.channel.unary_stream(
        "/sandboxd.v1.SandboxService/ExecuteBatch",
        response_deserializer=sandbox_pb2.ExecuteBatchResponse.FromString,
    )
    raw = good + b"\x0a\x03\xff\xff\xff" + good + b"\x0a\x00" + good
    results = collect(execute(raw, timeout=PATIENCE_S), 5)
    assert [results[n].response.completed.results[0].i32 for n in (0, 2, 4)] == [2, 2, 2]
    assert reason(results[1].error) == "MALFORMED_MESSAGE"
    assert reason(results[3].error) == "INVALID_REQUEST"


def test_one_that_hangs_among_others_is_killed_at_its_limit(
    daemon: Any, caller: Caller, sink: str
) -> None:
    requests = [add(sink, number) for number in range(40)]
    requests[3] = typed(sink, "sleep", i64(3_600_000), wall_time_ms=200)
    requests[20] = typed(sink, "spin_quietly", wall_time_ms=200)
    results = run(caller, requests, 2)
    killed, interrupted = (results[n].response.deadline_exceeded.stop for n in (3, 20))
    assert killed.method == sandbox_pb2.STOP_METHOD_KILLED
    assert interrupted.method == sandbox_pb2.STOP_METHOD_INTERRUPTED
    for number in set(range(40)) - {3, 20}:
        assert results[number].response.completed.results[0].i32 == number + 1
    daemon.wait_status(lambda status: status.pool.busy == 0)


def test_items_are_counted_as_calls_are(daemon: Any, caller: Caller, sink: str) -> None:
    before = {name: count(daemon, name) for name in ("completed", "trapped", "MODULE_NOT_FOUND")}
    requests = [add(sink, 1)] * 5 + [typed(sink, "trap")] * 2 + [typed(ABSENT, "x")] * 3
    run(caller, requests)
    after = {name: count(daemon, name) for name in before}
    assert [after[name] - before[name] for name in before] == [5, 2, 3]


# --- limits ---------------------------------------------------------------------------------------


def test_the_wall_clock_limit_of_an_item_runs_from_when_it_is_taken_up(
    caller: Caller, sink: str
) -> None:
    requests = [typed(sink, "sleep", i64(150), wall_time_ms=1000)] * 8
    results = run(caller, requests, 1)
    outcomes = {result.response.WhichOneof("outcome") for result in results.values()}
    assert outcomes == {"completed"}, "eight of them take longer than the limit of one"


@pytest.mark.parametrize("items", [0, MAX_ITEMS + 1])
def test_a_batch_of_none_or_too_many_is_refused(caller: Caller, sink: str, items: int) -> None:
    found = refused(list, start(caller, [Request()] * items))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert found.field == "requests"


def test_as_many_items_as_allowed_are_answered_even_if_all_are_wrong(caller: Caller) -> None:
    results = run(caller, [Request()] * MAX_ITEMS)
    assert {result.error.code for result in results.values()} == {3}


def test_no_more_are_under_way_than_the_client_wants_nor_than_half_of_the_runners(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon("--max-runners", "6", "--spare-runners", "0") as daemon:
        digest = daemon.push(sink_wasm)
        for parallel, expected in ((2, 2), (1_000_000, 3)):
            with calling(daemon) as caller:
                hanging = [typed(digest, "spin", wall_time_ms=60_000)] * 8
                pending = start(caller, hanging, parallel)
                daemon.wait_status(lambda status, most=expected: status.pool.busy == most)
                assert daemon.status().queue.depth == 0, "an item that waits is not taken up"
                pending.cancel()
                daemon.wait_status(lambda status: status.pool.busy == status.pool.dying == 0)


def test_the_bytes_of_a_batch_count_as_those_of_calls_that_wait(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon("--queue-bytes", "1MiB") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        too_much = [wasi(digest, stdin=b"x" * 300_000)] * 4
        found = refused(list, start(caller, too_much))
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert found.retry_after_ms
        hanging = typed(digest, "spin", wall_time_ms=60_000)
        half = [*too_much[:2], hanging]
        pending = start(caller, half, 1)
        daemon.wait_status(lambda status: status.pool.busy == 1 and count(daemon, "exited") == 2)
        assert refused(list, start(caller, too_much[:2])).reason == "QUEUE_FULL"
        pending.cancel()
        daemon.wait_status(lambda status: status.pool.busy == 0)
        eventually(lambda: len(run(caller, too_much[:2])) == 2, "what it held is free again")


# --- messages -------------------------------------------------------------------------------------


def test_long_results_come_in_several_messages_that_every_client_takes(
    caller: Caller, large: str
) -> None:
    long, longer = (bytes_call(large, "large", b"x" * size) for size in (1, 16))
    messages = list(start(caller, [long] * 40 + [longer] * 4, 2))
    results = collect(messages, 44)
    assert {len(results[n].response.completed.output) for n in range(40)} == {LARGE_BYTES}
    assert {len(results[n].response.completed.output) for n in range(40, 44)} == {HUGE_BYTES}
    for message in messages:
        assert len(message.results) == 1 or message.ByteSize() <= MESSAGE_BYTES
        assert message.ByteSize() < STOCK_CLIENT_BYTES


def test_short_results_come_many_in_a_message(caller: Caller, sink: str) -> None:
    messages = list(start(caller, [add(sink, 1)] * 400, 2))
    assert len(messages) < 200


# --- clients that stop reading, or stop altogether ------------------------------------------------


@contextlib.contextmanager
def deaf_batch(daemon: Any, requests: list[Request]) -> Iterator[http2.Connection]:
    """Send a batch over a connection that takes no byte of an answer."""
    batch = sandbox_pb2.ExecuteBatchRequest(requests=requests, max_parallel=2).SerializeToString()
    message = b"\0" + len(batch).to_bytes(4, "big") + batch
    assert len(message) < 16_384, "as much as a frame may have"
    headers = http2.call_headers(b"/sandboxd.v1.SandboxService/ExecuteBatch")
    with http2.Connection(str(daemon.socket), window=0) as connection:
        connection.send(
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers)
            + http2.frame(http2.DATA, http2.END_STREAM, 1, message)
        )
        yield connection


def test_one_who_does_not_read_holds_up_only_itself_and_no_runner(
    start_daemon: Any, wat: Callable[[str], bytes], sink_wasm: bytes
) -> None:
    with start_daemon("--max-runners", "2", "--drain", "60s") as daemon, calling(daemon) as caller:
        digest, other = daemon.push(wat(LARGE)), daemon.push(sink_wasm)
        items = 100
        with deaf_batch(daemon, [bytes_call(digest, "large", b"x")] * items) as deaf:
            done = MAX_WAITING_BYTES // LARGE_BYTES
            eventually(lambda: count(daemon, "completed") >= done)
            daemon.wait_status(lambda status: status.pool.busy == 0)
            held_up = count(daemon, "completed")
            assert held_up < items // 2
            # Everybody else is served, with all runners.
            for number in range(20):
                assert caller.execute(add(other, number)).completed.results[0].i32 == number + 1
            assert len(run(caller, [add(other, 1)] * 50)) == 50
            assert count(daemon, "completed") == held_up + 70, "nothing more of it was run"
            deaf.drain()
        # It went away: the batch is over, and with it what kept the daemon from ending.
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0


def test_a_batch_that_is_cancelled_stops_its_calls_and_starts_no_more(
    daemon: Any, caller: Caller, sink: str
) -> None:
    before = {name: count(daemon, name) for name in ("completed", "cancelled")}
    hanging = [typed(sink, "spin", wall_time_ms=60_000), typed(sink, "sleep", i64(60_000))]
    pending = start(caller, [add(sink, 1), *hanging * 20], 2)
    assert next(pending).results[0].index == 0
    daemon.wait_status(lambda status: status.pool.busy == 2)
    pending.cancel()
    daemon.wait_status(
        lambda status: status.pool.busy == status.pool.dying == status.queue.depth == 0
    )
    eventually(lambda: count(daemon, "cancelled") == before["cancelled"] + 2)
    assert count(daemon, "completed") == before["completed"] + 1
    assert len(run(caller, [add(sink, 1)] * 10)) == 10


def test_batches_that_are_cancelled_at_any_moment_leave_nothing_behind(
    daemon: Any, caller: Caller, sink: str
) -> None:
    for moment in range(12):
        with calling(daemon) as leaving:
            pending = start(leaving, [add(sink, 1)] * 400, 3)
            for _ in range(moment // 2):
                next(pending, None)  # A fast machine is done by then.
            if moment % 2:
                pending.cancel()
    daemon.wait_status(lambda status: status.pool.busy == status.queue.depth == 0)
    assert not count(daemon, "INTERNAL")
    assert len(run(caller, [add(sink, 1)] * 10)) == 10


def test_the_grpc_deadline_bounds_the_whole_batch(daemon: Any, caller: Caller, sink: str) -> None:
    before = {name: count(daemon, name) for name in ("deadline_exceeded", "cancelled")}
    pending = start(caller, [typed(sink, "spin", wall_time_ms=60_000)] * 20, 2, timeout=0.5)
    assert refused(list, pending).code is grpc.StatusCode.DEADLINE_EXCEEDED
    daemon.wait_status(
        lambda status: status.pool.busy == status.pool.dying == status.queue.depth == 0
    )
    # Those two that ran: stopped by their own clock, or because the client was gone.
    stopped = sum(count(daemon, name) - before[name] for name in before)
    assert stopped == 2


def test_a_stop_lets_running_items_end_and_refuses_the_others(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon("--drain", "100s") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        requests = [typed(digest, "spin", wall_time_ms=1500)] * 2 + [add(digest, 1)] * 1000
        pending = start(caller, requests, 2)
        daemon.wait_status(lambda status: status.pool.busy == 2)
        daemon.process.send_signal(signal.SIGTERM)
        results = collect(pending, len(requests))
        assert daemon.process.wait(30) == 0
        for index in (0, 1):
            assert results[index].response.WhichOneof("outcome") == "deadline_exceeded"
        for index in range(2, len(requests)):
            error = results[index].error
            assert (error.code, reason(error)) == (14, "SHUTTING_DOWN")


def test_a_daemon_that_stops_takes_no_batch(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon("--drain", "100s") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        pending = start(caller, [typed(digest, "spin", wall_time_ms=1500)])
        daemon.wait_status(lambda status: status.pool.busy == 1)
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in daemon.log)
        found = refused(list, start(caller, [add(digest, 1)]))
        assert found.code is grpc.StatusCode.UNAVAILABLE
        assert found.reason in ("SHUTTING_DOWN", "")
        assert len(collect(pending, 1)) == 1
        assert daemon.process.wait(30) == 0


# --- around it ------------------------------------------------------------------------------------


def test_reflection_describes_it(caller: Caller) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="google.rpc.Status")
    service = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="sandboxd.v1.SandboxService"
    )
    names = set()
    for answer in stub.ServerReflectionInfo(iter([asked, service]), timeout=PATIENCE_S):
        for file in answer.file_descriptor_response.file_descriptor_proto:
            described = descriptor_pb2.FileDescriptorProto.FromString(file)
            names |= {message.name for message in described.message_type}
            names |= {method.name for one in described.service for method in one.method}
    assert {"Status", "ExecuteBatch", "ExecuteBatchRequest", "BatchResult"} <= names


def test_the_client_runs_batches(daemon: Any, sink: str) -> None:
    calls = [BatchCall(sink, TypedCall("add", (n, 1))) for n in range(2500)]
    calls.append(BatchCall(ABSENT, TypedCall("add", ())))
    with Client(daemon.target) as client:
        *good, bad = client.execute_all(calls)
    assert isinstance(bad, ModuleNotFound)
    assert [one.value for one in good if isinstance(one, Execution)] == list(range(1, 2501))


def test_sandboxctl_runs_batches(daemon: Any, sink_wasm: bytes, tmp_path: Path) -> None:
    (tmp_path / "sink.wasm").write_bytes(sink_wasm)
    lines = "".join(f"{number} 1\n" for number in range(1200)) + "5 0\n7 7\n"
    command = [Path(sys.executable).with_name("sandboxctl"), "--address", daemon.target]
    ended = subprocess.run(
        [*command, "batch", tmp_path / "sink.wasm", "divide"],
        input=lines, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.stdout.split("\n") == [*map(str, range(1200)), "", "1", ""]
    assert "line 1201: " in ended.stderr
    assert "1 of 1202 calls failed" in ended.stderr
    assert ended.returncode == 3


async def test_the_asyncio_client_runs_batches(daemon: Any, sink: str) -> None:
    calls = [BatchCall(sink, TypedCall("add", (n, 1))) for n in range(300)]
    async with AsyncClient(daemon.target) as client:
        results = {i: one async for i, one in client.execute_batch(calls, max_parallel=3)}
    assert {i: one.value for i, one in results.items() if isinstance(one, Execution)} == {
        n: n + 1 for n in range(300)
    }
