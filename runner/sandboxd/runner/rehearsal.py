"""What a fresh runner will write to, found out once.

A forked child shares its memory with the zygote until it writes to a page. Each first write is a
page fault, and a runner takes some hundred of them until its first call is answered: more than half
of the time that it needs. Which pages they are hardly changes from runner to runner. So the zygote
has one child load and call a module of our own, and notes the pages that it wrote to; every runner
then has them copied in one go, before there is anything to do for it.

Nothing depends on the list being right: a page too few is a fault, a page too many a copy in vain.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator

import wasmtime

from sandboxd.runner.engine import Engines
from sandboxd.runner.guest import Guest
from sandboxd.runner.outbox import Outbox
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

PageRange = tuple[int, int]
"""Address and length in bytes of pages that are written to."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# madvise(2): populate page tables writable, since Linux 5.14.
_MADV_POPULATE_WRITE = 23
# Documentation/admin-guide/mm/pagemap.rst: "page exclusively mapped", "page present".
_EXCLUSIVE, _PRESENT = 1 << 56, 1 << 63
# Pages that were not written to are copied along if there are no more of them in a row.
_MAX_GAP_PAGES = 1

# A bytes call into it touches what any call does: memory, two functions with numbers, a result.
_MODULE = """
(module
  (memory (export "memory") 1)
  (data (i32.const 8) "x")
  (func (export "alloc") (param i32) (result i32) (i32.const 16))
  (func (export "run") (param i32 i32) (result i64) (i64.const 0x1000000008)))
"""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def find_hot_pages(engines: Engines) -> tuple[PageRange, ...]:
    """Return what a runner writes to until its first answer. Needs /proc; empty if that is closed.

    Forks twice and waits: one child compiles our module, another one loads and calls it.
    """
    artifact = _in_child(lambda: _compile(engines.plain))
    if not artifact:
        return ()
    writable = tuple(_writable())
    packed = _in_child(lambda: _rehearse(engines.plain, artifact, writable))
    return tuple(struct.iter_unpack("=QQ", packed))


def populate(pages: tuple[PageRange, ...]) -> None:
    """Make these pages this process's own, as writing to each would."""
    for address, length in pages:
        if (
            _libc.madvise(address, length, _MADV_POPULATE_WRITE)
            and ctypes.get_errno() == errno.EINVAL
        ):
            return  # a kernel before 5.14


def _in_child(work: Callable[[], bytes]) -> bytes:
    """Return what `work` returns in a forked child; nothing if it fails."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            with open(write_fd, "wb") as out:
                out.write(work())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer


def _compile(engine: wasmtime.Engine) -> bytes:
    return bytes(wasmtime.Module(engine, wasmtime.wat2wasm(_MODULE)).serialize())


def _rehearse(engine: wasmtime.Engine, artifact: bytes, writable: tuple[PageRange, ...]) -> bytes:
    outbox_fd = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    os.ftruncate(outbox_fd, 1 << 20)
    guest = Guest(engine, artifact, False, Outbox(outbox_fd))
    call = call_pb2.BytesCall(export="run", input=b"x")
    job = runner_pb2.Execute(
        request=sandbox_pb2.ExecuteRequest(bytes=call),
        memory_bytes=1 << 20,
        table_elements=100,
        output_bytes=1 << 10,
    )
    frame = runner_pb2.RunnerCommand(execute=job).SerializeToString()
    for _ in range(2):
        command = runner_pb2.RunnerCommand.FromString(frame)
        result = guest.execute(command.execute)
        runner_pb2.RunnerReply(result=result).SerializeToString()
        guest.prepare()
    return b"".join(struct.pack("=QQ", *pages) for pages in _written(writable))


def _writable() -> Iterator[PageRange]:
    """The private writable mappings of this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            place, mode, *_ = line.split()
            if mode == "rw-p":
                start, end = (int(number, 16) for number in place.split("-"))
                yield start, end - start


def _written(mappings: tuple[PageRange, ...]) -> Iterator[PageRange]:
    """Those pages of these mappings that no other process shares."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    for start, length in mappings:
        count = length // _PAGE_BYTES
        entries = os.pread(pagemap, 8 * count, start // _PAGE_BYTES * 8)
        hot = [
            number
            for number, (entry,) in enumerate(struct.iter_unpack("=Q", entries))
            if entry & _EXCLUSIVE and entry & _PRESENT
        ]
        yield from _ranges(start, hot)


def _ranges(start: int, hot: list[int]) -> Iterator[PageRange]:
    first = last = None
    for number in hot:
        if first is None or last is None:
            first = last = number
        elif number - last <= _MAX_GAP_PAGES + 1:
            last = number
        else:
            yield start + first * _PAGE_BYTES, (last + 1 - first) * _PAGE_BYTES
            first = last = number
    if first is not None and last is not None:
        yield start + first * _PAGE_BYTES, (last + 1 - first) * _PAGE_BYTES
