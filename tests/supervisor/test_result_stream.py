"""Results on their way: written together, and no more of them made than are read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from sandboxd.supervisor import faults
from sandboxd.supervisor.held import HeldResults
from sandboxd.supervisor.result_stream import MAX_WAITING_BYTES, MESSAGE_BYTES, ResultStream


def held() -> HeldResults:
    return HeldResults(1 << 30, 1 << 20)


class Client:
    """Takes messages while it reads."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.asked = asyncio.Event()

    async def write(self, message: bytes) -> None:
        self.asked.set()
        await self.reads.wait()
        self.messages.append(message)


@pytest.fixture
async def client() -> Client:
    return Client()


@contextlib.asynccontextmanager
async def running(results: ResultStream) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(results.run())
    yield task
    results.finish()
    await task


async def until(condition: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await condition.wait()


async def test_a_result_that_comes_alone_is_written_while_others_are_made(client: Client) -> None:
    results = ResultStream(client.write, held())
    async with running(results):
        results.add(b"a")
        await until(client.asked)
    assert client.messages == [b"a"]


async def test_results_that_come_together_are_written_together_and_in_order(
    client: Client,
) -> None:
    results = ResultStream(client.write, held())
    async with running(results):
        for letter in (b"a", b"b", b"c"):
            results.add(letter)
    assert client.messages == [b"abc"]


async def test_a_message_is_bounded_but_by_a_result_that_is_longer(client: Client) -> None:
    results = ResultStream(client.write, held())
    sizes = [MESSAGE_BYTES // 3] * 7 + [3 * MESSAGE_BYTES, 1, MESSAGE_BYTES, 1]
    for size in sizes:
        results.add(b"x" * size)
    async with running(results):
        pass
    lengths = [len(message) for message in client.messages]
    assert sum(lengths) == sum(sizes)
    assert [length for length in lengths if length > MESSAGE_BYTES] == [3 * MESSAGE_BYTES]
    assert len(lengths) < len(sizes)


async def test_one_who_does_not_read_makes_it_full_and_one_who_reads_again_makes_room(
    client: Client,
) -> None:
    client.reads.clear()
    results = ResultStream(client.write, held())
    async with running(results):
        results.add(b"first")
        await until(client.asked)
        for _ in range(MAX_WAITING_BYTES // 100_000 + 1):
            results.add(b"x" * 100_000)
        was_full = results.full
        room = asyncio.ensure_future(results.room())
        await asyncio.sleep(0)
        assert not room.done()
        client.reads.set()
        async with asyncio.timeout(10):
            await room
        assert (was_full, results.full) == (True, False)
    assert sum(map(len, client.messages)) >= MAX_WAITING_BYTES


async def test_one_who_never_reads_is_given_up(client: Client) -> None:
    client.reads.clear()
    results = ResultStream(client.write, held(), stall_timeout_s=0.01)
    results.add(b"x")
    with pytest.raises(faults.DeadlineFault, match="read no results"):
        await results.run()


async def test_a_stream_without_results_ends() -> None:
    results = ResultStream(Client().write, held())
    async with running(results):
        pass


async def test_what_waits_is_counted_until_it_is_written_or_forgotten() -> None:
    client, counted = Client(), held()
    results = ResultStream(client.write, counted)
    results.add(b"x" * 100)
    assert (counted.size_bytes, results.empty) == (100, False)
    writing = asyncio.ensure_future(results.run())
    results.finish()
    await writing
    assert (counted.size_bytes, results.empty) == (0, True)
    results.add(b"x" * 50)
    results.close()
    results.close()
    assert counted.size_bytes == 0
