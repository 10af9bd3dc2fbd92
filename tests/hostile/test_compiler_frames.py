"""A compiler replaced by a malicious program costs its own module and nobody else's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from tests.hostile.stage import (
    CACHE_BYTES,
    COMPILE_WALL_S,
    MIB,
    SLACK_S,
    Neighbour,
    Stage,
    open_descriptors,
    resident_bytes,
)

from sandboxd.supervisor import faults
from sandboxd.supervisor.keys import Key, digest_of
from sandboxd.supervisor.layers import Layers
from sandboxd.supervisor.memory_file import new_memory_file
from sandboxd.supervisor.services.modules import ModuleService
from sandboxd.supervisor.store import Store
from sandboxd.v1 import module_pb2

TOO_COMPLEX = "MODULE_TOO_COMPLEX"
# The compiler's own limits are to fire, not the call's.
CALL_WALL_MS = 10_000
# The second is what a compiler gets to end once it has answered or hung up.
COMPILE_WITHIN_S = COMPILE_WALL_S + 1.0 + SLACK_S
NEIGHBOUR_WITHIN_S = 0.4
GROWTH_BYTES = 96 * MIB

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Lie:
    """What a compiler does with its module, and what its caller is told."""

    name: str
    script: str
    said: str = TOO_COMPLEX


LIES = [
    Lie("says nothing", "hang()"),
    Lie("half a frame", "raw(b'\\x05\\0\\0\\0abc'); hang()"),
    Lie("a frame in crumbs", "raw(b'\\xff\\xff\\0\\0')\nwhile True: raw(b'x')"),
    Lie("a frame of 4 GiB", "raw(b'\\xff' * 4); hang()"),
    Lie("noise without end", "while True: raw(os.urandom(1 << 16))"),
    Lie("empty frames without end", "while True: raw(bytes(1 << 20))"),
    Lie("ready twice", "ready(); hang()"),
    Lie("a message before it is ready", "#raw\nsay(invalid=runner_pb2.Invalid()); hang()"),
    Lie("is bound", "frame(runner_pb2.RunnerReply(bound=runner_pb2.Bound()).SerializeToString());"
        "hang()"),
    Lie("compiled, and then a flood", "compiled()\nwhile True: raw(b'\\xff' * (1 << 20))"),
    Lie("compiled twice", "compiled(); compiled(); hang()"),
    Lie("compiled, but wrote nothing", "compiled(size=2)"),
    Lie("compiled 0 bytes", "os.ftruncate(fds[2], 0); compiled(size=0)"),
    Lie("compiled 2**63 bytes", "compiled(size=2**63)"),
    Lie("an artifact beyond the limit", "os.ftruncate(fds[2], 2 << 20); "
        "compiled(size=2 << 20)"),
    Lie("50,000 exports", "compiled(exports=[call_pb2.Extern()] * 50_000)"),
    Lie("10,001 exports", "compiled(exports=[call_pb2.Extern(kind=1)] * 10_001)"),
    Lie("700,000 exports behind a field that nobody knows",
        "os.write(fds[2], b'x')\n"
        "told = runner_pb2.Compiled(artifact_size_bytes=1).SerializeToString()\n"
        "told += b'\\x1a\\0' * 700_000\n"
        "frame(b'\\xfa\\x01\\x01\\x80' + b'\\x1a' + varint(len(told)) + told); hang()"),
    Lie("types that cannot be", "compiled(exports=[call_pb2.Extern(name='f', kind=1, "
        "params=[1 << 30])])"),
    Lie("50,000 imports, in pieces", "part = reply(compiled=runner_pb2.Compiled("
        "imports=[call_pb2.Extern()] * 1000)).SerializeToString()\nframe(part * 50); hang()"),
    Lie("a signature of 100,000 numbers", "compiled(exports=[call_pb2.Extern(name='f', kind=1, "
        "params=[1] * 100_000)])"),
    Lie("a verdict of a megabyte", "say(invalid=runner_pb2.Invalid(message='\\x1b[2J' * 250_000))",
        "INVALID_MODULE"),
    Lie("a limit of a megabyte", "say(too_complex=runner_pb2.TooComplex(limit='x' * 1_000_000, "
        "message='y' * 1_000_000))"),
    Lie("a failure of a megabyte", "#raw\n"
        "say(failed=runner_pb2.Failed(message='\\x1b[2J' * 250_000))", "COMPILER_LOST"),
    Lie("is killed", "os.kill(os.getpid(), signal.SIGKILL)", "COMPILER_LOST"),
    Lie("groups in one another", "frame(b'\\x1b' * 100_000)"),
    Lie("descriptors without end", "raw(b'\\xff\\xff\\0\\0')\n"
        "while True: pass_descriptors(200, b'x')"),
    Lie("closes its socket", "sock.close(); hang()"),
    Lie("half a frame, and closes its socket", "raw(b'abc'); sock.close(); hang()"),
    Lie("closes its socket and burns", "sock.close()\nwhile True: pass"),
    Lie("ends without a word", "os._exit(0)"),
    Lie("aborts", "os.abort()"),
    Lie("stops itself", "os.kill(os.getpid(), signal.SIGSTOP)"),
    Lie("answers and stays", "compiled(); hang()", "completed"),
]  # fmt: skip


async def parts(pushed: bytes) -> AsyncIterator[module_pb2.PushRequest]:
    yield module_pb2.PushRequest(chunk=pushed)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with Stage(tmp_path_factory.mktemp("stage")) as made:
        yield made
    assert made.lost == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
async def test_a_lying_compiler_costs_its_own_module_and_nobody_elses(
    stage: Stage, lie: Lie
) -> None:
    async with Neighbour(stage) as neighbour:
        open_before, resident_before = open_descriptors(), resident_bytes()
        started_at = time.monotonic()
        module = stage.module(lie.script.encode())
        assert await stage.call("answer(b'x')", module, wall_ms=CALL_WALL_MS) == lie.said
        assert time.monotonic() - started_at < COMPILE_WITHIN_S
        assert resident_bytes() - resident_before < GROWTH_BYTES
        # Another module is compiled as if nothing had been.
        assert await stage.call("answer(b'x')", stage.module(), wall_ms=CALL_WALL_MS) == "completed"
    assert neighbour.slowest_s < NEIGHBOUR_WITHIN_S
    # One idle runner and its artifact, and one of each that may still be dying.
    assert open_descriptors() - open_before <= 5 + 1 + 5
    assert stage.lost == []


async def test_a_compiler_that_was_taken_over_cannot_change_what_is_stored(
    stage: Stage, tmp_path: Path
) -> None:
    store = Store(tmp_path / "state", MIB, 10, MIB)
    store.claim()
    store.load()
    service = ModuleService(store, stage.compiles, push_time_s=10)
    pushed = stage.module(
        b"for change in (lambda: os.pwrite(fds[1], b'evil', 8), lambda: os.ftruncate(fds[1], 9)):\n"
        b"    try: change()\n"
        b"    except OSError: pass\n"
        b"compiled()"
    )
    context: Any = SimpleNamespace(time_remaining=lambda: None)
    response = await service.Push(parts(pushed), context)
    assert response.created
    fd = store.open_wasm("default", response.module.digest)
    assert os.pread(fd, MIB, 0) == pushed
    os.close(fd)
    store.close()


async def test_what_compilers_tell_is_in_the_budget(stage: Stage) -> None:
    exports = "call_pb2.Extern(name=str(n), kind=1, params=[1] * 90) for n in range(3000)"
    cache = stage.compiles.cache
    for _ in range(40):
        module = stage.module(f"compiled(exports=[{exports}])".encode())
        assert await stage.call("answer(b'x')", module, wall_ms=CALL_WALL_MS) == "EXPORT_NOT_FOUND"
    assert cache.size_bytes <= CACHE_BYTES
    # Each takes some 0.5 MiB, with a byte of code.
    assert 4 <= len(cache) <= 39


async def test_a_call_does_not_wait_for_a_hung_compiler_beyond_its_deadline(stage: Stage) -> None:
    started_at = time.monotonic()
    module = stage.module(b"hang()")
    assert await stage.call("answer(b'x')", module, wall_ms=100) == "deadline:NOT_STARTED"
    assert time.monotonic() - started_at < 0.1 + SLACK_S
    async with asyncio.timeout(COMPILE_WITHIN_S):
        while stage.compiles.working:  # noqa: ASYNC110 - a number, not an event
            await asyncio.sleep(0.01)


async def test_a_module_whose_compiler_is_killed_again_and_again_gets_a_verdict(
    stage: Stage,
) -> None:
    module = stage.module(b"os.kill(os.getpid(), signal.SIGKILL)")
    answers = [await stage.call("answer(b'x')", module, wall_ms=CALL_WALL_MS) for _ in range(3)]
    assert answers == ["COMPILER_LOST", "COMPILER_LOST", TOO_COMPLEX]
    forked = stage.zygote._next_id
    assert await stage.call("answer(b'x')", module, wall_ms=CALL_WALL_MS) == TOO_COMPLEX
    assert stage.zygote._next_id == forked, "nothing is tried any more"
    assert await stage.call("answer(b'x')", stage.module(), wall_ms=CALL_WALL_MS) == "completed"


async def compile_one(stage: Stage, script: bytes) -> faults.Fault | None:
    """Have a module compiled for nobody's call; return the fault, if there was one."""
    module = stage.module(script)

    def open_wasm() -> int:
        fd = new_memory_file()
        os.write(fd, module)
        return fd

    try:
        await stage.compiles.artifact(Key("default", digest_of(module), fuel=False), open_wasm)
    except faults.Fault as fault:
        return fault
    return None


@pytest.mark.parametrize(
    ("told", "is_used"),
    [
        ("name='landlock', active=True", True),
        ("name='landlock', detail='no such luck'", False),
        ("name='session', active=True", False),
    ],
    ids=["has it", "says that it has not", "says nothing of it"],
)
async def test_a_compiler_that_lacks_a_required_layer_is_not_used(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    told: str,
    is_used: bool,
) -> None:
    monkeypatch.setattr(stage.zygote, "layers", Layers((), ("landlock",)))
    script = (
        "#raw\nsay(ready=runner_pb2.Ready(layers=[control_pb2.IsolationLayer("
        f"{told})]))\nread_frame(); compiled()"
    )
    fault = await compile_one(stage, script.encode())
    assert (fault is None) == is_used
    assert ("a compiler is not used: isolation layer landlock: " in caplog.text) != is_used
    if fault is not None:
        assert (fault.reason, fault.retry_after_s) == ("COMPILER_LOST", 0.5)
