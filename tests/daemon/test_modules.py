"""The module service: what is accepted is whole and stays, everything else leaves no trace."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import wasmtime
from google.protobuf.message import Message
from tests.daemon.calls import (
    PATIENCE_S,
    Caller,
    Refusal,
    calling,
    count,
    eventually,
    i32,
    parts,
    refused,
    typed,
)

from sandboxd.v1 import call_pb2, module_pb2

MAGIC = b"\0asm\x01\0\0\0"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def digest_of(wasm: bytes) -> str:
    return "sha256:" + hashlib.sha256(wasm).hexdigest()


def numbered(number: int) -> bytes:
    """A small module unlike any other: its name is in a custom section."""
    name = f"n{number:06d}".encode()
    return MAGIC + bytes([0, len(name) + 1, len(name)]) + name


def leftovers(daemon: Any) -> list[str]:
    """What pushes in progress have on disk."""
    return [entry.name for entry in (daemon.state_dir / "incoming").iterdir()]


def stored_on_disk(daemon: Any) -> set[str]:
    return {
        "sha256:" + entry.name for entry in (daemon.state_dir / "modules" / "default").iterdir()
    }


def all_digests(caller: Caller, **fields: Any) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = caller.list(page_token=token, **fields)
        found += [module.digest for module in page.modules]
        token = page.next_page_token
        if not token:
            return found


# --- in order -------------------------------------------------------------------------------------


def test_a_pushed_module_is_described(caller: Caller, sink_wasm: bytes) -> None:
    header = module_pb2.PushHeader(digest=digest_of(sink_wasm), size_bytes=len(sink_wasm))
    response = caller.push(sink_wasm, header, chunk_bytes=100)
    assert response.created
    assert response.compile_time_ns > 0
    module = response.module
    assert module.digest == digest_of(sink_wasm)
    assert module.size_bytes == len(sink_wasm)
    assert module.create_time.seconds > 1_600_000_000
    imports = {(one.module, one.name): one for one in module.imports}
    assert list(imports["env", "log"].params) == [call_pb2.VALUE_TYPE_I32] * 2
    exports = {one.name: one for one in module.exports}
    assert exports["memory"].kind == call_pb2.EXTERN_KIND_MEMORY
    assert exports["memory"].minimum == 1
    assert not exports["memory"].HasField("maximum")
    assert list(exports["swap"].results) == [
        call_pb2.VALUE_TYPE_F64, call_pb2.VALUE_TYPE_F32,
        call_pb2.VALUE_TYPE_I64, call_pb2.VALUE_TYPE_I32,
    ]  # fmt: skip
    assert caller.get(module.digest) == module


def test_the_second_push_changes_nothing(caller: Caller) -> None:
    first = caller.push(numbered(1))
    second = caller.push(numbered(1))
    assert (first.created, second.created) == (True, False)
    assert second.module == first.module
    assert second.compile_time_ns == 0


def test_a_deleted_module_is_gone_and_can_be_pushed_again(
    daemon: Any, caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat('(module (func (export "two") (result i32) (i32.const 2)))')
    digest = caller.push(wasm).module.digest
    assert caller.execute(typed(digest, "two")).completed.results[0] == i32(2)
    caller.delete(digest)
    for call in (caller.get, caller.delete, lambda d: caller.execute(typed(d, "two"))):
        found = refused(call, digest)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODULE_NOT_FOUND")
    assert digest not in stored_on_disk(daemon)
    again = caller.push(wasm)
    assert again.created
    assert caller.execute(typed(digest, "two")).completed.results[0] == i32(2)


def test_lists_come_in_pages_in_order_of_digest(daemon: Any, caller: Caller) -> None:
    for number in range(100, 125):
        caller.push(numbered(number))
    everything = all_digests(caller)
    assert everything == sorted(everything)
    assert set(everything) == stored_on_disk(daemon)
    assert daemon.status().modules == len(everything)
    for size in (1, 7, len(everything), 5000):
        assert all_digests(caller, page_size=size) == everything
    page = caller.list(page_size=7)
    assert len(page.modules) == 7
    assert page.next_page_token
    assert not page.modules[0].exports, "a list is brief"


def test_a_prefix_selects_with_and_without_the_algorithm(caller: Caller) -> None:
    digest = caller.push(numbered(200)).module.digest
    for number in range(201, 205):
        caller.push(numbered(number))
    bare = digest.removeprefix("sha256:")
    for prefix in (digest, bare, digest[:12], bare[:4]):
        assert digest in all_digests(caller, digest_prefix=prefix)
    assert all_digests(caller, digest_prefix=bare) == [digest]
    assert all_digests(caller, digest_prefix=digest[:9]) == [
        one for one in all_digests(caller) if one.startswith(digest[:9])
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"digest_prefix": "xyz"}, "digest_prefix"),
        ({"digest_prefix": "sha256:AB"}, "digest_prefix"),
        ({"digest_prefix": "../.."}, "digest_prefix"),
        ({"page_token": "next"}, "page_token"),
    ],
)
def test_a_nonsensical_list_is_refused(caller: Caller, fields: dict[str, str], field: str) -> None:
    found = refused(lambda: caller.list(**fields))
    assert (found.code, found.reason, found.field) == (INVALID, "INVALID_REQUEST", field)


@pytest.mark.parametrize("digest", ["", "sha256:..", "../../etc/passwd", "sha256:" + "A" * 64])
def test_only_a_digest_names_a_module(caller: Caller, digest: str) -> None:
    for call in (caller.get, caller.delete, lambda d: caller.execute(typed(d, "f"))):
        found = refused(call, digest)
        assert (found.code, found.reason, found.field) == (INVALID, "INVALID_REQUEST", "digest")


# --- refused --------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_left(daemon: Any, caller: Caller) -> Iterator[None]:
    """Whatever happens in the test, it stores nothing."""
    before = all_digests(caller)
    yield
    assert all_digests(caller) == before
    assert stored_on_disk(daemon) == set(before)
    eventually(lambda: not leftovers(daemon), "incoming/ is empty")


def refused_push(caller: Caller, *messages: module_pb2.PushRequest) -> Refusal:
    found = refused(caller.push_parts, messages)
    assert found.code is INVALID, found
    assert found.retry_after_ms is None
    return found


COMPONENT = b"\0asm\x0d\0\x01\0"
LOOKALIKES = {
    "text": (b"(module)", "WAT"),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(57), "native"),
    "gzip": (gzip.compress(MAGIC), "gzip"),
    "html": (b"<!doctype html>", "magic"),
    "one byte": (b"\0", "magic"),
    "a component": (COMPONENT, "component"),
    "a future version": (b"\0asm\x02\0\0\0", "version"),
}


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("case", LOOKALIKES)
def test_what_is_not_a_module_is_refused_with_what_it_is(caller: Caller, case: str) -> None:
    data, word = LOOKALIKES[case]
    found = refused_push(caller, *parts(data))
    assert found.reason == "INVALID_MODULE"
    assert word in found.message
    inline = refused(caller.execute, typed(data, "f"))
    assert inline.reason == "INVALID_MODULE"


@pytest.mark.usefixtures("nothing_is_left")
def test_compiled_code_is_never_taken_from_a_client(caller: Caller, sink_wasm: bytes) -> None:
    compiled = bytes(wasmtime.Module(wasmtime.Engine(), sink_wasm).serialize())
    found = refused_push(caller, *parts(compiled))
    assert found.reason == "INVALID_MODULE"
    assert refused(caller.execute, typed(compiled, "add")).reason == "INVALID_MODULE"


@pytest.mark.usefixtures("nothing_is_left")
def test_a_module_cut_anywhere_is_refused_with_the_offset(
    caller: Caller, wat: Callable[[str], bytes]
) -> None:
    wasm = wat("""(module (import "env" "log" (func (param i32))) (memory 1)
      (global i32 (i32.const 1)) (table 1 funcref) (elem (i32.const 0) 1)
      (func (export "f") (param i32) (result i32) (local.get 0)) (data (i32.const 0) "abc"))""")
    valid = set()
    for length in range(len(wasm)):
        try:
            caller.push(wasm[:length])
        except grpc.RpcError:
            found = refused_push(caller, *parts(wasm[:length]))
            assert found.reason == "INVALID_MODULE", (length, found)
            if "offset_bytes" in (found.metadata or {}):
                assert found.metadata is not None
                assert 0 <= int(found.metadata["offset_bytes"]) <= length
            else:
                assert length >= 8, found
        else:
            valid.add(length)
            caller.delete(digest_of(wasm[:length]))
    # Between two sections, before the functions promise a body, what is there is a module.
    assert 8 in valid
    assert len(valid) < 5


@pytest.mark.usefixtures("nothing_is_left")
def test_a_body_that_does_not_validate_is_refused_with_the_offset(caller: Caller) -> None:
    body = b"\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x05\x01\x03\0\x6a\x0b"
    found = refused_push(caller, *parts(MAGIC + body))
    assert found.reason == "INVALID_MODULE"
    assert found.metadata is not None
    assert int(found.metadata["offset_bytes"]) > 8


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize(
    ("feature", "text"),
    [
        ("threads", "(module (memory 1 1 shared))"),
        ("memory64", "(module (memory i64 1))"),
        ("multi-memory", "(module (memory 1) (memory 1))"),
        ("exceptions", "(module (tag))"),
        ("gc", "(module (type (struct)))"),
    ],
)
def test_a_module_that_uses_what_is_not_enabled_is_refused(
    caller: Caller, wat: Callable[[str], bytes], feature: str, text: str
) -> None:
    assert refused_push(caller, *parts(wat(text))).reason == "INVALID_MODULE", feature


@pytest.mark.usefixtures("nothing_is_left")
def test_claims_that_do_not_hold_are_refused(caller: Caller) -> None:
    wasm = numbered(300)
    wrong = module_pb2.PushHeader(digest=digest_of(b"other"))
    found = refused_push(caller, *parts(wasm, wrong))
    assert (found.reason, found.field) == ("DIGEST_MISMATCH", "header.digest")
    assert found.metadata == {"digest": digest_of(wasm)}
    for size in (len(wasm) - 1, len(wasm) + 1, 2**63):
        header = module_pb2.PushHeader(size_bytes=size)
        found = refused_push(caller, *parts(wasm, header))
        assert (found.reason, found.field) == ("DIGEST_MISMATCH", "header.size_bytes")
    malformed = module_pb2.PushHeader(digest="sha1:abc")
    found = refused_push(caller, *parts(wasm, malformed))
    assert (found.reason, found.field) == ("INVALID_REQUEST", "header.digest")


HEADER = module_pb2.PushRequest(header=module_pb2.PushHeader())
CHUNK = module_pb2.PushRequest(chunk=MAGIC)
STREAMS = {
    "empty": ((), "INVALID_MODULE"),
    "only a header": ((HEADER,), "INVALID_MODULE"),
    "an empty chunk": ((*parts(MAGIC), module_pb2.PushRequest(chunk=b"")), "INVALID_REQUEST"),
    "two headers": ((HEADER, HEADER, CHUNK), "INVALID_REQUEST"),
    "a header after the chunks": ((CHUNK, HEADER), "INVALID_REQUEST"),
    "neither header nor chunk": ((module_pb2.PushRequest(),), "INVALID_REQUEST"),
    "nothing between chunks": ((CHUNK, module_pb2.PushRequest(), CHUNK), "INVALID_REQUEST"),
}


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_out_of_order_is_refused(caller: Caller, case: str) -> None:
    messages, reason = STREAMS[case]
    assert refused_push(caller, *messages).reason == reason


def test_chunks_may_be_as_small_as_one_byte(caller: Caller) -> None:
    wasm = numbered(301)
    assert caller.push_parts(parts(wasm, chunk_bytes=1)).module.digest == digest_of(wasm)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_message_above_4_mib_is_refused_by_the_transport(caller: Caller) -> None:
    large = MAGIC + bytes(5 << 20)
    for call in (
        lambda: caller.execute(typed(large, "f")),
        lambda: caller.push(large, chunk_bytes=len(large)),
    ):
        assert refused(call).code is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("how", ["cancel", "disconnect", "deadline"])
def test_a_push_that_is_given_up_leaves_nothing(daemon: Any, how: str) -> None:
    wasm = numbered(400)
    held = threading.Event()

    def messages() -> Iterator[Message]:
        yield from parts(wasm[:-3])
        held.wait(PATIENCE_S)
        yield from parts(wasm[-3:])

    channel = daemon.channel()
    pending = Caller(channel).modules.Push.future(
        messages(), timeout=1.0 if how == "deadline" else None
    )
    eventually(lambda: leftovers(daemon), "the push has begun")
    if how == "cancel":
        pending.cancel()
    elif how == "disconnect":
        channel.close()
    eventually(lambda: not leftovers(daemon), "incoming/ is empty")
    if how == "deadline":
        assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    held.set()
    channel.close()


@pytest.fixture
def lasting(start_daemon: Any) -> Iterator[Any]:
    """A daemon that the test may kill and start again; modules are small."""
    with start_daemon("--max-module", "64KiB") as running:
        yield running


def test_what_was_acknowledged_survives_a_crash(
    lasting: Any, sink_wasm: bytes, wat: Callable[[str], bytes]
) -> None:
    with calling(lasting) as caller:
        kept = caller.push(sink_wasm).module
        deleted = caller.push(numbered(1)).module.digest
        caller.delete(deleted)
        damaged = caller.push(wat('(module (func (export "one")))')).module.digest
    lasting.kill()
    entry = lasting.state_dir / "modules" / "default" / damaged.removeprefix("sha256:")
    (entry / "module.wasm").write_bytes(MAGIC)
    (lasting.state_dir / "incoming" / "half").mkdir()
    lasting.restart()
    assert leftovers(lasting) == []
    with calling(lasting) as caller:
        assert all_digests(caller) == [kept.digest]
        assert caller.get(kept.digest) == kept
        assert (
            caller.execute(typed(kept.digest, "add", i32(1), i32(2))).completed.results[0].i32 == 3
        )
        assert refused(caller.get, deleted).reason == "MODULE_NOT_FOUND"
        # What was damaged is not served, and pushing it again repairs it for good.
        assert refused(caller.get, damaged).reason == "MODULE_NOT_FOUND"
        assert caller.push(wat('(module (func (export "one")))')).created
    assert "is damaged and is not served" in lasting.log
    lasting.kill()
    lasting.restart()
    with calling(lasting) as caller:
        assert set(all_digests(caller)) == {kept.digest, damaged}
        done = caller.execute(typed(damaged, "one"))
        assert done.WhichOneof("outcome") == "completed"


def test_a_module_that_was_damaged_is_not_compiled_again_and_no_longer_served(
    lasting: Any, sink_wasm: bytes, wat: Callable[[str], bytes]
) -> None:
    other = wat('(module (func (export "add") (param i32 i32) (result i32) (i32.const 42)))')
    with calling(lasting) as caller:
        digest = caller.push(sink_wasm).module.digest
        entry = lasting.state_dir / "modules" / "default" / digest.removeprefix("sha256:")
        (entry / "module.wasm").write_bytes(other)
        # What was compiled at the push is of the bytes that were pushed.
        plain = typed(digest, "add", i32(1), i32(2))
        assert caller.execute(plain).completed.results[0].i32 == 3
        metered = typed(digest, "add", i32(1), i32(2), fuel=10_000)
        found = refused(caller.execute, metered)
        assert (found.code, found.reason) == (grpc.StatusCode.DATA_LOSS, "MODULE_DAMAGED")
        assert found.metadata == {"digest": digest}
        assert count(lasting, "MODULE_DAMAGED") == 1
        assert f"module {digest} is damaged" in lasting.log
        for call in (lambda: caller.execute(plain), lambda: caller.get(digest)):
            assert refused(call).reason == "MODULE_NOT_FOUND"
        # Who pushes it again mends it.
        assert caller.push(sink_wasm).created
        assert (entry / "module.wasm").read_bytes() == sink_wasm
        assert caller.execute(metered).completed.results[0].i32 == 3


def test_a_push_that_trickles_ends_in_time_and_leaves_nothing(start_daemon: Any) -> None:
    with start_daemon("--push-time", "1s") as daemon, calling(daemon) as caller:
        ended = threading.Event()

        def trickle() -> Iterator[Message]:
            yield from parts(MAGIC)
            while not ended.wait(0.1):
                yield module_pb2.PushRequest(chunk=b"\0")

        found = refused(lambda: caller.modules.Push(trickle(), timeout=PATIENCE_S))
        ended.set()
        assert (found.code, found.reason) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "DEADLINE_EXCEEDED",
        )
        assert (found.metadata or {})["setting"] == "--push-time"
        eventually(lambda: not leftovers(daemon), "incoming/ is empty")


def test_no_more_is_stored_than_the_settings_allow(start_daemon: Any) -> None:
    with (
        start_daemon("--max-modules", "2", "--module-disk", "4KiB") as daemon,
        calling(daemon) as caller,
    ):
        large = MAGIC + bytes([0, 0xC1, 0x1F, 1]) + b"n" + bytes(4031)
        found = refused(caller.push, large)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
        assert (found.metadata or {})["setting"] == "--module-disk"
        first, second = (caller.push(numbered(n)).module.digest for n in (1, 2))
        found = refused(caller.push, numbered(3))
        assert found.metadata == {"setting": "--max-modules", "maximum": "2"}
        # What is stored already needs no room.
        assert not caller.push(numbered(2)).created
        caller.delete(first)
        assert caller.push(numbered(3)).created
        assert set(all_digests(caller)) == {second, digest_of(numbered(3))}


def test_a_module_that_is_too_large_is_refused(lasting: Any) -> None:
    with calling(lasting) as caller:
        found = refused_push(caller, *parts(MAGIC + bytes(65537), chunk_bytes=1000))
        assert found.reason == "MODULE_TOO_LARGE"
        assert found.metadata == {"limit_bytes": "65536"}
    eventually(lambda: not leftovers(lasting), "incoming/ is empty")


def test_pushes_and_deletes_of_one_module_stay_consistent_with_the_disk(lasting: Any) -> None:
    wasm = numbered(7)
    digest = digest_of(wasm)

    def work(number: int) -> None:
        with calling(lasting) as caller:
            for _ in range(15):
                if number % 2:
                    assert caller.push(wasm).module.digest == digest
                else:
                    try:
                        caller.delete(digest)
                    except grpc.RpcError as error:
                        if error.code() is not grpc.StatusCode.NOT_FOUND:
                            raise

    with ThreadPoolExecutor(6) as workers:
        list(workers.map(work, range(6)))
    with calling(lasting) as caller:
        listed = all_digests(caller)
        assert set(listed) == stored_on_disk(lasting)
        assert caller.push(wasm).created == (digest not in listed)
        caller.delete(digest)
        assert stored_on_disk(lasting) == set()
    assert leftovers(lasting) == []


def test_parallel_pushes_of_one_module_compile_it_once(
    daemon: Any, caller: Caller, many_functions: Callable[[int], bytes]
) -> None:
    wasm = many_functions(30_000)
    compiling: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            compiling.append(daemon.status().compiling)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(6) as workers:
            answers = list(workers.map(lambda _: caller.push(wasm), range(6)))
    finally:
        done.set()
        watcher.join()
    assert sum(answer.created for answer in answers) == 1
    assert max(compiling) == 1
    first = answers[0].module
    assert all(answer.module == first for answer in answers)
    # One compilation, in which all waited: none took longer than all of them together.
    assert caller.push(wasm).compile_time_ns == 0
    assert caller.get(first.digest) == first
