"""Child process of the tests: binds modules and executes jobs that it reads from its input.

Like a runner it is forked from a process that is preloaded, and can make no C callback any more.
If DATA_BYTES is set, it is the process's RLIMIT_DATA, and RLIMIT_AS is as far above it as a
runner's.

Frames: a verb of 4 bytes ("bind" or "exec"), a little-endian u32 length, and
WebAssembly or a serialized Execute. Answers are u32 length and bytes: "bound", or
the Result and the outbox's three regions.
"""

import ctypes
import mmap
import os
import resource
import struct
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

import wasmtime

from sandboxd.runner.compiler import compile_module
from sandboxd.runner.engine import build_engines
from sandboxd.runner.guest import Guest
from sandboxd.runner.isolation.policy import RESERVED_BYTES
from sandboxd.runner.outbox import REGIONS_OFFSET_BYTES, Outbox
from sandboxd.runner.preload import preload
from sandboxd.wire.v1 import runner_pb2

OUTBOX_BYTES = 4 << 20


def main() -> None:
    preload()
    engine = build_engines().plain
    assert len(os.listdir("/proc/self/task")) == 1
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    try:
        forbid_callbacks()
        if "DATA_BYTES" in os.environ:
            data_bytes = int(os.environ["DATA_BYTES"])
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes,) * 2)
            resource.setrlimit(resource.RLIMIT_AS, (data_bytes + RESERVED_BYTES,) * 2)
        serve(engine, sys.stdin.buffer, sys.stdout.buffer)
    except BaseException:  # noqa: BLE001 - reported by the exit status
        traceback.print_exc()
        os._exit(1)
    # As a runner does: the engine's threads still live, and would not survive a tear-down.
    os._exit(0)


def forbid_callbacks() -> None:
    """Make the page that libffi writes its callbacks to read-only, if there is one."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, protection = line.split()[:2]
        if protection.startswith("rwx"):
            start, end = (int(part, 16) for part in span.split("-"))
            read_and_execute = mmap.PROT_READ | mmap.PROT_EXEC
            length = ctypes.c_size_t(end - start)
            assert libc.mprotect(ctypes.c_void_p(start), length, read_and_execute) == 0


def serve(engine: wasmtime.Engine, source: BinaryIO, sink: BinaryIO) -> None:
    outbox_fd = os.memfd_create("outbox")
    os.ftruncate(outbox_fd, OUTBOX_BYTES)
    outbox = Outbox(outbox_fd)
    guest: Guest | None = None
    while verb := source.read(4):
        (length,) = struct.unpack("<I", source.read(4))
        payload = source.read(length)
        if verb == b"bind":
            guest = bind(engine, payload, outbox)
            answer(sink, b"bound")
        else:
            assert guest is not None
            result = guest.execute(runner_pb2.Execute.FromString(payload))
            answer(sink, result.SerializeToString())
            capacity = (OUTBOX_BYTES - REGIONS_OFFSET_BYTES) // 4
            for i, size in enumerate(struct.unpack("<3Q", os.pread(outbox_fd, 24, 0))):
                answer(sink, os.pread(outbox_fd, size, REGIONS_OFFSET_BYTES + i * capacity))
            guest.prepare()
        sink.flush()


def bind(engine: wasmtime.Engine, wasm: bytes, outbox: Outbox) -> Guest:
    fd = os.memfd_create("artifact")
    reply = compile_module(engine, wasm, fd, 64 << 20)
    assert reply.WhichOneof("reply") == "compiled", reply
    artifact = os.pread(fd, reply.compiled.artifact_size_bytes, 0)
    os.close(fd)
    return Guest(engine, artifact, False, outbox)


def answer(sink: BinaryIO, payload: bytes) -> None:
    sink.write(struct.pack("<I", len(payload)) + payload)


if __name__ == "__main__":
    main()
