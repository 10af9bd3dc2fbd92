"""A module bound in this process, and one bound in a child for whatever does WASI I/O.

WASI I/O starts threads of the engine's runtime that never end. Other tests of this run fork, so
none of it may happen here.
"""

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wasmtime

from sandboxd.runner.compiler import compile_module
from sandboxd.runner.engine import Engines, build_engines
from sandboxd.runner.guest import Guest
from sandboxd.runner.outbox import REGIONS_OFFSET_BYTES, Outbox
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

MIB = 1 << 20
DEFAULT_LIMITS = {"memory_bytes": 16 * MIB, "table_elements": 10_000, "output_bytes": MIB}


def read_outbox(fd: int) -> tuple[bytes, bytes, call_pb2.Logs]:
    """Read an outbox as the supervisor does."""
    capacity = (os.fstat(fd).st_size - REGIONS_OFFSET_BYTES) // 4
    lengths = struct.unpack("<3Q", os.pread(fd, 24, 0))
    stdout, stderr, log = (
        os.pread(fd, length, REGIONS_OFFSET_BYTES + i * capacity)
        for i, length in enumerate(lengths)
    )
    return stdout, stderr, call_pb2.Logs.FromString(log)


def read_result(fd: int) -> bytes:
    """Read the result that was too long for a frame; empty if there is none."""
    capacity = (os.fstat(fd).st_size - REGIONS_OFFSET_BYTES) // 4
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 24))
    return os.pread(fd, length, REGIONS_OFFSET_BYTES + 3 * capacity)


def value(kind: str, number: float) -> call_pb2.Value:
    return call_pb2.Value(**{kind: number})  # type: ignore[arg-type]


def numbers(result: runner_pb2.Result) -> list[float]:
    """The results of a typed call that must have completed."""
    assert result.WhichOneof("outcome") == "completed", result
    return [getattr(item, item.WhichOneof("kind") or "") for item in result.completed.results]


def execute_job(**given: object) -> runner_pb2.Execute:
    """A job: `typed`, `bytes` or `wasi` is the call, the rest are limits."""
    call = {name: given.pop(name) for name in ("typed", "bytes", "wasi") if name in given}
    request = sandbox_pb2.ExecuteRequest(**call)  # type: ignore[arg-type]
    limits = {**DEFAULT_LIMITS, **given}
    return runner_pb2.Execute(request=request, **limits)  # type: ignore[arg-type]


class Bound:
    """A Guest with its outbox, and calls in one line."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        artifact: bytes,
        fuel: bool,
        outbox_bytes: int,
        no_start_function: bool,
    ):
        self.engine = engine
        self.fd = os.memfd_create("outbox")
        os.ftruncate(self.fd, outbox_bytes)
        self.outbox = Outbox(self.fd)
        self.guest = Guest(engine, artifact, fuel, self.outbox, no_start_function)

    def close(self) -> None:
        self.outbox.close()
        os.close(self.fd)

    def run(self, **job: object) -> runner_pb2.Result:
        execute = execute_job(**job)
        result = self.guest.execute(execute)
        if result.HasField("completed") and not result.completed.output:
            # A long one is in the outbox, from where the supervisor takes it.
            result.completed.output = read_result(self.fd)
        self.guest.prepare()
        # What goes over the wire must be parseable there.
        return runner_pb2.Result.FromString(result.SerializeToString())

    def typed(self, export: str, *args: tuple[str, float], **limits: int) -> runner_pb2.Result:
        call = call_pb2.TypedCall(export=export, args=[value(*arg) for arg in args])
        return self.run(typed=call, **limits)

    def call_bytes(
        self,
        export: str,
        data: bytes = b"",
        convention: str = "UNSPECIFIED",
        length: int = 0,
        **limits: int,
    ) -> runner_pb2.Result:
        call = call_pb2.BytesCall(
            export=export,
            input=data,
            result_convention=call_pb2.ResultConvention.Value(f"RESULT_CONVENTION_{convention}"),
            result_length_bytes=length,
        )
        return self.run(bytes=call, **limits)

    @property
    def stdout(self) -> bytes:
        return read_outbox(self.fd)[0]

    @property
    def logs(self) -> list[call_pb2.LogEntry]:
        return list(read_outbox(self.fd)[2].entries)


Bind = Callable[..., Bound]


@pytest.fixture(scope="session")
def engines() -> Engines:
    return build_engines()


def compile_wasm(engine: wasmtime.Engine, wasm: bytes) -> bytes:
    """Compile; return the artifact."""
    return compile_and_tell(engine, wasm)[0]


def compile_and_tell(engine: wasmtime.Engine, wasm: bytes) -> tuple[bytes, runner_pb2.Compiled]:
    """Compile; return the artifact and what the compiler tells of the module."""
    fd = os.memfd_create("artifact")
    try:
        reply = compile_module(engine, wasm, fd, 64 * MIB)
        assert reply.WhichOneof("reply") == "compiled", reply
        return os.pread(fd, reply.compiled.artifact_size_bytes, 0), reply.compiled
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def bind(engines: Engines) -> Iterator[Bind]:
    """Compile text and bind it, in this process."""
    opened = []

    def bind_text(wat: str, *, fuel: bool = False, outbox_bytes: int = 8 * MIB) -> Bound:
        engine = engines.fuel if fuel else engines.plain
        artifact, told = compile_and_tell(engine, bytes(wasmtime.wat2wasm(wat)))
        bound = Bound(engine, artifact, fuel, outbox_bytes, told.no_start_function)
        opened.append(bound)
        return bound

    yield bind_text
    for bound in opened:
        bound.close()


class Child:
    """The other end of wasi_child.py: runs jobs of a module in one process."""

    def __init__(self, data_bytes: int | None = None) -> None:
        extra = {} if data_bytes is None else {"DATA_BYTES": str(data_bytes)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("wasi_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TOKIO_WORKER_THREADS": "1", **extra},
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        status = self._process.wait(timeout=10)
        self._process.stdout.close()
        assert status == 0

    def bind(self, wat: str) -> None:
        self._send(b"bind", bytes(wasmtime.wat2wasm(wat)))
        assert self._receive() == b"bound"

    def run(self, **job: object) -> "Answer":
        execute = execute_job(**job)
        self._send(b"exec", execute.SerializeToString())
        result = runner_pb2.Result.FromString(self._receive())
        return Answer(
            result,
            self._receive(),
            self._receive(),
            list(call_pb2.Logs.FromString(self._receive()).entries),
        )

    def _send(self, verb: bytes, payload: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(verb + struct.pack("<I", len(payload)) + payload)
        self._process.stdin.flush()

    def _receive(self) -> bytes:
        assert self._process.stdout is not None
        (length,) = struct.unpack("<I", self._process.stdout.read(4))
        return self._process.stdout.read(length)


class Answer:
    """A result, and what the outbox held."""

    def __init__(
        self,
        result: runner_pb2.Result,
        stdout: bytes,
        stderr: bytes,
        logs: list[call_pb2.LogEntry],
    ):
        self.result = result
        self.stdout = stdout
        self.stderr = stderr
        self.logs = logs


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    running = Child()
    yield running
    running.close()
