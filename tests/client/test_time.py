"""Timeouts, cancellation and repeats."""

from __future__ import annotations

import asyncio
import linecache
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tests.client.fake_daemon import WASM, FakeDaemon, Refusal, digest_of, happens

from sandboxd import client as api
from sandboxd.client import AsyncClient, Client, Limits

QUEUE_FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_after_ms=20)
RUNNER_LOST = Refusal(grpc.StatusCode.UNAVAILABLE, "lost", "RUNNER_LOST", retry_after_ms=20)


@pytest.mark.parametrize(
    ("limit_ms", "timeout", "sent_ms"),
    [(None, None, None), (5000, None, 5000), (None, 3.0, 3000), (5000, 3.0, 3000), (500, 3.0, 500)],
)
def test_the_daemon_hears_of_the_timeout_as_a_limit_and_the_transport_waits_longer(
    daemon: FakeDaemon,
    client: Client,
    limit_ms: int | None,
    timeout: float | None,
    sent_ms: int | None,
) -> None:
    limits = None if limit_ms is None else Limits(wall_time_ms=limit_ms)
    client.run(WASM, limits=limits, timeout=timeout)
    (seen,) = daemon.seen
    if sent_ms is None:
        assert not seen.request.limits.HasField("wall_time_ms")
        assert seen.seconds_left is None
    else:
        assert sent_ms - 1000 < seen.request.limits.wall_time_ms <= sent_ms
        assert seen.seconds_left > seen.request.limits.wall_time_ms / 1000 + 1


DO: dict[str, Callable[[Client, str, Any], object]] = {
    "execute": lambda client, digest, timeout: client.run(digest, timeout=timeout),
    "batch": lambda client, digest, timeout: client.execute_all(
        [api.BatchCall(digest, api.WasiCommand())], timeout=timeout
    ),
    "push": lambda client, _, timeout: client.push(WASM, timeout=timeout),
    "get": lambda client, digest, timeout: client.get(digest, timeout=timeout),
    "list": lambda client, _, timeout: list(client.list(timeout=timeout)),
    "status": lambda client, _, timeout: client.status(timeout=timeout),
}


@pytest.mark.parametrize("what", DO)
@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("-inf")])
def test_what_is_no_time_to_wait_is_refused_before_anything_is_sent(
    daemon: FakeDaemon, client: Client, what: str, timeout: float
) -> None:
    digest = daemon.store()
    with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
        DO[what](client, digest, timeout)
    for wrong in ("1", True):
        with pytest.raises(TypeError, match="timeout is a number of seconds"):
            DO[what](client, digest, wrong)
    assert daemon.seen == []


@pytest.mark.parametrize("what", DO)
@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400, 1e10])
def test_more_than_grpc_can_count_is_no_timeout(
    daemon: FakeDaemon, client: Client, what: str, timeout: float
) -> None:
    DO[what](client, daemon.store(), timeout)
    assert [seen.seconds_left for seen in daemon.seen] == [None]


def test_a_limit_that_grpc_cannot_count_is_the_daemons_alone(
    daemon: FakeDaemon, client: Client
) -> None:
    client.run(WASM, limits=Limits(wall_time_ms=(1 << 64) - 1))
    (seen,) = daemon.seen
    assert seen.seconds_left is None
    assert seen.request.limits.wall_time_ms == (1 << 64) - 1


def test_the_clients_own_timeout_is_looked_at_as_well() -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client("unix:///none", timeout=0)


def test_a_daemon_that_does_not_answer_is_a_deadline_fault(daemon: FakeDaemon) -> None:
    daemon.hang = True
    with Client(daemon.address, deadline_slack=0.1) as client:
        start = time.monotonic()
        with pytest.raises(api.DeadlineFault):
            client.run(WASM, timeout=0.1)
        assert time.monotonic() - start < 5
    assert daemon.cancelled.wait(5)


def test_other_methods_have_a_timeout_by_default(daemon: FakeDaemon, client: Client) -> None:
    client.status()
    client.status(timeout=7)
    default, named = (seen.seconds_left for seen in daemon.seen)
    assert default is not None
    assert 20 < default < 31
    assert named is not None
    assert 0 < named < 8


