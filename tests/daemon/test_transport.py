"""The daemon as a server: hostile bytes, standard services, its socket, its start and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.daemon.calls import (
    PATIENCE_S,
    Caller,
    calling,
    eventually,
    i32,
    refusal,
    refused,
    typed,
)
from tests.hostile import http2

from sandboxd.client import Client, CutOff, Limits
from sandboxd.supervisor.services.hardening import MAX_STREAMS
from sandboxd.v1 import admin_pb2, sandbox_pb2

T = TypeVar("T")
OURS = ["sandboxd.v1.AdminService", "sandboxd.v1.ModuleService", "sandboxd.v1.SandboxService"]
STANDARD = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def every_method() -> Iterator[tuple[str, bool, bool]]:
    """Path, and whether requests and responses are streams, of every method of every service."""
    pool = descriptor_pool.Default()
    assert reflection_pb2.DESCRIPTOR
    assert admin_pb2.DESCRIPTOR
    for name in OURS + STANDARD:
        for method in pool.FindServiceByName(name).methods:
            yield f"/{name}/{method.name}", method.client_streaming, method.server_streaming


def send_raw(channel: grpc.Channel, method: tuple[str, bool, bool], *messages: bytes) -> Any:
    """Send bytes as they are, and wait for the end."""
    path, streams_in, streams_out = method
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    call: Any = kinds[streams_in, streams_out](path)
    answer = call(iter(messages) if streams_in else messages[0], timeout=PATIENCE_S)
    return list(answer) if streams_out else answer


MALFORMED = [
    b"\xff" * 20,
    b"\x0a\x05abc",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0b",
]


@pytest.mark.parametrize("method", list(every_method()), ids=lambda method: method[0])
def test_bytes_that_are_no_message_are_the_clients_fault_on_every_method(
    caller: Caller, method: tuple[str, bool, bool]
) -> None:
    for garbage in MALFORMED:
        found = refused(send_raw, caller.channel, method, garbage)
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, (garbage, found)
        assert found.reason == "MALFORMED_MESSAGE"


def test_text_that_is_not_utf_8_is_the_clients_fault(caller: Caller) -> None:
    for name in ("ModuleService/Get", "ModuleService/Delete", "SandboxService/Execute"):
        method = (f"/sandboxd.v1.{name}", False, False)
        found = refused(send_raw, caller.channel, method, b"\x0a\x02\xff\xfe")
        assert found.reason == "MALFORMED_MESSAGE"


def test_bytes_that_are_no_message_in_the_middle_of_a_push_are_refused(
    daemon: Any, caller: Caller
) -> None:
    method = ("/sandboxd.v1.ModuleService/Push", True, False)
    chunk = b"\x12\x08\0asm\x01\0\0\0"
    found = refused(send_raw, caller.channel, method, chunk, b"\xff")
    assert found.reason == "MALFORMED_MESSAGE"
    eventually(lambda: not list((daemon.state_dir / "incoming").iterdir()))


def test_nothing_of_that_was_an_internal_error(daemon: Any) -> None:
    assert not [entry for entry in daemon.status().outcomes if entry.name == "INTERNAL"]


@pytest.mark.parametrize(
    "path", ["/sandboxd.v1.SandboxService/Nothing", "/no.Such/Thing", "/", "/a/b/c"]
)
def test_an_unknown_method_is_unimplemented(caller: Caller, path: str) -> None:
    found = refused(send_raw, caller.channel, (path, False, False), b"")
    assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_oversized_metadata_is_refused_and_the_connection_lives(
    daemon: Any, caller: Caller, sink: str
) -> None:
    request = typed(sink, "add", i32(1), i32(2))
    with pytest.raises(grpc.RpcError) as caught:
        caller.sandbox.Execute(request, metadata=[("x", "y" * 20_000)], timeout=PATIENCE_S)
    assert refusal(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caller.execute(request).completed.results[0].i32 == 3


def test_a_flood_of_cancelled_calls_leaves_nothing_behind(
    daemon: Any, caller: Caller, sink: str
) -> None:
    with calling(daemon) as flooding:
        for _ in range(300):
            flooding.sandbox.Execute.future(typed(sink, "spin", wall_time_ms=60_000)).cancel()
    daemon.wait_status(
        lambda status: status.queue.depth == status.pool.busy == status.pool.dying == 0, 30.0
    )
    assert caller.execute(typed(sink, "add", i32(1), i32(2))).completed.results[0].i32 == 3


# --- standard services ----------------------------------------------------------------------------


def check_health(channel: grpc.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return int(stub.Check(request, timeout=PATIENCE_S).status)


def test_health_tells_that_every_service_serves(caller: Caller) -> None:
    for service in ("", *OURS):
        assert check_health(caller.channel, service) == SERVING
    found = refused(check_health, caller.channel, "no.Such")
    assert found.code is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_describes_them(caller: Caller) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=OURS[2]),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=PATIENCE_S)
    names = {service.name for service in listed.list_services_response.service}
    assert names == {*OURS, *STANDARD}
    assert described.file_descriptor_response.file_descriptor_proto


def test_open_streams_are_bounded_the_oldest_one_ends_and_calls_go_on(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon() as daemon, calling(daemon) as hog, calling(daemon) as caller:
        hogging: Any = health_pb2_grpc.HealthStub(hog.channel)
        watches = [hogging.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_STREAMS)]
        assert [next(watch).status for watch in watches] == [SERVING] * MAX_STREAMS
        # Somebody else can watch nevertheless, and reflect.
        stub: Any = health_pb2_grpc.HealthStub(caller.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        reflected = reflection_pb2.ServerReflectionRequest(list_services="")
        reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
        assert next(reflecting.ServerReflectionInfo(iter([reflected])))
        # Which were the oldest, the order of their arrival decided. The others go on.
        eventually(lambda: sum(one.done() for one in watches) == 2)
        for ended in watches:
            if ended.done():
                found = refused(next, ended)
                assert (found.code.name, found.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                assert found.retry_after_ms
        sum_of = caller.execute(typed(sink_wasm, "add", i32(1), i32(2))).completed.results[0].i32
        assert sum_of == 3
        assert not watch.done()


def test_a_watch_whose_client_takes_no_bytes_holds_up_neither_others_nor_the_end(
    start_daemon: Any,
) -> None:
    headers = http2.call_headers(b"/grpc.health.v1.Health/Watch")
    asks = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers)
    asks += http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(5))

    def is_being_answered(connection: http2.Connection) -> bool:
        connection.drain()
        return any(kind == http2.HEADERS for kind, *_ in connection.frames())

    with (
        start_daemon() as daemon,
        http2.Connection(str(daemon.socket), window=0) as deaf,
        calling(daemon) as caller,
    ):
        deaf.send(asks)
        eventually(lambda: is_being_answered(deaf))
        stub: Any = health_pb2_grpc.HealthStub(caller.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == SERVING
        daemon.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert daemon.process.wait(PATIENCE_S) == 0


def test_idle_connections_do_not_take_the_descriptors_of_calls(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    few = ("prlimit", "--nofile=320")
    with start_daemon("--max-runners", "4", host=few) as daemon, calling(daemon) as caller:
        assert "RLIMIT_NOFILE" in daemon.log
        digest = daemon.push(sink_wasm)
        running = caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=3000))
        with contextlib.ExitStack() as idle:
            for _ in range(400):
                connection = idle.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(daemon.socket))
                with contextlib.suppress(OSError):  # one too many: it was closed at once
                    connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
            for _ in range(5):
                fresh = typed(digest, "add", i32(1), i32(2))
                fresh.process = sandbox_pb2.PROCESS_POLICY_FRESH
                assert caller.execute(fresh).completed.results[0].i32 == 3
            assert running.result().WhichOneof("outcome") == "deadline_exceeded"
        # Who was kept out can connect, once the daemon has seen the others go.
        status = eventually(lambda: answered(daemon.status), "there is room again")
        assert status.pool.zygote_starts_total == 1


def answered(call: Callable[[], T]) -> T | None:
    """What a call returns; None if the daemon has no room for its connection."""
    try:
        return call()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - any other is a failure
        return None


# --- the socket -----------------------------------------------------------------------------------


def test_the_socket_is_for_owner_and_group(daemon: Any) -> None:
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o660
    assert stat.S_IMODE(os.stat(daemon.state_dir).st_mode) == 0o700


def start_another(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-m", "sandboxd.supervisor.main", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_second_daemon_refuses_the_state_directory_and_the_socket(
    daemon: Any, tmp_path: Path, caller: Caller, sink: str
) -> None:
    mine, theirs = f"unix://{tmp_path}/s", f"unix://{daemon.socket}"
    for listen, state, hint in (
        (mine, daemon.state_dir, "--state-dir"),
        (theirs, tmp_path / "state", "--listen"),
    ):
        ended = start_another("--listen", listen, "--state-dir", str(state))
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith("sandboxd: another ")
        assert hint in ended.stderr
        assert "Traceback" not in ended.stderr
    assert caller.execute(typed(sink, "add", i32(1), i32(2))).completed.results[0].i32 == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--state-dir", "/proc/nothing"], "--state-dir"),
        # A fact of the host, which may have it later: no bad usage.
        (["--socket-group", "no-such-group"], "no-such-group"),
        (["--uid-base", "4294967290"], "--uid-base"),
    ],
    ids=["state", "group", "uid"],
)
def test_a_daemon_that_cannot_start_says_why_and_ends_with_1(
    tmp_path: Path, arguments: list[str], word: str
) -> None:
    if "--uid-base" in arguments and os.geteuid() != 0:
        pytest.skip("user ids are taken by root only")
    base = ["--listen", f"unix://{tmp_path}/s", "--state-dir", str(tmp_path / "state")]
    kept = [] if "--listen" in arguments else base[:2]
    kept += [] if "--state-dir" in arguments else base[2:]
    ended = start_another(*kept, *arguments)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("sandboxd: ")
    assert word in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "s").exists()


# --- the end --------------------------------------------------------------------------------------


@pytest.fixture
def ending(start_daemon: Any) -> Any:
    """A daemon that the test stops; its drain is longer than the test may take."""
    with start_daemon("--drain", "100s") as running:
        yield running


def refuses(daemon: Any, request: Any) -> bool:
    try:
        with calling(daemon) as caller:
            caller.execute(request, timeout=5)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_a_stop_drains_the_running_call_and_ends_with_0(ending: Any, sink_wasm: bytes) -> None:
    digest = ending.push(sink_wasm)
    with calling(ending) as caller:
        watch: Any = health_pb2_grpc.HealthStub(caller.channel)
        health = watch.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(health).status == SERVING
        pending = caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=2500))
        ending.wait_status(lambda status: status.pool.busy == 1)
        ending.process.send_signal(signal.SIGTERM)
        assert next(health).status == NOT_SERVING
        assert refuses(ending, typed(digest, "add", i32(1), i32(2)))
        response = pending.result()
        assert response.deadline_exceeded.stop.frames, response
        # Whoever only watches the health does not hold up the end.
        assert ending.process.wait(30) == 0
    # Once root is given up, a socket in root's directory stays; nobody answers there.
    assert os.geteuid() == 0 or not ending.socket.exists()


def test_a_second_signal_ends_the_drain_at_once(ending: Any, sink_wasm: bytes) -> None:
    digest = ending.push(sink_wasm)
    with calling(ending) as caller:
        pending = caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=200_000))
        ending.wait_status(lambda status: status.pool.busy == 1)
        ending.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in ending.log)
        time.sleep(0.3)
        assert ending.process.poll() is None, "the call is still running"
        ending.process.send_signal(signal.SIGTERM)
        found = refused(pending.result)
        assert ending.process.wait(30) == 0
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "CUT_OFF")
        assert not found.retry_after_ms, "the guest ran: this is no refusal"


def test_a_guest_that_outlives_the_drain_is_cut_off_and_not_repeated(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with (
        start_daemon("--drain", "300ms") as ending,
        Client(f"unix://{ending.socket}", retries=3) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        digest = ending.push(sink_wasm)
        pending = pool.submit(client.call, digest, "spin", limits=Limits(wall_time_ms=20_000))
        ending.wait_status(lambda status: status.pool.busy == 1)
        ending.process.send_signal(signal.SIGTERM)
        with pytest.raises(CutOff) as caught:
            pending.result(30)
        assert not caught.value.refused
        assert caught.value.retry_after is None
        assert ending.process.wait(30) == 0


def test_who_waits_in_the_queue_is_refused_when_the_daemon_stops(
    start_daemon: Any, sink_wasm: bytes
) -> None:
    with start_daemon("--max-runners", "1", "--spare-runners", "0") as daemon:
        digest = daemon.push(sink_wasm)
        with calling(daemon) as caller:
            running = caller.sandbox.Execute.future(typed(digest, "spin", wall_time_ms=2000))
            daemon.wait_status(lambda status: status.pool.busy == 1)
            waiting = caller.sandbox.Execute.future(typed(digest, "add", i32(1), i32(2)))
            daemon.wait_status(lambda status: status.queue.depth == 1)
            daemon.process.send_signal(signal.SIGTERM)
            found = refused(waiting.result)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert found.retry_after_ms
            assert running.result().WhichOneof("outcome") == "deadline_exceeded"
