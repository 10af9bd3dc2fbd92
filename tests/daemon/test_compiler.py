"""The compiler's certain end: its limits, its death, and nobody left who wants its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest
from tests.daemon.calls import Caller, calling, eventually, i32, parts, refused, typed


def compiler(daemon: Any) -> psutil.Process:
    """The process that compiles now, once there is one: not a runner, and below the zygote."""

    def find() -> psutil.Process | None:
        status = daemon.status()
        if not status.compiling:
            return None
        others = {runner.pid for runner in status.runners} | {status.zygote_pid}
        inner = psutil.Process(status.zygote_pid).children()
        below = [child for one in inner for child in one.children() if child.pid not in others]
        # A runner that was forked in between has used next to no CPU time.
        busy = [child for child in below if sum(child.cpu_times()[:2]) > 0.1]
        return busy[0] if len(busy) == 1 else None

    found = eventually(find, "a compiler is at work")
    assert isinstance(found, psutil.Process)
    return found


def is_idle(daemon: Any) -> bool:
    return bool(daemon.status().compiling == 0)


LIMITS = [
    ("--compile-memory", "150MiB", "memory"),
    ("--compile-wall-time", "500ms", "wall_time"),
    ("--compile-cpu-time", "1s", "cpu_time"),
    ("--max-artifact", "200KiB", "artifact_size"),
]


@pytest.mark.parametrize(("flag", "value", "limit"), LIMITS)
def test_a_limit_of_the_compiler_refuses_the_module_and_is_named(
    start_daemon: Any, slow_wasm: bytes, sink_wasm: bytes, flag: str, value: str, limit: str,
    many_functions: Callable[[int], bytes],
) -> None:  # fmt: skip
    wasm = many_functions(5000) if flag == "--max-artifact" else slow_wasm
    with (
        start_daemon(flag, value, "--default-wall-time", "60s") as daemon,
        calling(daemon) as caller,
    ):
        for call in (lambda: caller.push(wasm), lambda: caller.execute(typed(wasm, "f", i32(1)))):
            found = refused(call)
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT
            assert found.reason == "MODULE_TOO_COMPLEX", found
            assert (found.metadata or {}).get("limit") == limit, found
            assert found.retry_after_ms is None
        assert daemon.status().modules == 0
        assert is_idle(daemon)
        # A module that fits is compiled as ever.
        digest = caller.push(sink_wasm).module.digest
        assert caller.execute(typed(digest, "add", i32(1), i32(2))).completed.results[0].i32 == 3


def test_a_killed_compiler_is_a_retryable_fault(
    daemon: Any, caller: Caller, slow_wasm: bytes, sink: str
) -> None:
    pending = caller.modules.Push.future(iter(parts(slow_wasm)), timeout=60)
    compiler(daemon).send_signal(signal.SIGKILL)
    found = refused(pending.result)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "COMPILER_LOST")
    assert found.retry_after_ms
    assert caller.execute(typed(sink, "add", i32(1), i32(2))).completed.results[0].i32 == 3


def test_a_compiler_that_stops_itself_ends_at_its_wall_time(
    start_daemon: Any, slow_wasm: bytes
) -> None:
    with start_daemon("--compile-wall-time", "1s") as daemon, calling(daemon) as caller:
        pending = caller.modules.Push.future(iter(parts(slow_wasm)), timeout=60)
        process = compiler(daemon)
        os.kill(process.pid, signal.SIGSTOP)
        found = refused(pending.result)
        assert (found.metadata or {}).get("limit") == "wall_time"
        eventually(lambda: not process.is_running())


def test_the_last_one_who_gives_up_ends_the_compiler(
    daemon: Any, caller: Caller, slow_wasm: bytes
) -> None:
    first, second = (
        caller.modules.Push.future(iter(parts(slow_wasm)), timeout=60) for _ in range(2)
    )
    process = compiler(daemon)
    first.cancel()
    eventually(lambda: len(list((daemon.state_dir / "incoming").iterdir())) == 1)
    assert process.is_running()
    assert daemon.status().compiling == 1
    second.cancel()
    eventually(lambda: not process.is_running(), "the compiler is gone")
    eventually(lambda: is_idle(daemon), "no compilation is left")
    assert caller.list().modules == [] or daemon.status().modules == 1


def test_calls_go_on_while_a_module_compiles(
    daemon: Any, caller: Caller, slow_wasm: bytes, sink: str
) -> None:
    pending = caller.modules.Push.future(iter(parts(slow_wasm)), timeout=60)
    compiler(daemon)
    for _ in range(20):
        assert caller.execute(typed(sink, "add", i32(1), i32(2))).completed.results[0].i32 == 3
    assert daemon.status().compiling == 1
    pending.cancel()
    eventually(lambda: is_idle(daemon))


def test_modules_wait_in_turn_for_a_single_compiler(
    start_daemon: Any, many_functions: Callable[[int], bytes], slow_wasm: bytes
) -> None:
    with (
        start_daemon("--compilers", "1", "--compile-queue", "2") as daemon,
        calling(daemon) as caller,
    ):
        slow = caller.modules.Push.future(iter(parts(slow_wasm)), timeout=60)
        compiler(daemon)
        pushes = [
            caller.modules.Push.future(iter(parts(many_functions(count))), timeout=60)
            for count in (10, 11, 12)
        ]
        eventually(lambda: sum(push.done() for push in pushes) == 2, "two are refused")
        (waiting,) = [push for push in pushes if not push.done()]
        for push in pushes:
            if push is not waiting:
                found = refused(push.result)
                assert (found.reason, bool(found.retry_after_ms)) == ("QUEUE_FULL", True)
        slow.cancel()
        assert waiting.result().created
