"""Hostile modules, as rows: each is pushed, and refused then."""

from __future__ import annotations

import gzip

from tests.hostile import wasm
from tests.hostile.guests import assembled
from tests.hostile.harness import Act, Bench, Row

from sandboxd.v1 import module_pb2, sandbox_pb2

INVALID = "INVALID_ARGUMENT/INVALID_MODULE"
TOO_COMPLEX = "INVALID_ARGUMENT/MODULE_TOO_COMPLEX"
BAD_REQUEST = "INVALID_ARGUMENT/INVALID_REQUEST"
DIGEST = "INVALID_ARGUMENT/DIGEST_MISMATCH"
NO_DIGEST = "sha256:" + "0" * 64
_GOOD = '(module (func (export "f")))'


def pushed(module: bytes) -> Act:
    """Push, and delete it again if it was taken."""

    async def act(bench: Bench) -> str:
        digest = await bench.push(module)
        await bench.modules.Delete(module_pb2.DeleteRequest(digest=digest))
        return "stored"

    return act


def inline(module: bytes) -> Act:
    """Send it within the call instead."""

    async def act(bench: Bench) -> str:
        request = sandbox_pb2.ExecuteRequest(wasm=module)
        request.typed.export = "f"
        await bench.execute(request)
        return "ran"

    return act


def parts(*messages: module_pb2.PushRequest) -> Act:
    async def act(bench: Bench) -> str:
        await bench.modules.Push(iter(messages), timeout=10)
        return "stored"

    return act


def _chunk(data: bytes) -> module_pb2.PushRequest:
    return module_pb2.PushRequest(chunk=data)


def _header(**fields: object) -> module_pb2.PushRequest:
    return module_pb2.PushRequest(header=module_pb2.PushHeader(**fields))  # type: ignore[arg-type]


GOOD = assembled(_GOOD)

NOT_MODULES = [
    Row("nothing", BAD_REQUEST, pushed(b"")),
    Row("WAT text", INVALID, pushed(_GOOD.encode())),
    Row("WAT text in the call", INVALID, inline(_GOOD.encode())),
    Row("gzip", INVALID, pushed(gzip.compress(GOOD))),
    Row("ELF, or .cwasm", INVALID, pushed(b"\x7fELF\x02\x01\x01" + bytes(500))),
    Row("ELF in the call", INVALID, inline(b"\x7fELF\x02\x01\x01" + bytes(500))),
    Row("the magic and nothing else", INVALID, pushed(b"\0asm")),
    Row("version 2", INVALID, pushed(b"\0asm\x02\0\0\0")),
    Row("every byte after the header is 0xff", INVALID, pushed(wasm.MAGIC + b"\xff" * 10_000)),
    Row("a module cut short", INVALID, pushed(GOOD[:-3])),
    Row("a component", INVALID, pushed(b"\0asm\x0d\0\x01\0")),
    Row("5,000 components in one another", INVALID, pushed(wasm.nested_components())),
    Row("lying section length", INVALID, pushed(wasm.lying_section_length())),
    Row("lying vector length", INVALID, pushed(wasm.lying_vector_length())),
    Row("lying body length", INVALID, pushed(wasm.lying_body_length())),
    Row("a number of nine bytes", INVALID, pushed(wasm.overlong_leb())),
    Row("sections out of order", INVALID, pushed(wasm.sections_out_of_order())),
    Row("an export's name is not UTF-8", INVALID, pushed(wasm.bad_utf8_export())),
]

NOT_ENABLED = [
    Row("threads", INVALID, pushed(assembled("(module (memory 1 1 shared))"))),
    Row("memory64", INVALID, pushed(assembled("(module (memory i64 1))"))),
    Row("100 memories", INVALID, pushed(assembled("(module" + "(memory 1)" * 100 + ")"))),
    Row("GC", INVALID, pushed(wasm.gc_types())),
    Row("exceptions", INVALID, pushed(wasm.exceptions_tag())),
]

CLAIMS = [
    Row("another digest than announced", DIGEST, parts(_header(digest=NO_DIGEST), _chunk(GOOD))),
    Row("another size than announced", DIGEST, parts(_header(size_bytes=7), _chunk(GOOD))),
    Row("an announced digest that is none", BAD_REQUEST,
        parts(_header(digest="sha256:zz"), _chunk(GOOD))),
    Row("a header twice", BAD_REQUEST, parts(_header(), _header(), _chunk(GOOD))),
    Row("a header at the end", BAD_REQUEST, parts(_chunk(GOOD), _header())),
    Row("a message without a part", BAD_REQUEST, parts(module_pb2.PushRequest())),
    Row("no message at all", INVALID, parts()),
    Row("larger than the store takes", "INVALID_ARGUMENT/MODULE_TOO_LARGE",
        pushed(wasm.MAGIC + wasm.custom(b"x", bytes(17_000_000)))),
]  # fmt: skip


# Whether the engine's own limit or the daemon's is found first is nobody's business.
REFUSED = f"{TOO_COMPLEX} or {INVALID}"

BOMBS = [
    Row("a million empty functions", TOO_COMPLEX, pushed(wasm.many_empty_functions())),
    Row("one function of 7 MB", TOO_COMPLEX, pushed(wasm.one_huge_function(500_000))),
    Row("one function of 10 MB", REFUSED, pushed(wasm.one_huge_function(700_000))),
    Row("br_table with 200,000 targets", REFUSED, pushed(wasm.br_table(200_000))),
    Row("100,000 blocks in one another", f"stored or {REFUSED}",
        pushed(wasm.nested_blocks(100_000))),
    Row("100,000 imports", REFUSED, pushed(wasm.many_imports())),
    Row("100,000 exports", REFUSED, pushed(wasm.many_exports())),
    Row("900,000 types", REFUSED, pushed(wasm.many_types())),
    Row("4 billion locals", REFUSED, pushed(wasm.many_locals())),
    Row("7 MB of data for one page", "stored", pushed(wasm.huge_data())),
    Row("a million data segments", REFUSED, pushed(wasm.many_data_segments())),
    Row("two bytes, 4 GiB apart", "stored", pushed(wasm.sparse_data())),
    Row("2 MB of noise as names", f"stored or {REFUSED}", pushed(wasm.name_section_garbage())),
    Row("an export's name of 200 KB", REFUSED, pushed(wasm.long_export_name())),
]  # fmt: skip

ROWS = [*NOT_MODULES, *NOT_ENABLED, *CLAIMS, *BOMBS]
