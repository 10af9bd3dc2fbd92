"""The one clock: whatever a guest does, its time ends, and the answer tells how."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest
from tests.daemon.calls import (
    PATIENCE_S,
    Caller,
    calling,
    count,
    eventually,
    i32,
    i64,
    typed,
    wasi,
)

from sandboxd.v1 import admin_pb2, sandbox_pb2

GRACE_NS = 50_000_000
# A bound for the slowest machine; what is usual is told by the receipts that the demo prints.
MOST_OVERSHOOT_NS = 5_000_000_000
BUSY = admin_pb2.RUNNER_STATE_BUSY

INTERRUPTED = sandbox_pb2.STOP_METHOD_INTERRUPTED
KILLED = sandbox_pb2.STOP_METHOD_KILLED
NOT_STARTED = sandbox_pb2.STOP_METHOD_NOT_STARTED


def busy_pid(daemon: Any, digest: str) -> int:
    """The process id of the one runner that works on this module, once there is one."""

    def find() -> int:
        found = [
            one.pid
            for one in daemon.status().runners
            if one.module_digest == digest and one.state == BUSY
        ]
        return found[0] if found else 0

    return int(eventually(find, "a runner is busy"))


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


# --- how it ends ----------------------------------------------------------------------------------


def test_a_loop_is_interrupted_with_backtrace_and_what_it_wrote(caller: Caller, sink: str) -> None:
    response = caller.execute(typed(sink, "spin", wall_time_ms=1000))
    stop = response.deadline_exceeded.stop
    assert (stop.stage, stop.method) == (sandbox_pb2.STAGE_RUN, INTERRUPTED), response
    assert stop.frames
    assert stop.frames[0].module_offset_bytes > 0
    assert stop.overshoot_ns < MOST_OVERSHOOT_NS
    assert response.deadline_exceeded.wall_time_ns == 1_000_000_000
    assert response.stdout == b"before\n"
    assert response.receipt.self_reported.run_time_ns > 0


def test_a_sleeping_host_call_is_killed_after_the_grace_and_its_output_returned(
    caller: Caller, sink: str
) -> None:
    response = caller.execute(typed(sink, "sleep", i64(3_600_000), wall_time_ms=700))
    stop = response.deadline_exceeded.stop
    assert (stop.stage, stop.method) == (sandbox_pb2.STAGE_RUN, KILLED), response
    assert GRACE_NS * 0.9 < stop.overshoot_ns < MOST_OVERSHOOT_NS
    assert response.stdout == b"before\n"
    assert not response.receipt.HasField("self_reported")
    assert response.receipt.peak_memory_bytes > 0


def test_the_example_that_sleeps_is_killed_and_its_line_returned(
    caller: Caller, guests: Any
) -> None:
    wasm = (guests / "c" / "sleep.wasm").read_bytes()
    response = caller.execute(wasi(wasm, "sleep", "3600", wall_time_ms=1000))
    assert response.deadline_exceeded.stop.method == KILLED
    assert response.stdout


def test_a_loop_in_the_start_function_is_stopped(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat('(module (func $s (loop (br 0))) (start $s) (func (export "f")))')
    response = caller.execute(typed(wasm, "f", wall_time_ms=700))
    stop = response.deadline_exceeded.stop
    assert stop.stage == sandbox_pb2.STAGE_RUN
    assert stop.method in (INTERRUPTED, KILLED)
    assert stop.overshoot_ns < MOST_OVERSHOOT_NS


def test_a_loop_of_bulk_memory_operations_is_stopped(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    # Each fill takes longer than the grace: the epoch is looked at in between, if at all.
    wasm = wat("""(module (memory 8000) (func (export "f") (loop
      (memory.fill (i32.const 0) (i32.const 1) (i32.const 524288000)) (br 0))))""")
    response = caller.execute(typed(wasm, "f", wall_time_ms=700, memory_bytes=1 << 30))
    assert response.deadline_exceeded.stop.overshoot_ns < MOST_OVERSHOOT_NS, response
    assert response.deadline_exceeded.stop.method in (INTERRUPTED, KILLED)


def test_a_deadline_while_compiling_starts_nothing(
    daemon: Any, caller: Caller, slow_wasm: bytes
) -> None:
    response = caller.execute(typed(slow_wasm, "f", i32(1), wall_time_ms=400))
    stop = response.deadline_exceeded.stop
    assert (stop.stage, stop.method) == (sandbox_pb2.STAGE_COMPILE, NOT_STARTED), response
    assert response.receipt.compile_time_ns > 0
    daemon.wait_status(lambda status: status.compiling == 0)


def test_used_up_cpu_time_is_an_outcome_of_its_own(caller: Caller, sink: str) -> None:
    started_at = time.monotonic()
    response = caller.execute(typed(sink, "spin", cpu_time_ms=300, wall_time_ms=300_000))
    assert response.WhichOneof("outcome") == "cpu_time_exceeded", response
    assert response.cpu_time_exceeded.cpu_time_ns == 300_000_000
    assert response.receipt.cpu_time_ns >= 300_000_000
    assert response.stdout == b"before\n"
    assert time.monotonic() - started_at < PATIENCE_S


def test_a_sleeping_guest_uses_no_cpu_time(caller: Caller, sink: str) -> None:
    response = caller.execute(typed(sink, "sleep", i64(600), cpu_time_ms=400))
    assert response.WhichOneof("outcome") == "completed", response
    assert response.receipt.run_time_ns > 500_000_000


def test_a_stopped_process_is_killed_at_its_deadline(
    daemon: Any, caller: Caller, sink: str
) -> None:
    pending = caller.sandbox.Execute.future(typed(sink, "spin", wall_time_ms=2000), timeout=60)
    pid = busy_pid(daemon, sink)
    # By then it has written its line and loops.
    eventually(lambda: sum(psutil.Process(pid).cpu_times()[:2]) > 0.2, "it loops")
    os.kill(pid, signal.SIGSTOP)
    response = pending.result()
    assert response.deadline_exceeded.stop.method == KILLED, response
    assert response.stdout == b"before\n"
    eventually(lambda: is_gone(pid))


# --- a client that does not wait ------------------------------------------------------------------


def test_the_grpc_deadline_ends_the_call_when_it_is_the_earlier_one(
    daemon: Any, caller: Caller, sink: str
) -> None:
    before = count(daemon, "deadline_exceeded")
    pending = caller.sandbox.Execute.future(typed(sink, "spin", wall_time_ms=60_000), timeout=1.5)
    pid = busy_pid(daemon, sink)
    # At the deadline two timers race: usually the client's wins.
    if pending.code() is grpc.StatusCode.OK:
        assert pending.result().WhichOneof("outcome") == "deadline_exceeded"
    else:
        assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: is_gone(pid))
    eventually(lambda: count(daemon, "deadline_exceeded") == before + 1, "counted as deadline")


@pytest.mark.parametrize("export", ["spin", "sleep"])
@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_a_call_whose_client_is_gone_is_stopped_and_counted_as_cancelled(
    daemon: Any, sink: str, how: str, export: str
) -> None:
    before = count(daemon, "cancelled")
    args = (i64(3_600_000),) if export == "sleep" else ()
    with contextlib.closing(daemon.channel()) as channel:
        request = typed(sink, export, *args, wall_time_ms=60_000)
        pending = Caller(channel).sandbox.Execute.future(request)
        pid = busy_pid(daemon, sink)
        if how == "cancel":
            pending.cancel()
        else:
            channel.close()
        eventually(lambda: is_gone(pid), timeout_s=10)
    eventually(lambda: count(daemon, "cancelled") == before + 1, "counted as cancelled")


# --- waiting in the queue -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(start_daemon: Any) -> Iterator[Any]:
    """A daemon with a single runner."""
    with start_daemon("--max-runners", "1", "--spare-runners", "0") as running:
        yield running


@pytest.fixture(scope="module")
def narrow_caller(narrow: Any) -> Iterator[Caller]:
    with calling(narrow) as connected:
        yield connected


def test_a_deadline_in_the_queue_starts_nothing(
    narrow: Any, narrow_caller: Caller, sink_wasm: bytes
) -> None:
    digest = narrow.push(sink_wasm)
    blocker = narrow_caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=60_000))
    busy_pid(narrow, digest)
    response = narrow_caller.execute(typed(digest, "add", i32(1), i32(1), wall_time_ms=300))
    stop = response.deadline_exceeded.stop
    assert (stop.stage, stop.method) == (sandbox_pb2.STAGE_QUEUE, NOT_STARTED)
    assert response.receipt.queue_time_ns >= 250_000_000
    assert response.receipt.start_kind == sandbox_pb2.START_KIND_UNSPECIFIED
    blocker.cancel()
    served = narrow_caller.execute(typed(digest, "add", i32(1), i32(1)))
    assert served.WhichOneof("outcome") == "completed"


@pytest.mark.parametrize("how", ["cancel", "disconnect", "deadline"])
def test_a_call_that_leaves_the_queue_frees_its_place(
    narrow: Any, narrow_caller: Caller, sink_wasm: bytes, how: str
) -> None:
    digest = narrow.push(sink_wasm)
    name = "deadline_exceeded" if how == "deadline" else "cancelled"
    blocker = narrow_caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=60_000))
    pid = busy_pid(narrow, digest)
    before = count(narrow, name)
    with contextlib.closing(narrow.channel()) as channel:
        pending = Caller(channel).sandbox.Execute.future(
            typed(digest, "add", i32(1), i32(1), wall_time_ms=60_000),
            timeout=1.0 if how == "deadline" else None,
        )
        narrow.wait_status(lambda status: status.queue.depth == 1)
        if how == "cancel":
            pending.cancel()
        elif how == "disconnect":
            channel.close()
        narrow.wait_status(lambda status: status.queue.depth == 0)
    eventually(lambda: count(narrow, name) == before + 1, f"counted as {name}")
    assert not is_gone(pid), "the call that runs is not disturbed"
    blocker.cancel()
    narrow.wait_status(lambda status: status.pool.busy == 0)


def test_a_cancelled_call_frees_its_runner_for_those_who_wait(
    narrow: Any, narrow_caller: Caller, sink_wasm: bytes
) -> None:
    digest = narrow.push(sink_wasm)
    blocker = narrow_caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=60_000))
    busy_pid(narrow, digest)
    waiting = narrow_caller.sandbox.Execute.future(typed(digest, "add", i32(20), i32(22)))
    narrow.wait_status(lambda status: status.queue.depth == 1)
    blocker.cancel()
    response = waiting.result(timeout=PATIENCE_S)
    assert response.completed.results[0].i32 == 42
    assert response.receipt.start_kind == sandbox_pb2.START_KIND_COLD


def test_a_deadline_of_zero_from_the_transport_is_no_internal_error(
    caller: Caller, sink: str
) -> None:
    for timeout in (0.0, 1e-6, 1e-3, 5e-3):
        pending = caller.sandbox.Execute.future(typed(sink, "spin"), timeout=timeout)
        code = pending.code()
        assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK), code
        if code is grpc.StatusCode.OK:
            assert pending.result().WhichOneof("outcome") == "deadline_exceeded"
