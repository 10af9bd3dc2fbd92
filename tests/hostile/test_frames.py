"""A runner replaced by a malicious program cannot stall, grow or crash the supervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.hostile.stage import (
    GRACE_S,
    MIB,
    OUTPUT_LIMIT,
    SLACK_S,
    WALL_MS,
    Neighbour,
    Stage,
    open_descriptors,
    resident_bytes,
)

from sandboxd.supervisor.keys import Key, digest_of

# A neighbour's call takes about a millisecond; a loop that a flood holds up would show as far more
# than what a busy machine adds.
NEIGHBOUR_WITHIN_S = 0.3
GROWTH_BYTES = 64 * MIB

BREACH = "protocol_violation"
KILLED = "deadline:KILLED"


@dataclass(frozen=True)
class Lie:
    """What a runner does with its call, and what comes of the call."""

    name: str
    script: str
    outcome: str = BREACH


LIES = [
    Lie("says nothing", "hang()", KILLED),
    Lie("binds and says nothing", "bound(); hang()", KILLED),
    Lie("half a header", "bound(); raw(b'\\x05\\0'); hang()", KILLED),
    Lie("half a frame", "bound(); raw(b'\\x05\\0\\0\\0abc'); hang()", KILLED),
    Lie("a frame a byte at a time", "bound()\nfor b in b'\\xff\\xff\\0\\0' + bytes(65535):\n"
        " raw(bytes([b])); time.sleep(0.002)"),
    Lie("a frame in crumbs, as fast as it can", "bound()\nraw(b'\\xff\\xff\\0\\0')\n"
        "while True: raw(b'x')"),
    Lie("a frame of 4 GiB", "bound(); raw(b'\\xff\\xff\\xff\\xff'); hang()"),
    Lie("a frame of 4 GiB, and the bytes", "bound(); raw(b'\\xff\\xff\\xff\\xff')\n"
        "while True: raw(bytes(1 << 20))"),
    Lie("empty frames without end", "bound()\nwhile True: raw(bytes(1 << 20))"),
    Lie("noise without end", "bound()\nwhile True: raw(os.urandom(1 << 16))"),
    Lie("a frame that is no message", "bound(); frame(b'\\xff' * 100); hang()"),
    Lie("a frame of an unknown field", "bound(); frame(b'\\xfa\\x01\\x03abc'); hang()"),
    Lie("a frame without a reply", "bound(); frame(b''); hang()"),
    Lie("groups in one another", "bound(); frame(b'\\xfb\\x01' * 5000); hang()"),
    Lie("a result without an outcome", "bound(); say(result=runner_pb2.Result()); hang()"),
    Lie("bad UTF-8 in a message",
        "bound(); frame(b'\\x22\\x08\\x1a\\x06\\x08\\x0a\\x12\\x02\\xff\\xfe'); hang()"),
    Lie("a result before it is bound",
        "say(result=runner_pb2.Result(exited=call_pb2.Exited(code=1))); hang()"),
    Lie("bound twice", "bound(); bound(); hang()"),
    Lie("ready again", "bound(); ready(); hang()"),
    Lie("failed, when bound", "bound(); say(failed=runner_pb2.Failed(message='x')); hang()"),
    Lie("answers twice at once", "bound()\n"
        "one = reply(result=runner_pb2.Result(exited=call_pb2.Exited())).SerializeToString()\n"
        "raw((struct.pack('<I', len(one)) + one) * 2); hang()"),
    Lie("could not load the module, at length", "bound(error='\\x1b[2J' * 50000); hang()"),
    Lie("layers that nobody knows", "bound(layers=[control_pb2.IsolationLayer(name=f'moat{i}', "
        "active=True) for i in range(5000)]); answer(b'x'); hang()"),
    Lie("closes its socket", "bound(); sock.close(); hang()"),
    Lie("closes its writing side", "bound(); sock.shutdown(socket.SHUT_WR); hang()"),
    Lie("is killed from outside", "bound(); os.kill(os.getpid(), signal.SIGKILL)", "RUNNER_LOST"),
    Lie("ends without a word", "bound(); os._exit(0)"),
    Lie("ends with a code", "bound(); os._exit(77)"),
    Lie("dies of SIGSEGV", "bound(); os.kill(os.getpid(), signal.SIGSEGV); hang()",
        "crashed:SIGSEGV"),
    Lie("dies of SIGSYS", "bound(); os.kill(os.getpid(), signal.SIGSYS); hang()",
        "sandbox_violation"),
    Lie("stops itself", "bound(); os.kill(os.getpid(), signal.SIGSTOP); hang()", KILLED),
    Lie("ignores every signal it can", "for n in range(1, 65):\n try: signal.signal(n, 1)\n"
        " except (OSError, ValueError): pass\nbound(); hang()", KILLED),
    Lie("output beyond the limit", f"answer(b'x' * {OUTPUT_LIMIT + 65537}); hang()"),
    Lie("a million numbers", "result(completed=call_pb2.Completed("
        "results=[call_pb2.Value()] * 150_000)); hang()"),
    Lie("a hundred thousand frames of backtrace", "result(trapped=call_pb2.Trapped(code=10, "
        "frames=[call_pb2.Frame()] * 100_000)); hang()"),
    Lie("a rejection of 200 KB", "result(rejected=runner_pb2.Rejected(message='x' * 200_000))\n"
        "hang()"),
    Lie("a rejection of 40 KB", "result(rejected=runner_pb2.Rejected(field='x' * 1000, "
        "message='\\0\\n\\x1b' * 13_000)); hang()", "ARGUMENT_MISMATCH"),
    Lie("an interrupt that nobody asked for",
        "result(trapped=call_pb2.Trapped(code=11)); hang()", "trapped:INTERRUPT"),
    Lie("a trap code that is none", "result(trapped=call_pb2.Trapped(code=4711)); hang()"),
    Lie("a limit that is none", "result(limit_exceeded=call_pb2.LimitExceeded(kind=99)); hang()"),
    Lie("outbox lengths beyond the file", "outbox((2**64 - 1, 2**64 - 1, 2**64 - 1)); answer(b'')"),
    Lie("outbox lengths beyond the limit", f"outbox(({OUTPUT_LIMIT}, 1, 0)); answer(b'')"),
    Lie("a log that is no message", "outbox((0, 0, 50), fds and 4096, b'\\xff' * 400_000)\n"
        "answer(b'')"),
    Lie("a log of too many entries", "size = (os.fstat(fds[2]).st_size - 4096) // 3\n"
        "outbox((0, 0, 60_000), 4096 + 2 * size, b'\\x0a\\0' * 30_000); answer(b'')"),
    Lie("descriptors with its answer", "bound(); pass_descriptors(200, b'\\x05'); hang()", KILLED),
    Lie("descriptors without end", "bound()\nraw(b'\\xff\\xff\\0\\0')\n"
        "while True: pass_descriptors(200, b'x')"),
]  # fmt: skip


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One supervisor for all of these tests: what one of them breaks, the others notice."""
    async with Stage(tmp_path_factory.mktemp("stage")) as made:
        yield made
    assert made.lost == []


