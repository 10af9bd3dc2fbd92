"""Compiled modules on disk, with a real daemon: used after a restart, and only if untouched."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest
from tests.conftest import DaemonProcess

from sandboxd.v1 import (
    admin_pb2,
    call_pb2,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)

StartDaemon = Callable[..., AbstractContextManager[DaemonProcess]]


def add(daemon: DaemonProcess, fuel: int | None = None, **module: object) -> int:
    """Call the module's `add`; return the nanoseconds that were spent on compiling."""
    request = sandbox_pb2.ExecuteRequest(
        typed=call_pb2.TypedCall(
            export="add", args=[call_pb2.Value(i32=40), call_pb2.Value(i32=2)]
        ),
        limits=sandbox_pb2.Limits(fuel=fuel),
        **module,  # type: ignore[arg-type]
    )
    with daemon.channel() as channel:
        response = sandbox_pb2_grpc.SandboxServiceStub(channel).Execute(request, timeout=30)
    assert response.completed.results[0].i32 == 42, response
    return response.receipt.compile_time_ns


def artifacts(daemon: DaemonProcess) -> admin_pb2.ArtifactStatus:
    return daemon.status().artifacts


def file_of(daemon: DaemonProcess, digest: str, variant: str = "plain") -> Path:
    name = f"{digest.removeprefix('sha256:')}.{variant}"
    return daemon.state_dir / "artifacts" / "default" / name


def files(daemon: DaemonProcess) -> list[str]:
    return sorted(path.name for path in (daemon.state_dir / "artifacts").rglob("*.*"))


@pytest.fixture(scope="module")
def shared(start_daemon: StartDaemon) -> Iterator[DaemonProcess]:
    with start_daemon("--spare-runners=1", "--max-runners=4") as daemon:
        yield daemon


@pytest.fixture
def running(shared: DaemonProcess) -> DaemonProcess:
    """The daemon of all tests, without any module."""
    if shared.process is None or shared.process.poll() is not None:
        shared.restart()
    with shared.channel() as channel:
        stub = module_pb2_grpc.ModuleServiceStub(channel)
        for module in stub.List(module_pb2.ListRequest(), timeout=10).modules:
            stub.Delete(module_pb2.DeleteRequest(digest=module.digest), timeout=10)
    assert not files(shared)
    return shared


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_after_a_restart_nothing_is_compiled(
    running: DaemonProcess, sink_wasm: bytes, end: str
) -> None:
    before = artifacts(running).compiled_total
    digest = running.push(sink_wasm)
    assert artifacts(running).compiled_total == before + 1
    getattr(running, end)()
    running.restart()
    assert add(running, digest=digest) == 0
    counts = artifacts(running)
    assert (counts.compiled_total, counts.loaded_total, counts.rejected_total) == (0, 1, 0)
    assert (counts.cached, counts.stored) == (1, 1)
    assert counts.stored_bytes > 0
    assert counts.cache_bytes > 0


def test_a_second_push_after_a_restart_compiles_nothing(
    running: DaemonProcess, sink_wasm: bytes
) -> None:
    running.push(sink_wasm)
    running.stop()
    running.restart()
    running.push(sink_wasm)
    assert artifacts(running).compiled_total == 0


def test_the_metered_variant_is_kept_too(running: DaemonProcess, sink_wasm: bytes) -> None:
    digest = running.push(sink_wasm)
    assert add(running, fuel=10**6, digest=digest) > 0
    running.wait_status(lambda status: status.artifacts.stored == 2)
    running.stop()
    running.restart()
    assert add(running, fuel=10**6, digest=digest) == 0
    assert add(running, digest=digest) == 0


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    with open(file, "r+b") as opened:
        opened.write(data)


def truncate(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(1000)


def open_to_others(file: Path) -> None:
    file.chmod(0o666)


@pytest.mark.parametrize("damage", [flip, truncate, open_to_others])
def test_a_bad_file_costs_a_compilation_and_is_told(
    running: DaemonProcess, sink_wasm: bytes, damage: Callable[[Path], None]
) -> None:
    digest = running.push(sink_wasm)
    running.stop()
    damage(file_of(running, digest))
    running.restart()
    assert add(running, digest=digest) > 0
    counts = running.wait_status(lambda status: status.artifacts.stored == 1).artifacts
    assert (counts.compiled_total, counts.loaded_total, counts.rejected_total) == (1, 0, 1)
    assert "is not used and is removed" in running.log
    # And it is whole again.
    running.stop()
    running.restart()
    assert add(running, digest=digest) == 0


def test_swapped_files_of_two_modules_are_refused(
    running: DaemonProcess, sink_wasm: bytes, wat: Callable[[str], bytes]
) -> None:
    wrong = wat('(module (func (export "add") (param i32 i32) (result i32) (i32.const 666)))')
    digest, other = running.push(sink_wasm), running.push(wrong)
    running.stop()
    one, two = file_of(running, digest), file_of(running, other)
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)
    running.restart()
    assert add(running, digest=digest) > 0
    assert artifacts(running).rejected_total == 1


def test_a_secret_that_others_could_read_is_replaced(
    running: DaemonProcess, sink_wasm: bytes
) -> None:
    digest = running.push(sink_wasm)
    running.stop()
    secret = running.state_dir / "secret"
    before = secret.read_bytes()
    secret.chmod(0o644)
    running.restart()
    assert "is not used and is replaced: its mode is 0644" in running.log
    assert secret.read_bytes() != before
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert add(running, digest=digest) > 0
    assert artifacts(running).rejected_total == 1


def test_deleting_a_module_removes_its_artifacts(running: DaemonProcess, sink_wasm: bytes) -> None:
    digest = running.push(sink_wasm)
    add(running, fuel=10**6, digest=digest)
    running.wait_status(lambda status: status.artifacts.stored == 2)
    with running.channel() as channel:
        module_pb2_grpc.ModuleServiceStub(channel).Delete(
            module_pb2.DeleteRequest(digest=digest), timeout=10
        )
    assert files(running) == []
    assert artifacts(running).stored == 0


def test_an_inline_module_leaves_no_trace(running: DaemonProcess, sink_wasm: bytes) -> None:
    assert add(running, wasm=sink_wasm) > 0
    assert files(running) == []
    running.stop()
    assert files(running) == []


def test_a_refused_module_leaves_no_trace(running: DaemonProcess) -> None:
    with pytest.raises(grpc.RpcError):
        running.push(b"\0asm\x01\0\0\0\x01")
    assert files(running) == []


def test_without_disk_space_modules_are_compiled_after_a_restart(
    start_daemon: StartDaemon, sink_wasm: bytes
) -> None:
    with start_daemon("--artifact-disk=0", "--spare-runners=1") as daemon:
        digest = daemon.push(sink_wasm)
        assert files(daemon) == []
        daemon.stop()
        daemon.restart()
        assert add(daemon, digest=digest) > 0


def test_nothing_of_it_is_open_to_others(running: DaemonProcess, sink_wasm: bytes) -> None:
    digest = running.push(sink_wasm)
    for path in (running.state_dir / "secret", file_of(running, digest)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == running.status().host.supervisor_uid
