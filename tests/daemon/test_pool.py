"""Real runners come and go: by count, by age, by disuse, and to make room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest
from tests.daemon.calls import Caller, calling, eventually, i32, refused, typed

from sandboxd.v1 import admin_pb2, sandbox_pb2

IDLE = admin_pb2.RUNNER_STATE_IDLE
REUSED = sandbox_pb2.START_KIND_REUSED


def add(module: str | bytes, **rest: Any) -> Any:
    return typed(module, "add", i32(1), i32(2), **rest)


def bound(daemon: Any, digest: str) -> list[int]:
    """Process ids of the runners that are bound to a module and live."""
    return [
        one.pid
        for one in daemon.status().runners
        if one.module_digest == digest and one.state != admin_pb2.RUNNER_STATE_DYING
    ]


def variants(wat: Callable[[str], bytes], count: int) -> list[bytes]:
    """Different modules with the same function."""
    return [
        wat(
            '(module (func (export "add") (param i32 i32) (result i32) '
            f"(i32.add (local.get 0) (local.get 1))) (global i32 (i32.const {number})))"
        )
        for number in range(count)
    ]


def test_a_runner_ends_after_its_executions(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon("--runner-max-executions", "10") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        seen: list[int] = []
        for _ in range(40):
            assert caller.execute(add(digest)).completed.results[0].i32 == 3
            (pid,) = bound(daemon, digest) or (0,)
            seen.append(pid)
        processes = {pid for pid in seen if pid}
        # 8 to 10 calls each.
        assert 4 <= len(processes) <= 6
        assert all(seen.count(pid) <= 10 for pid in processes)
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in processes - {seen[-1]}))


def test_a_runner_ends_at_its_age(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon("--runner-max-age", "1s") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        seen = set()

        def another() -> bool:
            assert caller.execute(add(digest)).WhichOneof("outcome") == "completed"
            seen.update(bound(daemon, digest))
            return len(seen) > 1

        eventually(another, "another process serves")


def test_an_idle_runner_ends_after_a_time(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon("--runner-idle-timeout", "1s") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        caller.execute(add(digest))
        (pid,) = bound(daemon, digest)
        eventually(lambda: not bound(daemon, digest), "the idle runner is let go")
        eventually(lambda: not psutil.pid_exists(pid))
        assert caller.execute(add(digest)).receipt.start_kind != REUSED


def test_more_modules_than_runners_take_turns(
    start_daemon: Any, wat: Callable[[str], bytes]
) -> None:
    with (
        start_daemon("--max-runners", "3", "--spare-runners", "1") as daemon,
        calling(daemon) as caller,
    ):
        digests = [daemon.push(wasm) for wasm in variants(wat, 6)]
        for _ in range(3):
            for digest in digests:
                assert caller.execute(add(digest)).completed.results[0].i32 == 3
        status = daemon.wait_status(lambda status: status.pool.dying == 0)
        assert len(status.runners) <= 3
        # The module that was used last has kept its runner.
        assert bound(daemon, digests[-1])
        assert not bound(daemon, digests[0])


def test_the_least_recently_used_module_makes_room(
    start_daemon: Any, wat: Callable[[str], bytes]
) -> None:
    with (
        start_daemon("--max-runners", "2", "--spare-runners", "0") as daemon,
        calling(daemon) as caller,
    ):
        hot, cold, new = (daemon.push(wasm) for wasm in variants(wat, 3))
        for digest in (cold, hot, new):
            caller.execute(add(digest))
        assert bound(daemon, hot)
        assert bound(daemon, new)
        assert not bound(daemon, cold)


@pytest.fixture
def one(start_daemon: Any) -> Any:
    """A daemon of one runner, with room for two calls in the queue."""
    with start_daemon(
        "--max-runners", "1", "--spare-runners", "0", "--queue-capacity", "2"
    ) as running:
        yield running


def test_a_full_queue_refuses_and_tells_when_to_retry(one: Any, sink_wasm: bytes) -> None:
    digest = one.push(sink_wasm)
    with calling(one) as caller:
        spin = typed(digest, "spin", wall_time_ms=60_000)
        blocker = caller.sandbox.Execute.future(spin)
        one.wait_status(lambda status: status.pool.busy == 1)
        waiting = [caller.sandbox.Execute.future(add(digest)) for _ in range(2)]
        one.wait_status(lambda status: status.queue.depth == 2)
        for fresh in (False, True):
            found = refused(caller.execute, add(digest, fresh=fresh))
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert found.retry_after_ms
        status = one.status()
        assert (status.queue.capacity, status.queue.refused_total) == (2, 2)
        blocker.cancel()
        assert all(call.result().WhichOneof("outcome") == "completed" for call in waiting)
        assert one.status().queue.depth == 0


def test_one_runner_serves_two_modules_in_turn(one: Any, wat: Callable[[str], bytes]) -> None:
    with calling(one) as caller:
        for _ in range(3):
            for wasm in variants(wat, 2):
                assert caller.execute(add(wasm)).completed.results[0].i32 == 3


def test_spares_come_back(daemon: Any, caller: Caller, sink: str) -> None:
    daemon.wait_status(lambda status: status.pool.spare == 4)
    for _ in range(12):
        caller.execute(add(sink, fresh=True))
    status = daemon.wait_status(
        lambda status: status.pool.spare == 4 and status.pool.dying == status.pool.busy == 0
    )
    assert status.pool.started_total - status.pool.ended_total == len(status.runners)


def test_status_describes_every_runner(daemon: Any, caller: Caller, sink: str) -> None:
    caller.execute(add(sink))
    status = daemon.wait_status(
        lambda status: status.pool.starting == status.pool.dying == status.pool.busy == 0
    )
    idle, *ahead = sorted(
        (runner for runner in status.runners if runner.state == IDLE),
        key=lambda runner: -runner.executions,
    )
    assert (idle.tenant, idle.module_digest) == ("default", sink)
    assert idle.executions >= 1
    assert len(ahead) == status.pool.ahead
    assert all((one.module_digest, one.executions) == (sink, 0) for one in ahead)
    assert idle.rss_bytes > 1 << 20
    assert idle.cpu_time_ns > 0
    spares = [runner for runner in status.runners if runner.state == admin_pb2.RUNNER_STATE_SPARE]
    assert len(spares) == status.pool.spare
    for runner in spares:
        assert (runner.tenant, runner.module_digest, runner.executions) == ("", "", 0)
    assert all(psutil.pid_exists(runner.pid) for runner in status.runners)
    assert all(0 < runner.age_ns <= status.uptime_ns for runner in status.runners)
