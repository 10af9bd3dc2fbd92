"""Modules that are called in a process of their own again and again are bound ahead of need."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.calls import Caller, calling, eventually, i32, refused, typed, wasi

from sandboxd.v1 import admin_pb2, sandbox_pb2

LOADED = sandbox_pb2.START_KIND_LOADED
REMEMBERS = """(module (global $g (mut i32) (i32.const 0)) (memory (export "memory") 1)
  (func (export "remember") (param i32) (result i32)
    (i32.add (global.get $g) (i32.load (i32.const 0)))
    (global.set $g (local.get 0)) (i32.store (i32.const 0) (local.get 0))))"""
LOGS_AT_START = """(module (import "env" "log" (func $log (param i32)))
  (func $s (call $log (i32.const 7))) (start $s) (func (export "f")))"""


def ahead(daemon: Any, digest: str) -> list[admin_pb2.Runner]:
    """The runners of a module that have had no call, once nothing is on its way."""
    status = daemon.wait_status(
        lambda status: (
            status.pool.starting
            == status.pool.loading
            == status.pool.busy
            == status.pool.dying
            == 0
        )
    )
    return [one for one in status.runners if one.module_digest == digest and not one.executions]


def call_until_ahead(daemon: Any, caller: Caller, request: Any, digest: str) -> None:
    for _ in range(3):
        assert caller.execute(request).WhichOneof("outcome") in ("completed", "exited")
    eventually(lambda: bool(ahead(daemon, digest)), "a runner is bound ahead")


@pytest.fixture
def quiet(start_daemon: Any) -> Any:
    """A daemon that nobody else uses."""
    with start_daemon() as running:
        yield running


def test_a_process_that_was_bound_ahead_serves_one_call(
    quiet: Any, wat: Callable[[str], bytes]
) -> None:
    digest = quiet.push(wat(REMEMBERS))
    request = typed(digest, "remember", i32(7), fresh=True)
    with calling(quiet) as caller:
        call_until_ahead(quiet, caller, request, digest)
        seen: set[int] = set()
        for _ in range(5):
            waiting = ahead(quiet, digest)
            assert 1 <= len(waiting) <= 4
            seen.update(one.pid for one in waiting)
            response = caller.execute(request)
            assert response.completed.results[0].i32 == 0, "nothing is left of another call"
            receipt = response.receipt
            assert receipt.start_kind == LOADED
            assert receipt.bind_time_ns == receipt.queue_time_ns == 0
            assert receipt.run_time_ns > 0
            assert "seccomp" in receipt.isolation_layers
        assert len(seen) >= 5, "each call had a process of its own"


def test_commands_are_bound_ahead_as_well(quiet: Any, guests: Path) -> None:
    digest = quiet.push((guests / "c" / "word_count.wasm").read_bytes())
    request = wasi(digest, stdin=b"one two", fresh=True)
    with calling(quiet) as caller:
        call_until_ahead(quiet, caller, request, digest)
        response = caller.execute(request)
    assert response.receipt.start_kind == LOADED
    assert response.exited.code == 0
    assert b"2" in response.stdout


def test_a_start_function_runs_in_its_call(quiet: Any, wat: Callable[[str], bytes]) -> None:
    digest = quiet.push(wat(LOGS_AT_START))
    request = typed(digest, "f", fresh=True)
    with calling(quiet) as caller:
        call_until_ahead(quiet, caller, request, digest)
        for _ in range(3):
            ahead(quiet, digest)
            response = caller.execute(request)
            assert response.receipt.start_kind == LOADED
            assert [entry.number.i32 for entry in response.logs.entries] == [7]


@pytest.mark.parametrize("ending", ["trapped", "deadline_exceeded"])
def test_a_module_whose_calls_end_badly_again_and_again_is_bound_ahead(
    quiet: Any, sink_wasm: bytes, ending: str
) -> None:
    digest = quiet.push(sink_wasm)
    bad = typed(digest, "trap") if ending == "trapped" else typed(digest, "spin", wall_time_ms=50)
    with calling(quiet) as caller:
        for _ in range(3):
            assert caller.execute(bad).WhichOneof("outcome") == ending
        eventually(lambda: bool(ahead(quiet, digest)), "a runner is bound ahead")
        response = caller.execute(typed(digest, "add", i32(1), i32(2)))
    assert response.receipt.start_kind == LOADED
    assert response.completed.results[0].i32 == 3


def test_a_call_that_is_stopped_in_a_process_that_was_bound_ahead_was_running(
    quiet: Any, sink_wasm: bytes
) -> None:
    digest = quiet.push(sink_wasm)
    spin = typed(digest, "spin", wall_time_ms=50, fresh=True)
    with calling(quiet) as caller:
        for _ in range(3):
            caller.execute(spin)
        eventually(lambda: bool(ahead(quiet, digest)), "a runner is bound ahead")
        response = caller.execute(spin)
    assert response.receipt.start_kind == LOADED
    assert response.deadline_exceeded.stop.stage == sandbox_pb2.STAGE_RUN


def test_a_module_whose_clients_go_away_again_and_again_is_bound_ahead(
    quiet: Any, sink_wasm: bytes
) -> None:
    digest = quiet.push(sink_wasm)
    with calling(quiet) as caller:
        for _ in range(3):
            call = caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=60_000))
            quiet.wait_status(
                lambda status: any(
                    one.state == admin_pb2.RUNNER_STATE_BUSY and one.module_digest == digest
                    for one in status.runners
                )
            )
            call.cancel()
            quiet.wait_status(lambda status: status.pool.busy == 0)
        eventually(lambda: bool(ahead(quiet, digest)), "a runner is bound ahead")


def test_limits_are_those_of_the_call(quiet: Any, wat: Callable[[str], bytes]) -> None:
    grow = wat("""(module (memory (export "memory") 1)
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))""")
    digest = quiet.push(grow)
    with calling(quiet) as caller:
        roomy = typed(digest, "grow", i32(100), fresh=True, memory_bytes=64 << 20)
        call_until_ahead(quiet, caller, roomy, digest)
        small = typed(digest, "grow", i32(100), fresh=True, memory_bytes=1 << 20)
        response = caller.execute(small)
        assert response.receipt.start_kind == LOADED
        assert response.completed.results[0].i32 == -1


def test_one_that_is_killed_is_missed_by_nobody(quiet: Any, sink_wasm: bytes) -> None:
    digest = quiet.push(sink_wasm)
    request = typed(digest, "add", i32(1), i32(2), fresh=True)
    with calling(quiet) as caller:
        call_until_ahead(quiet, caller, request, digest)
        killed = {one.pid for one in ahead(quiet, digest)}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        quiet.wait_status(lambda status: not killed & {one.pid for one in status.runners})
        assert caller.execute(request).completed.results[0].i32 == 3
        eventually(lambda: bool(ahead(quiet, digest)), "another one is bound")


def test_a_module_that_was_deleted_is_not_called(quiet: Any, sink_wasm: bytes) -> None:
    digest = quiet.push(sink_wasm)
    request = typed(digest, "add", i32(1), i32(2), fresh=True)
    with calling(quiet) as caller:
        call_until_ahead(quiet, caller, request, digest)
        caller.delete(digest)
        assert refused(caller.execute, request).reason == "MODULE_NOT_FOUND"


def test_it_can_be_switched_off(start_daemon: Any, sink_wasm: bytes) -> None:
    with start_daemon("--ahead-runners", "0") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        for _ in range(5):
            response = caller.execute(typed(digest, "add", i32(1), i32(2), fresh=True))
            assert response.receipt.start_kind != LOADED
        assert not ahead(daemon, digest)


def test_a_pool_of_two_keeps_one_if_asked_to(start_daemon: Any, sink_wasm: bytes) -> None:
    few = ("--max-runners=2", "--ahead-runners=3")
    with start_daemon(*few) as daemon, calling(daemon) as caller:
        assert daemon.log.count("--ahead-runners is 3, and 1 of them can be kept") == 1
        digest = daemon.push(sink_wasm)
        request = typed(digest, "add", i32(1), i32(2), fresh=True)
        call_until_ahead(daemon, caller, request, digest)
        for _ in range(5):
            assert len(ahead(daemon, digest)) == 1
            assert caller.execute(request).receipt.start_kind == LOADED