@pytest_asyncio.fixture(loop_scope="module")
async def own_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A supervisor of its own, for runners that do not even start: the pool makes pauses then."""
    async with Stage(tmp_path) as made:
        yield made
    assert made.lost == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
async def test_a_lying_runner_costs_its_own_call_and_nobody_elses(stage: Stage, lie: Lie) -> None:
    async with Neighbour(stage) as neighbour:
        module = stage.module()
        open_before, resident_before = open_descriptors(), resident_bytes()
        started_at = time.monotonic()
        assert await stage.call(lie.script, module) == lie.outcome
        elapsed_s = time.monotonic() - started_at
        assert elapsed_s < WALL_MS / 1000 + GRACE_S + SLACK_S
        # What it left behind in the socket or does now hits nobody.
        await asyncio.sleep(0.05)
        assert resident_bytes() - resident_before < GROWTH_BYTES
        assert await stage.call("answer(b'ok')", module) == "completed"
    assert neighbour.slowest_s < NEIGHBOUR_WITHIN_S
    # One idle runner for this module beside the neighbour's, its artifact, and a dying one.
    assert open_descriptors() - open_before <= 5 + 1 + 5
    assert stage.lost == []


AT_START = [
    Lie("never says that it is ready", "hang()", "deadline:NOT_STARTED"),
    Lie("says that it is bound", "bound(); hang()", "deadline:NOT_STARTED"),
    # Whether these are handed a call before the lie arrives is a race.
    Lie("answers before it is asked", "ready(); answer(b'x'); hang()",
        f"deadline:NOT_STARTED or {BREACH}"),
    Lie("half a frame when it is ready", "ready(); raw(b'x'); hang()",
        f"deadline:NOT_STARTED or {KILLED}"),
    Lie("floods at once", "while True: raw(bytes(1 << 20))", "deadline:NOT_STARTED"),
    Lie("a ready frame of 256 KiB of layers", "say(ready=runner_pb2.Ready(layers=["
        "control_pb2.IsolationLayer()] * 100_000)); hang()", "deadline:NOT_STARTED"),
    Lie("could not lock itself down, at length",
        "say(failed=runner_pb2.Failed(message='\\x1b[2J' * 50_000)); hang()",
        "deadline:NOT_STARTED"),
    Lie("closes its socket", "sock.close(); hang()", "deadline:NOT_STARTED"),
    Lie("ends at once", "os._exit(1)", "deadline:NOT_STARTED"),
    Lie("never reads", "ready(); hang()", KILLED),
    Lie("reads a byte a time, slowly",
        "ready()\nwhile True: sock.recv(1); time.sleep(0.01)", KILLED),
    Lie("answers without reading", "ready()\nsock.recv(1, socket.MSG_PEEK)\nanswer(b'x')\nhang()"),
]  # fmt: skip


@pytest.mark.parametrize("lie", AT_START, ids=lambda lie: lie.name)
async def test_a_runner_that_misbehaves_before_its_call_holds_up_only_who_waits_for_it(
    own_stage: Stage, lie: Lie
) -> None:
    async with Neighbour(own_stage) as neighbour:
        own_stage.runners_begin_with(lie.script)
        started_at = time.monotonic()
        # Four megabytes do not fit into a socket.
        assert await own_stage.call("answer(b'ok')", pad=4 * MIB) in lie.outcome.split(" or ")
        assert time.monotonic() - started_at < WALL_MS / 1000 + GRACE_S + SLACK_S
        own_stage.runners_begin_with("")
    assert neighbour.slowest_s < NEIGHBOUR_WITHIN_S
    assert own_stage.lost == []


async def test_a_runner_that_answers_without_reading_cannot_pile_up_jobs(own_stage: Stage) -> None:
    module = own_stage.module()
    own_stage.runners_begin_with(
        "ready()\nsock.recv(1, socket.MSG_PEEK)\nbound()\n"
        "while True:\n result(exited=call_pb2.Exited()); time.sleep(0.01)"
    )
    resident_before = resident_bytes()
    for _ in range(10):
        assert await own_stage.call("", module, pad=4 * MIB) == "protocol_violation"
    assert resident_bytes() - resident_before < GROWTH_BYTES


def key_of(module: bytes) -> Key:
    return Key("default", digest_of(module), False)


@pytest.mark.parametrize("noise", ["raw(b'x')", "answer(b'x')", "raw(bytes(9))"])
async def test_an_idle_runner_that_speaks_is_gone_before_the_next_call(
    stage: Stage, noise: str
) -> None:
    module = stage.module()
    # The noise comes after the answer was read: in the state in which nothing may be said.
    script = f"answer(b'ok'); time.sleep(0.05); {noise}; hang()"
    assert await stage.call(script, module) == "completed"
    await asyncio.sleep(0.3)
    assert not [runner for runner in stage.pool.runners if runner.key == key_of(module)]
    assert await stage.call("answer(b'ok')", module) == "completed"


async def test_a_call_cancelled_as_its_runner_is_buried_is_settled(stage: Stage) -> None:
    for step_ms in range(12):
        call = asyncio.create_task(
            stage.call("bound(); time.sleep(0.02); os.kill(os.getpid(), signal.SIGSEGV)")
        )
        await asyncio.sleep(0.02 + step_ms / 1000)
        call.cancel()
        await asyncio.wait({call})
    async with asyncio.timeout(5):
        await stage.executor.close()
    assert stage.lost == []


async def test_a_death_between_cancel_and_renewal_is_still_an_answer(stage: Stage) -> None:
    call = asyncio.create_task(stage.call("bound(); hang()"))
    async with asyncio.timeout(5):
        while not (running := [r for r in stage.pool.runners if r.is_running]):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    (runner,) = running
    answer = runner.renew_answer()
    answer.cancel()
    runner.kill()
    await runner.wait_dead()
    async with asyncio.timeout(1):
        await runner.renew_answer()
    call.cancel()
    await asyncio.wait({call})
