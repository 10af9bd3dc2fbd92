"""Batches through the client: which result belongs to which call, and what is sent together."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.client.fake_daemon import WASM, FakeDaemon, Refusal, happens

from sandboxd.client import (
    ArgumentMismatch,
    AsyncClient,
    BatchCall,
    BytesCall,
    Client,
    DaemonUnreachable,
    DeadlineFault,
    Execution,
    Fault,
    InternalFault,
    Limits,
    MessageTooLarge,
    ModuleNotFound,
    QueueFull,
    TypedCall,
    WasiCommand,
    batch,
    i32,
)

ABSENT = "sha256:" + "e" * 64
OVERLOAD = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_after_ms=1)


def mixed(digest: str) -> list[BatchCall]:
    return [
        BatchCall(digest, TypedCall("add", (2, 3))),
        BatchCall(ABSENT, TypedCall("add", (i32(1), i32(1)))),
        BatchCall(digest, BytesCall("upper", b"abc"), fresh=True, limits=Limits(fuel=7)),
        BatchCall(digest, WasiCommand(["x"], stdin=b"in")),
        BatchCall(digest, TypedCall("add", (1,))),
    ]


def check_mixed(results: dict[int, Execution | Fault]) -> None:
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert ok(results[0]).value == 5
    assert isinstance(results[1], ModuleNotFound)
    assert results[1].code == "NOT_FOUND"
    assert results[1].metadata["digest"] == ABSENT
    assert ok(results[2]).output == b"ABC"
    assert ok(results[3]).stdout == b"in"
    assert isinstance(results[4], ArgumentMismatch), "found out before anything was sent"


def ok(result: Execution | Fault) -> Execution:
    assert isinstance(result, Execution), result
    return result


def adds(digest: str, count: int) -> list[BatchCall]:
    return [BatchCall(digest, TypedCall("add", (i32(n), i32(0)))) for n in range(count)]


def test_every_call_has_its_own_result_in_the_order_of_their_ends(
    daemon: FakeDaemon, client: Client
) -> None:
    results = list(client.execute_batch(mixed(daemon.store()), max_parallel=3))
    check_mixed(dict(results))
    assert [index for index, _ in results] == [3, 2, 1, 0, 4], "as the daemon sent them"
    (request,) = daemon.requests("ExecuteBatch")
    assert request.max_parallel == 3
    assert [item.WhichOneof("call") for item in request.requests] == [
        "typed",
        "typed",
        "bytes",
        "wasi",
    ]
    assert request.requests[2].limits.fuel == 7
    assert request.requests[2].process


async def test_the_asyncio_client_does_the_same(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    digest = loop_daemon.store()
    check_mixed(
        {index: result async for index, result in async_client.execute_batch(mixed(digest))}
    )
    in_order = await async_client.execute_all(mixed(digest))
    check_mixed(dict(enumerate(in_order)))


def test_a_list_in_order(daemon: FakeDaemon, client: Client) -> None:
    check_mixed(dict(enumerate(client.execute_all(mixed(daemon.store())))))
    assert client.execute_all([]) == []
    assert len(daemon.requests("ExecuteBatch")) == 1, "nothing is sent for nothing"


def test_long_inputs_go_in_several_messages(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CALLS_PER_MESSAGE", 4)
    results = client.execute_all(adds(daemon.store(), 10))
    assert [ok(result).value for result in results] == list(range(10))
    assert [len(request.requests) for request in daemon.requests("ExecuteBatch")] == [4, 4, 2]


def test_a_message_has_few_bytes_or_one_call(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MESSAGE_BYTES", 1000)
    digest = daemon.store()
    sizes = [100, 300, 300, 2000, 100]
    calls = [BatchCall(digest, BytesCall("upper", b"a" * size)) for size in sizes]
    results = client.execute_all(calls)
    assert [len(ok(result).output) for result in results] == sizes
    assert [len(request.requests) for request in daemon.requests("ExecuteBatch")] == [3, 1, 1]


def test_calls_are_taken_from_an_iterator_as_they_are_sent(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CALLS_PER_MESSAGE", 2)
    digest = daemon.store()
    endless = (BatchCall(digest, BytesCall("upper", b"%d" % n)) for n in itertools.count())
    with contextlib.closing(client.execute_batch(endless)) as results:
        first = dict(itertools.islice(results, 4))
    assert {index: ok(result).output for index, result in first.items()} == {
        index: b"%d" % index for index in range(4)
    }


def test_a_module_given_as_bytes_or_path_is_pushed_once(
    daemon: FakeDaemon, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "add.wasm").write_bytes(WASM + b"\0")
    modules: list[Any] = [WASM, tmp_path / "add.wasm"] * 3
    results = client.execute_all(BatchCall(module, TypedCall("add", (1, 2))) for module in modules)
    assert [ok(result).value for result in results] == [3] * 6
    assert len(daemon.requests("Push")) == 2
    assert daemon.requests("Get") == [], "the signature came with the push"


def test_what_is_wrong_with_the_arguments_as_such_is_a_type_error(
    daemon: FakeDaemon, client: Client
) -> None:
    call: Any = BatchCall(daemon.store(), TypedCall("add", ("1", "2")))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        client.execute_all([call])
    with pytest.raises(TypeError, match="several names"):
        client.execute_all([BatchCall(daemon.store(), WasiCommand(), require_layers="seccomp")])


WRONG: list[tuple[Any, type[Exception], str]] = [
    (1, TypeError, "BatchCall is needed, not int"),
    (None, TypeError, "BatchCall is needed, not NoneType"),
    ((ABSENT, WasiCommand()), TypeError, "BatchCall is needed, not tuple"),
    (BatchCall(5, WasiCommand()), TypeError, "module"),  # type: ignore[arg-type]
    (BatchCall("add.wasm", WasiCommand()), ValueError, "not a digest"),
    (BatchCall(ABSENT, 5), TypeError, "call is a TypedCall"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, TypedCall("f", "12")), TypeError, "args"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, TypedCall("f", ["1"])), TypeError, "args"),  # type: ignore[list-item]
    (BatchCall(ABSENT, TypedCall("f", 1)), TypeError, "args"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, TypedCall("f", iter([i32(1)]))), TypeError, "args"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, WasiCommand(iter(["x"]))), TypeError, "args"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, TypedCall(None)), TypeError, "export"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, BytesCall("f", "x")), TypeError, "input"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, WasiCommand([1])), TypeError, "args"),  # type: ignore[list-item]
    (BatchCall(ABSENT, WasiCommand(env=["x"])), TypeError, "env"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, WasiCommand(stdin="x")), TypeError, "stdin"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, WasiCommand(), limits=5), TypeError, "limits is"),  # type: ignore[arg-type]
    (BatchCall(ABSENT, WasiCommand(), Limits(fuel=True)), TypeError, "limits.fuel"),
    (BatchCall(ABSENT, WasiCommand(), Limits(fuel=-1)), ValueError, "limits.fuel"),
    (BatchCall(ABSENT, WasiCommand(), require_layers=[1]), TypeError, "require_layers"),  # type: ignore[list-item]
    (BatchCall(ABSENT, WasiCommand(), require_layers=1), TypeError, "require_layers"),  # type: ignore[arg-type]
    (BatchCall(Path("/none.wasm"), WasiCommand()), FileNotFoundError, "none.wasm"),
]


@pytest.mark.parametrize(("wrong", "kind", "words"), WRONG)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_wrong_argument_is_named_before_anything_is_sent(
    daemon: FakeDaemon, client: Client, wrong: Any, kind: type[Exception], words: str, lazy: bool
) -> None:
    calls = [BatchCall(daemon.store(), WasiCommand()), BatchCall(WASM, WasiCommand()), wrong]
    with pytest.raises(kind, match=words) as caught:
        client.execute_all(iter(calls) if lazy else calls)
    assert isinstance(caught.value, OSError) or "calls[2]: " in str(caught.value)
    assert daemon.seen == []


def test_a_wrong_argument_from_an_iterator_is_told_when_it_is_reached(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CALLS_PER_MESSAGE", 2)
    calls: list[Any] = [*adds(daemon.store(), 2), None]
    results = client.execute_batch(iter(calls))
    assert {next(results)[0], next(results)[0]} == {0, 1}
    with pytest.raises(TypeError, match=r"calls\[2\]"):
        next(results)


@pytest.mark.parametrize(
    ("count", "kind"),
    [(-1, ValueError), (1 << 32, ValueError), (True, TypeError), (2.0, TypeError)],
)
async def test_a_wrong_max_parallel_is_named(
    loop_daemon: FakeDaemon, async_client: AsyncClient, count: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="max_parallel"):
        await async_client.execute_all(adds(loop_daemon.store(), 1), max_parallel=count)
    assert loop_daemon.seen == []


def test_execute_names_the_wrong_argument_as_well(daemon: FakeDaemon, client: Client) -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="limits is a Limits"):
        client.execute(WASM, WasiCommand(), limits=wrong)
    with pytest.raises(TypeError, match="call is a TypedCall"):
        client.execute(WASM, wrong)
    assert daemon.seen == []


def test_a_batch_in_which_nothing_can_be_sent(daemon: FakeDaemon, client: Client) -> None:
    digest = daemon.store()
    results = client.execute_all([BatchCall(digest, TypedCall("none", (1,)))] * 3)
    assert all(isinstance(result, Fault) for result in results)
    assert daemon.requests("ExecuteBatch") == []


def test_a_batch_that_is_refused_as_a_whole_is_repeated_if_asked_for(daemon: FakeDaemon) -> None:
    digest = daemon.store()
    with Client(daemon.address) as client:
        daemon.refusals["ExecuteBatch"].append(OVERLOAD)
        with pytest.raises(QueueFull):
            client.execute_all(adds(digest, 2))
    with Client(daemon.address, retries=1) as client:
        daemon.refusals["ExecuteBatch"].append(OVERLOAD)
        assert [ok(result).value for result in client.execute_all(adds(digest, 2))] == [0, 1]


def test_a_call_that_is_refused_has_the_fault_that_execute_raises(
    daemon: FakeDaemon, client: Client
) -> None:
    digest = daemon.store()
    daemon.refusals["item"].append(OVERLOAD)
    daemon.refusals["Execute"].append(OVERLOAD)
    call = WasiCommand()
    (single,) = client.execute_all([BatchCall(digest, call)])
    with pytest.raises(QueueFull) as caught:
        client.execute(digest, call)
    assert isinstance(single, QueueFull)
    assert single.refused
    assert vars(single) == vars(caught.value)


def test_a_call_above_the_message_limit_harms_no_other(daemon: FakeDaemon, client: Client) -> None:
    digest = daemon.store()
    sizes = [100, 5 << 20, 100, 5 << 20]
    calls = [BatchCall(digest, BytesCall("upper", b"a" * size)) for size in sizes]
    first, second, third, fourth = client.execute_all(calls)
    with pytest.raises(MessageTooLarge) as caught:
        client.execute(digest, calls[1].call)
    assert (len(ok(first).output), len(ok(third).output)) == (100, 100)
    for large in (second, fourth):
        assert isinstance(large, MessageTooLarge)
        assert large.code == caught.value.code


async def test_a_call_above_the_message_limit_alone(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    call = BatchCall(loop_daemon.store(), WasiCommand(stdin=b"a" * (5 << 20)))
    (single,) = await async_client.execute_all([call])
    assert isinstance(single, MessageTooLarge)


class Small(FakeDaemon):
    """Takes messages of 500 bytes."""

    async def ExecuteBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.ByteSize() > 500:
            text = f"Received message larger than max ({request.ByteSize()} vs. 500)"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        async for message in super().ExecuteBatch(request, context):
            yield message


async def test_a_daemon_that_takes_small_messages_is_sent_small_ones(socket: Path) -> None:
    fake = Small(socket)
    sizes = [100, 50, 700, 100, 100, 100, 200]
    async with fake.serve(), AsyncClient(fake.address) as client:
        digest = fake.store()
        calls = [BatchCall(digest, BytesCall("upper", b"a" * size)) for size in sizes]
        results = await client.execute_all(calls)
    assert isinstance(results.pop(2), MessageTooLarge)
    assert [len(ok(result).output) for result in results] == [100, 50, 100, 100, 100, 200]
    assert len(fake.requests("ExecuteBatch")) < len(results), "still several in a message"


def test_an_unknown_code_of_a_single_call_is_a_fault(daemon: FakeDaemon, client: Client) -> None:
    refusal = Refusal(grpc.StatusCode.ABORTED, "odd", "ODD")
    daemon.refusals["item"].append(refusal)
    (single,) = client.execute_all([BatchCall(daemon.store(), WasiCommand())])
    assert isinstance(single, Fault)
    assert (single.code, single.reason) == ("ABORTED", "ODD")


def test_closing_the_iterator_cancels_the_batch(daemon: FakeDaemon, client: Client) -> None:
    daemon.hang = True
    with contextlib.closing(client.execute_batch(adds(daemon.store(), 10))) as results:
        for index, _ in results:
            assert index == 9
            break
        assert not daemon.cancelled.wait(0.3), "a referenced iterator may be read on"
    assert daemon.cancelled.wait(5)


async def test_closing_the_asynchronous_iterator_cancels_the_batch(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    loop_daemon.hang = True
    results = async_client.execute_batch(adds(loop_daemon.store(), 10))
    async with contextlib.aclosing(results):
        assert (await anext(results))[0] == 9
    assert await happens(loop_daemon.cancelled)


async def test_the_timeout_is_for_everything(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    loop_daemon.hang = True
    seen = []

    async def collect() -> None:
        async for index, _ in async_client.execute_batch(adds(loop_daemon.store(), 6), timeout=0.3):
            seen.append(index)

    with pytest.raises(DeadlineFault):
        await collect()
    assert seen == [5, 4]
    (arrived,) = (one for one in loop_daemon.seen if one.method == "ExecuteBatch")
    assert arrived.seconds_left is not None
    assert arrived.seconds_left <= 0.3


def test_a_daemon_that_is_not_there_is_told_once(client: Client, tmp_path: Path) -> None:
    with Client(f"unix://{tmp_path}/none") as nowhere, pytest.raises(DaemonUnreachable):
        nowhere.execute_all([BatchCall(ABSENT, TypedCall("add", (1, 2)))] * 3)


class Lossy(FakeDaemon):
    """Answers the first call twice, or the second one never."""

    twice = False

    async def ExecuteBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        async for message in super().ExecuteBatch(request, context):
            if not self.twice:
                del message.results[0]
            yield message
            if self.twice:
                yield message


@pytest.mark.parametrize("twice", [False, True])
async def test_results_that_are_missing_or_too_many_are_the_daemons_fault(
    socket: Path, twice: bool
) -> None:
    fake = Lossy(socket)
    fake.twice = twice
    async with fake.serve(), AsyncClient(fake.address) as client:
        with pytest.raises(
            InternalFault, match="nobody waits for" if twice else "without a result"
        ):
            await client.execute_all(adds(fake.store(), 2))
