"""Whatever bytes a runner or compiler sends: one typed answer in time, and nothing else happens."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.stage import GRACE_S, SLACK_S, WALL_MS, Neighbour, Stage

from sandboxd.supervisor import frames
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import control_pb2, runner_pb2

TYPED = {
    "completed", "exited", "trapped", "limit_exceeded", "host_error", "link_error", "limit",
    "deadline", "protocol_violation", "ARGUMENT_MISMATCH", "crashed",
}  # fmt: skip
# Nobody kills a compiler from outside here: what it does itself must not look like it.
COMPILE_FAULTS = {
    "INVALID_MODULE", "MODULE_TOO_COMPLEX", "EXPORT_NOT_FOUND", "ARGUMENT_MISMATCH",
}  # fmt: skip
EXAMPLES = 100
AT_ONCE = 4

numbers = st.integers(0, 2**32 - 1)
texts = st.text(max_size=40) | st.just("\x1b[2J\0" * 500)
layers = st.lists(
    st.builds(control_pb2.IsolationLayer, name=st.sampled_from(["mdwe", "moat", "landlock", ""]),
              active=st.booleans()), max_size=4,
)  # fmt: skip
backtraces = st.lists(st.builds(call_pb2.Frame, function_name=texts), max_size=80)
outcomes = st.one_of(
    st.builds(dict, completed=st.builds(call_pb2.Completed, output=st.binary(max_size=200))),
    st.builds(dict, exited=st.builds(call_pb2.Exited, code=st.integers(-(2**31), 2**31 - 1))),
    st.builds(dict, trapped=st.builds(
        call_pb2.Trapped, code=st.integers(0, 20), message=texts, frames=backtraces)),
    st.builds(dict, limit_exceeded=st.builds(
        call_pb2.LimitExceeded, kind=st.integers(0, 9), message=texts)),
    st.builds(dict, host_error=st.builds(call_pb2.HostError, message=texts)),
    st.builds(dict, link_error=st.builds(call_pb2.LinkError, module=texts, name=texts)),
    st.builds(dict, rejected=st.builds(runner_pb2.Rejected, field=texts, message=texts)),
    st.just({}),
)  # fmt: skip
results = st.builds(
    lambda outcome, a, b: runner_pb2.Result(**outcome, linear_memory_bytes=a, run_time_ns=b),
    outcomes, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1),
)  # fmt: skip
runner_replies = st.one_of(
    st.builds(runner_pb2.RunnerReply, ready=st.builds(runner_pb2.Ready, layers=layers)),
    st.builds(runner_pb2.RunnerReply, failed=st.builds(runner_pb2.Failed, message=texts)),
    st.builds(runner_pb2.RunnerReply, bound=st.builds(
        runner_pb2.Bound, error=st.just("") | texts, layers=layers)),
    st.builds(runner_pb2.RunnerReply, result=results),
    st.just(runner_pb2.RunnerReply()),
)  # fmt: skip
externs = st.lists(
    st.builds(call_pb2.Extern, name=st.sampled_from(["f", "alloc", "memory"]) | texts,
              kind=st.integers(0, 9), params=st.lists(st.integers(0, 9), max_size=4),
              minimum=st.integers(0, 2**64 - 1)), max_size=6,
)  # fmt: skip
compiler_replies = st.one_of(
    st.builds(runner_pb2.CompilerReply, ready=st.builds(runner_pb2.Ready, layers=layers)),
    st.builds(runner_pb2.CompilerReply, compiled=st.builds(
        runner_pb2.Compiled, artifact_size_bytes=st.sampled_from([0, 1, 2, 2**63]),
        imports=externs, exports=externs)),
    st.builds(runner_pb2.CompilerReply, invalid=st.builds(
        runner_pb2.Invalid, message=texts, offset_bytes=st.integers(0, 2**64 - 1))),
    st.builds(runner_pb2.CompilerReply, too_complex=st.builds(
        runner_pb2.TooComplex, message=texts, limit=texts)),
    st.just(runner_pb2.CompilerReply()),
)  # fmt: skip


def framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def spoiled(data: bytes, at: int, byte: int) -> bytes:
    """One byte changed."""
    if not data:
        return data
    at %= len(data)
    return data[:at] + bytes([byte]) + data[at + 1 :]


def pieces(replies: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    """One write: a message, framed or not, whole or spoiled, or just bytes."""
    whole = replies.map(lambda reply: reply.SerializeToString())  # type: ignore[attr-defined]
    return st.one_of(
        whole.map(framed),
        st.builds(spoiled, whole.map(framed), st.integers(0, 1000), st.integers(0, 255)),
        st.builds(lambda frame, cut: frame[:cut], whole.map(framed), st.integers(0, 200)),
        whole,
        st.binary(max_size=60),
        st.builds(lambda size: struct.pack("<I", size), numbers),
    )


def script_of(writes: list[bytes], last: str) -> str:
    return "".join(f"raw({data!r})\n" for data in writes) + last


endings = st.sampled_from(["hang()", "os._exit(0)", "sock.close(); hang()", "", "os.abort()"])
runner_scripts = st.builds(
    lambda bound, writes, last: ("bound()\n" if bound else "") + script_of(writes, last),
    st.booleans(), st.lists(pieces(runner_replies), max_size=5), endings,
)  # fmt: skip
compiler_scripts = st.builds(
    lambda raw, wrote, writes, last: (
        ("#raw\n" if raw else "")
        + ("os.write(fds[2], b'x')\n" if wrote else "")
        + script_of(writes, last)
    ),
    st.booleans(), st.booleans(), st.lists(pieces(compiler_replies), max_size=4), endings,
)  # fmt: skip


Check = Callable[[Stage, str], Awaitable[None]]


def fuzz(directory: Path, scripts: st.SearchStrategy[list[str]], check: Check) -> None:
    """Run the check on a stage beside a neighbour, which must not notice."""
    loop = asyncio.new_event_loop()
    stage = Stage(directory)

    @settings(
        max_examples=EXAMPLES // AT_ONCE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(scripts)
    def run(batch: list[str]) -> None:
        async def together() -> None:
            await asyncio.gather(*(check(stage, script) for script in batch))

        loop.run_until_complete(together())
        assert stage.lost == []

    async def enter() -> Neighbour:
        await stage.__aenter__()
        neighbour = Neighbour(stage)
        return await neighbour.__aenter__()

    try:
        neighbour = loop.run_until_complete(enter())
        run()
        loop.run_until_complete(neighbour.__aexit__())
        loop.run_until_complete(stage.__aexit__())
        assert stage.lost == []
        assert neighbour.calls > EXAMPLES
    finally:
        loop.close()


async def _runner_is_judged(stage: Stage, script: str) -> None:
    started_at = time.monotonic()
    said = await stage.call(script)
    assert said.partition(":")[0] in TYPED, said
    assert time.monotonic() - started_at < WALL_MS / 1000 + GRACE_S + SLACK_S


async def _compiler_is_judged(stage: Stage, script: str) -> None:
    started_at = time.monotonic()
    said = await stage.call("answer(b'x')", stage.module(script.encode("latin-1", "replace")))
    assert said.partition(":")[0] in TYPED | COMPILE_FAULTS, said
    assert time.monotonic() - started_at < WALL_MS / 1000 + SLACK_S


def test_whatever_a_runner_sends_its_call_gets_one_typed_answer_in_time(tmp_path: Path) -> None:
    batches = st.lists(runner_scripts, min_size=AT_ONCE, max_size=AT_ONCE)
    fuzz(tmp_path, batches, _runner_is_judged)


def test_whatever_a_compiler_sends_its_caller_gets_one_typed_answer_in_time(
    tmp_path: Path,
) -> None:
    batches = st.lists(compiler_scripts, min_size=2, max_size=2)
    fuzz(tmp_path, batches, _compiler_is_judged)


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=4),
    st.lists(st.integers(1, 700), max_size=30),
)
@settings(database=None, deadline=None)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frames.encode(payload) for payload in payloads)
    reader = frames.FrameReader(1000)
    found = []
    for size in cuts[: frames.FREE_PIECES - 1]:
        data, stream = stream[:size], stream[size:]
        if data:
            found += reader.feed(data)
    if stream:
        found += reader.feed(stream)
    assert found == payloads
    assert reader.pending_bytes == 0


@given(st.binary(max_size=2000), st.integers(0, 64))
@settings(database=None, deadline=None)
def test_a_reader_never_holds_more_than_a_frame_and_a_read(data: bytes, limit: int) -> None:
    reader = frames.FrameReader(limit)
    try:
        got = reader.feed(data)
    except frames.FrameBreach:
        assert reader.pending_bytes == 0
    else:
        assert all(len(payload) <= limit for payload in got)
        assert reader.pending_bytes <= limit + frames.HEADER_BYTES


@given(runner_replies)
@settings(database=None, deadline=None)
def test_counting_fields_takes_every_honest_message(reply: runner_pb2.RunnerReply) -> None:
    payload = reply.SerializeToString()
    kind = runner_pb2.RunnerReply.DESCRIPTOR
    assert not frames.more_fields_than(payload, 1000, kind)
    assert frames.more_fields_than(payload, len(reply.ListFields()) - 1, kind)


@pytest.mark.parametrize("message", [runner_pb2.RunnerReply, runner_pb2.CompilerReply])
@given(st.binary(max_size=200))
@settings(database=None, deadline=None)
def test_counting_fields_of_noise_never_raises_and_takes_no_more_than_the_parser(
    message: type[runner_pb2.RunnerReply | runner_pb2.CompilerReply], noise: bytes
) -> None:
    if not frames.more_fields_than(noise, 5, message.DESCRIPTOR):
        with contextlib.suppress(DecodeError):
            assert len(message.FromString(noise).ListFields()) <= 5