async def test_cancelling_a_task_cancels_the_call(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    loop_daemon.hang = True
    task = asyncio.create_task(async_client.run(WASM))
    assert await happens(loop_daemon.started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await happens(loop_daemon.cancelled)


async def test_an_asyncio_timeout_cancels_the_call(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    loop_daemon.hang = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await async_client.run(WASM)
    assert await happens(loop_daemon.cancelled)


def _waits_for_the_answer(thread: int) -> bool:
    """Whether gRPC waits in this thread.

    No other thread sees the line before it does: between its start and the wait the interpreter
    lets nobody in.
    """
    frame = sys._current_frames()[thread]
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return "call.next_event()" in line or "condition.wait(" in line


@pytest.mark.parametrize("what", ["execute", "push"])
def test_ctrl_c_cancels_the_call(daemon: FakeDaemon, client: Client, what: str) -> None:
    daemon.hang = True
    done = threading.Event()
    caller = threading.get_ident()

    def endless() -> Iterator[bytes]:
        yield WASM
        done.wait(30)

    act: Callable[[], object] = (
        (lambda: client.run(WASM)) if what == "execute" else (lambda: client.push(endless()))
    )

    def interrupt() -> None:
        assert daemon.started.wait(20)
        while what == "execute" and not _waits_for_the_answer(caller):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            act()
        assert daemon.cancelled.wait(20)
    finally:
        done.set()
        thread.join()


class _Interrupted:
    """A Ctrl-C that comes when gRPC has started a call and has not returned it yet."""

    def __init__(self, method: Any, daemon: FakeDaemon) -> None:
        self._method = method
        self._daemon = daemon
        self.lost: list[Any] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # As a blocking call begins, but for the wait.
        return self.future(*arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        lost = self._method.future(*arguments, **options)
        self._daemon.started.wait(1)
        self.lost.append(lost)
        raise KeyboardInterrupt


def test_a_push_that_is_interrupted_while_it_starts_sends_nothing(
    daemon: FakeDaemon, client: Client
) -> None:
    threads = threading.active_count()
    interrupted: Any = _Interrupted(client._push, daemon)
    client._push = interrupted
    with pytest.raises(KeyboardInterrupt):
        client.push(WASM)
    interrupted.lost[0].exception(20)  # it ends, though nobody could cancel it
    assert not daemon.started.is_set()
    assert not daemon.modules.keys() & {digest_of(WASM)}
    while threading.active_count() > threads:  # nothing waits for ever
        time.sleep(0.01)


def test_a_call_that_is_interrupted_while_it_starts_ends_with_the_client(
    daemon: FakeDaemon,
) -> None:
    daemon.hang = True
    client = Client(daemon.address)
    interrupted: Any = _Interrupted(client._methods["Execute"], daemon)
    client._methods["Execute"] = interrupted
    with pytest.raises(KeyboardInterrupt), client:
        client.run(WASM)
    assert daemon.started.is_set()
    assert daemon.cancelled.wait(20)


def test_nothing_is_repeated_by_default(daemon: FakeDaemon, client: Client) -> None:
    daemon.refusals["Execute"].append(QUEUE_FULL)
    with pytest.raises(api.QueueFull):
        client.run(WASM)
    assert len(daemon.requests("Execute")) == 1


def test_a_refused_call_is_repeated_when_asked_for(daemon: FakeDaemon) -> None:
    daemon.refusals["Execute"].extend([QUEUE_FULL, QUEUE_FULL])
    with Client(daemon.address, retries=2) as client:
        start = time.monotonic()
        client.run(WASM).check()
        assert time.monotonic() - start >= 0.04
    assert len(daemon.requests("Execute")) == 3


async def test_asyncio_repeats_too(loop_daemon: FakeDaemon) -> None:
    loop_daemon.refusals["Execute"].append(QUEUE_FULL)
    async with AsyncClient(loop_daemon.address, retries=1) as client:
        (await client.run(WASM)).check()
    assert len(loop_daemon.requests("Execute")) == 2


def test_repeats_come_to_an_end(daemon: FakeDaemon) -> None:
    daemon.refusals["Execute"].extend([QUEUE_FULL] * 5)
    with Client(daemon.address, retries=2) as client, pytest.raises(api.QueueFull):
        client.run(WASM)
    assert len(daemon.requests("Execute")) == 3


def test_a_call_that_may_have_run_is_not_repeated(daemon: FakeDaemon) -> None:
    daemon.refusals["Execute"].append(RUNNER_LOST)
    daemon.refusals["Get"].append(RUNNER_LOST)
    with Client(daemon.address, retries=2) as client:
        with pytest.raises(api.RunnerLost):
            client.run(WASM)
        client.get(daemon.store())  # Harmless to repeat.
    assert len(daemon.requests("Execute")) == 1
    assert len(daemon.requests("Get")) == 2


def test_a_fault_without_a_time_to_come_back_is_not_repeated(daemon: FakeDaemon) -> None:
    daemon.refusals["Get"].append(Refusal(grpc.StatusCode.UNAVAILABLE, "bye", "SHUTTING_DOWN"))
    with Client(daemon.address, retries=2) as client, pytest.raises(api.ShuttingDown):
        client.get(daemon.store())


def test_no_repeat_starts_after_the_timeout(daemon: FakeDaemon) -> None:
    slow = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "", "QUEUE_FULL", retry_after_ms=60_000)
    daemon.refusals["Execute"].append(slow)
    with Client(daemon.address, retries=5) as client:
        start = time.monotonic()
        with pytest.raises(api.QueueFull):
            client.run(WASM, timeout=5)
        assert time.monotonic() - start < 3


def test_a_push_of_an_iterator_is_not_repeated(daemon: FakeDaemon) -> None:
    daemon.refusals["Push"].extend([QUEUE_FULL, QUEUE_FULL])
    with Client(daemon.address, retries=1) as client:
        with pytest.raises(api.QueueFull):
            client.push(iter([WASM]))
        assert client.push(WASM).created
    assert len(daemon.requests("Push")) == 3
