"""Pushing, listing, getting, deleting; the status."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.client.fake_daemon import CREATED_S, I32, WASM, FakeDaemon, digest_of, function

from sandboxd import client as api
from sandboxd.client import AsyncClient, Client, ValueType
from sandboxd.v1 import admin_pb2, call_pb2


def test_pushing_returns_the_interface(daemon: FakeDaemon, client: Client) -> None:
    daemon.imports = [function("log", [I32], [], module="env")]
    result = client.push(WASM)
    assert result.created
    assert result.compile_time_ns == 12_000_000
    assert result.module.digest == digest_of(WASM) == api.digest_of(WASM)
    assert result.module.create_time == datetime.fromtimestamp(CREATED_S, UTC)
    (log,) = result.module.imports
    assert (log.module, log.name, log.kind) == ("env", "log", api.ExternKind.FUNCTION)
    assert log.signature == api.Signature((ValueType.I32,), ())
    assert [str(e.signature) for e in result.module.exports] == [
        "(i32, i32) -> i32",
        "(i64, f32, f64) -> (f64, i32)",
        "None",
    ]
    assert not client.push(WASM).created


def test_a_large_push_goes_out_in_chunks_and_tells_its_progress(
    daemon: FakeDaemon, client: Client, tmp_path: Path
) -> None:
    wasm = WASM + bytes(5 << 20)
    path = tmp_path / "big.wasm"
    path.write_bytes(wasm)
    told: list[int] = []
    client.push(path, progress=told.append)
    ((header, chunks),) = daemon.requests("Push")
    assert (header.digest, header.size_bytes) == (digest_of(wasm), len(wasm))
    assert max(map(len, chunks)) <= 1 << 20
    assert told == sorted(told)
    assert told[-1] == len(wasm)


def test_an_iterator_is_pushed_piece_by_piece(daemon: FakeDaemon, client: Client) -> None:
    pieces = [WASM, b"", bytes(3 << 20), b"x"]
    digest = digest_of(b"".join(pieces))
    assert client.push(iter(pieces)).module.digest == digest
    assert client.push(iter(pieces), digest=digest).module.digest == digest
    with pytest.raises(api.DigestMismatch):
        client.push(iter(pieces), digest=digest_of(b"other"))


async def test_asyncio_pushes_asynchronous_iterators(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield WASM
        yield b"abc"

    result = await async_client.push(pieces())
    assert result.module.digest == digest_of(WASM + b"abc")
    assert (await async_client.push(iter([WASM]))).created


class BrokenSourceError(Exception):
    pass


def _broken() -> Iterator[bytes]:
    yield WASM
    raise BrokenSourceError


def test_what_the_source_raises_comes_out_and_nothing_is_stored(
    daemon: FakeDaemon, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BrokenSourceError):
        client.push(_broken())
    assert daemon.cancelled.wait(5)
    assert daemon.modules == {}
    assert capfd.readouterr() == ("", "")


async def test_what_the_source_raises_comes_out_of_asyncio_too(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    with pytest.raises(BrokenSourceError):
        await async_client.push(_broken())
    assert loop_daemon.modules == {}


def test_a_push_of_text_is_refused_here(client: Client) -> None:
    with pytest.raises(TypeError, match=r"pathlib\.Path"):
        client.push("add.wasm")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made of bytes"):
        client.push(["(module)"])  # type: ignore[list-item]


def test_an_asynchronous_iterator_needs_the_asynchronous_client(client: Client) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield WASM

    with pytest.raises(TypeError, match="AsyncClient"):
        client.push(pieces())  # type: ignore[arg-type]


def test_a_list_fetches_pages_as_they_are_needed(daemon: FakeDaemon, client: Client) -> None:
    digests = sorted(daemon.store(bytes([n])) for n in range(25))
    listing = client.list(page_size=10)
    first = next(listing)
    assert first.digest == digests[0]
    assert first.exports == ()
    assert len(daemon.requests("List")) == 1
    assert [m.digest for m in listing] == digests[1:]
    assert len(daemon.requests("List")) == 3


async def test_asyncio_lists_pages_too(loop_daemon: FakeDaemon, async_client: AsyncClient) -> None:
    digests = sorted(loop_daemon.store(bytes([n])) for n in range(5))
    assert [m.digest async for m in async_client.list(page_size=2)] == digests
    prefix = digests[2][:12]
    assert [m.digest async for m in async_client.list(prefix)] == [digests[2]]


def test_get_and_delete_take_digests_and_modules(daemon: FakeDaemon, client: Client) -> None:
    module = client.get(daemon.store())
    assert client.get(module) == module
    client.delete(module)
    with pytest.raises(api.ModuleNotFound) as caught:
        client.get(module.digest)
    assert caught.value.metadata["digest"] == module.digest
    with pytest.raises(ValueError, match="is not a digest"):
        client.delete("abcd")


def test_the_status_comes_back_in_full(daemon: FakeDaemon, client: Client) -> None:
    daemon.status.start_time.FromSeconds(CREATED_S)
    daemon.status.pool.capacity = 8
    daemon.status.queue.depth = 2
    daemon.status.latency.p99_ns = 77
    daemon.status.outcomes.add(name="QUEUE_FULL", count=4, fault=True)
    daemon.status.runners.add(pid=5, state=admin_pb2.RUNNER_STATE_BUSY, tenant="t")
    daemon.status.layers.add(
        name="seccomp", active=True, detail="45 rules", required=True, reason="fewer calls"
    )
    status = client.status()
    assert (status.version, status.engine_version) == ("9.9.9", "50.0.0")
    assert (status.pool.capacity, status.queue.depth, status.latency.p99_ns) == (8, 2, 77)
    assert status.outcomes == (api.OutcomeCount("QUEUE_FULL", 4, True),)
    assert status.runners[0].state is api.RunnerState.BUSY
    assert status.layers == (api.Layer("seccomp", True, "45 rules", True, "", "fewer calls"),)
    assert status.start_time == datetime.fromtimestamp(CREATED_S, UTC)


def test_externs_of_a_newer_daemon_become_unknown(daemon: FakeDaemon, client: Client) -> None:
    daemon.exports = [
        call_pb2.Extern.FromString(b"\x12\x01x\x18\x63"),
        call_pb2.Extern.FromString(b"\x12\x01y\x18\x01\x22\x01\x63"),
    ]
    new, function = client.get(daemon.store()).exports
    assert new.kind is api.ExternKind.UNKNOWN
    assert str(function.signature) == "(unknown) -> ()"


def test_threads_can_share_a_client(daemon: FakeDaemon, client: Client) -> None:
    digest, sums = daemon.store(), []
    threads = [
        threading.Thread(target=lambda n=n: sums.append(client.call(digest, "add", n, 1).value))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range(1, 9))
