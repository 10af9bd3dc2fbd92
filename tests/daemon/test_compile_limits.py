"""Modules made to cost: each ends at a limit that is named, and nobody else notices."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.conftest import DaemonProcess
from tests.runner.modules import branches, empty_functions, functions

from sandboxd.v1 import call_pb2, module_pb2, module_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc

StartDaemon = Callable[..., AbstractContextManager[DaemonProcess]]
SMALL = ("--spare-runners=1", "--max-runners=4")
# About seven seconds of a slow machine's processor, within every limit of the shape.
SLOW = branches(500 << 10)


def refused(daemon: DaemonProcess, wasm: bytes) -> dict[str, str]:
    """Push a module that is too complex; return the metadata of the verdict."""
    with pytest.raises(grpc.RpcError) as caught:
        daemon.push(wasm)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "MODULE_TOO_COMPLEX", info
    return dict(info.metadata)


@pytest.mark.parametrize(
    ("arguments", "wasm", "expected"),
    [
        (["--compile-wall-time=300ms"], SLOW, {"limit": "wall_time", "maximum": "300"}),
        (["--compile-cpu-time=1s"], SLOW, {"limit": "cpu_time", "maximum": "1000"}),
        (["--compile-memory=8MiB"], SLOW, {"limit": "memory", "maximum": str(8 << 20)}),
        (
            ["--compile-memory=64MiB"],
            empty_functions(50_000),
            {"limit": "memory", "maximum": str(64 << 20)},
        ),
    ],
    ids=["wall time", "CPU time", "no memory to begin with", "memory"],
)
def test_a_limit_of_the_process_is_named_with_its_maximum(
    start_daemon: StartDaemon, arguments: list[str], wasm: bytes, expected: dict[str, str]
) -> None:
    with start_daemon(*SMALL, *arguments) as daemon:
        assert refused(daemon, wasm) == expected
        assert daemon.wait_status(lambda status: status.compiling == 0)


def test_an_artifact_that_is_too_large_is_named_with_its_size(start_daemon: StartDaemon) -> None:
    with start_daemon(*SMALL, "--max-artifact=20KiB") as daemon:
        daemon.push(empty_functions(10))
        metadata = refused(daemon, empty_functions(1000))
    assert (metadata["limit"], metadata["maximum"]) == ("artifact_size", str(20 << 10))
    assert int(metadata["actual"]) > 20 << 10


@pytest.fixture(scope="module")
def impatient(start_daemon: StartDaemon) -> Iterator[DaemonProcess]:
    with start_daemon(*SMALL, "--compile-wall-time=3s") as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("wasm", "limit"),
    [
        (empty_functions(1_000_000), "functions"),
        (functions([b"\0" + b"\x01" * 2_700_000]), "function_bytes"),
        (functions([b"\x01\xff\xff\xff\xff\x0f\x7f"]), "locals"),
    ],
    ids=["a million functions", "one huge function", "four billion locals"],
)
def test_a_bad_shape_is_refused_before_it_costs_anything(
    impatient: DaemonProcess, wasm: bytes, limit: str
) -> None:
    started = time.monotonic()
    metadata = refused(impatient, wasm)
    assert metadata["limit"] == limit
    assert int(metadata["actual"]) > int(metadata["maximum"])
    assert time.monotonic() - started < 3


def test_while_a_compiler_is_busy_calls_run_and_another_push_gets_its_turn(
    impatient: DaemonProcess, sink_wasm: bytes, wat: Callable[[str], bytes]
) -> None:
    call = sandbox_pb2.ExecuteRequest(
        digest=impatient.push(sink_wasm),
        typed=call_pb2.TypedCall(export="add", args=[call_pb2.Value(i32=1), call_pb2.Value(i32=2)]),
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool, impatient.channel() as channel:
        bomb = pool.submit(refused_or_slow, impatient, SLOW)
        impatient.wait_status(lambda status: status.compiling == 1)
        other = pool.submit(impatient.push, wat('(module (func (export "late")))'))
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        answered = 0
        while impatient.status().compiling and answered < 50:
            assert stub.Execute(call, timeout=5).HasField("completed")
            answered += 1
        assert answered == 50, "calls waited for the compiler"
        bomb.result(30)
        assert other.result(30)


def refused_or_slow(daemon: DaemonProcess, wasm: bytes) -> None:
    """Push a module that takes seconds; on a fast machine it may even pass."""
    with contextlib.suppress(grpc.RpcError):
        daemon.push(wasm)


def test_a_client_that_goes_away_takes_its_compilation_along(impatient: DaemonProcess) -> None:
    other = SLOW + b"\0\x02\x01x"  # another digest
    with impatient.channel() as channel:
        chunks = [module_pb2.PushRequest(chunk=other)]
        push = module_pb2_grpc.ModuleServiceStub(channel).Push.future(iter(chunks), timeout=60)
        impatient.wait_status(lambda status: status.compiling == 1)
        push.cancel()
        impatient.wait_status(lambda status: status.compiling == 0, timeout_s=3)
