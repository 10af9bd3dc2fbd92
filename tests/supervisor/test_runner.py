"""What a runner may say when: everything else is a breach, and the end of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from tests.supervisor.fakes import (
    BOUND,
    DONE,
    MAX_OUTPUT_BYTES,
    READY,
    SEALED,
    FakeChild,
    key,
    module_artifact,
    result,
    turn,
)

from sandboxd.supervisor import frames
from sandboxd.supervisor.child import Child, ExitStatus
from sandboxd.supervisor.forecast import Expected
from sandboxd.supervisor.layers import Layers
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.runner import MAX_FRAME_BYTES, Answer, Death, Runner
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

JOB = frames.encode(runner_pb2.RunnerCommand(execute=runner_pb2.Execute()).SerializeToString())
FAILED = runner_pb2.RunnerReply(failed=runner_pb2.Failed(message="no landlock"))
EMPTY = runner_pb2.RunnerReply()
NO_OUTCOME = runner_pb2.RunnerReply(result=runner_pb2.Result())
NOT_BOUND = runner_pb2.RunnerReply(bound=runner_pb2.Bound(error="damaged"))


class Bench:
    """A real Runner on a fake child."""

    def __init__(self, required: tuple[str, ...] = ()) -> None:
        self.heard: list[str] = []
        self.zygote_layers = Layers(SEALED, required)
        read_end, self.interrupt_write = os.pipe2(os.O_NONBLOCK)
        self.interrupt_read = read_end
        self.child = FakeChild(pid=7)
        self.runner = Runner(
            cast(Child, self.child),
            Outbox(MAX_OUTPUT_BYTES),
            self.interrupt_write,
            self.zygote_layers,
            lambda _: self.heard.append("ready"),
            lambda _, previous: self.heard.append(f"kill while {previous.value}"),
            lambda _: self.heard.append("dead"),
        )
        self.answer: asyncio.Future[Answer] | None = None

    def finish(self) -> None:
        self.runner.finish(asyncio.get_running_loop().time(), 0)

    def reach(self, state: State) -> None:
        """Go the ordinary way to a state."""
        ways: dict[State, list[Callable[[], None]]] = {
            State.STARTING: [],
            State.SPARE: [self.get_ready],
            State.LOADING: [self.get_ready, self.load],
            State.BINDING: [self.get_ready, self.begin],
            State.BUSY: [self.get_ready, self.begin, self.bind],
            State.STOPPING: [self.get_ready, self.begin, self.bind, self.runner.interrupt],
            State.IDLE: [self.get_ready, self.begin, self.bind, self.answer_it, self.finish],
        }
        for step in ways[state]:
            step()
        assert self.runner.state is state

    def get_ready(self) -> None:
        self.child.say(READY)

    def begin(self) -> None:
        self.answer = self.runner.begin(JOB, key("a"), module_artifact())

    def load(self) -> None:
        expected = Expected(key("a"), module_artifact(), 1 << 20, 10, "run")
        self.runner.load(expected, lambda _: self.heard.append("loaded"))

    def bind(self) -> None:
        self.child.say(BOUND)

    def answer_it(self) -> None:
        self.child.say(DONE)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.runner.kill()
    await made.runner.wait_dead()
    os.close(made.interrupt_read)
    assert made.runner.state is State.DEAD
    assert made.child.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made.interrupt_write)


LAWFUL = {
    (State.STARTING, "ready"),
    (State.LOADING, "bound"),
    (State.BINDING, "bound"),
    (State.BUSY, "result"),
    (State.STOPPING, "result"),
}
WORDS = {"ready": READY, "failed": FAILED, "bound": BOUND, "result": DONE, "nothing": EMPTY}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "state", [s for s in State if s not in (State.DYING, State.DEAD)], ids=lambda s: s.value
)
async def test_what_its_state_does_not_allow_ends_it(bench: Bench, state: State, word: str) -> None:
    bench.reach(state)
    bench.child.say(WORDS[word])
    if (state, word) in LAWFUL:
        assert bench.child.kills == 0
        return
    assert bench.child.kills == 1
    assert bench.runner.state is State.DYING
    assert bench.runner.breach


@pytest.mark.parametrize("state", [State.STARTING, State.BUSY], ids=lambda s: s.value)
@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME_BYTES * 2).to_bytes(4, "little"),
        b"\xff\xff\xff\xff",
        frames.encode(b"\xff"),
        frames.encode(b"\x0a\x05ab"),
    ],
    ids=["too long", "4 GiB", "not a message", "cut short"],
)
async def test_bytes_that_are_not_a_message_end_it(bench: Bench, state: State, data: bytes) -> None:
    bench.reach(state)
    bench.child.say_bytes(data)
    assert bench.runner.breach
    assert bench.runner.state is State.DYING


@pytest.mark.parametrize(
    "replies", [(DONE, DONE), (NO_OUTCOME,)], ids=["two results", "no outcome"]
)
async def test_a_call_has_one_result_with_an_outcome(
    bench: Bench, replies: tuple[runner_pb2.RunnerReply, ...]
) -> None:
    bench.reach(State.BUSY)
    bench.child.say(*replies)
    assert bench.runner.breach


async def test_a_result_may_be_as_long_as_a_frame(bench: Bench) -> None:
    bench.reach(State.BUSY)
    output = bytes(MAX_FRAME_BYTES - 50)
    bench.child.say(result(completed=call_pb2.Completed(output=output)))
    assert bench.answer is not None
    answer = bench.answer.result()
    assert isinstance(answer, runner_pb2.Result)
    assert answer.completed.output == output


async def test_a_module_that_cannot_be_loaded_is_a_breach(bench: Bench) -> None:
    bench.reach(State.BINDING)
    bench.child.say(NOT_BOUND)
    assert "damaged" in bench.runner.breach
    assert bench.answer is not None
    death = await bench.answer
    assert isinstance(death, Death)
    assert "damaged" in death.breach


async def test_its_death_answers_the_call(bench: Bench) -> None:
    bench.reach(State.BUSY)
    bench.child.end(-11)
    assert bench.answer is not None
    death = await bench.answer
    assert isinstance(death, Death)
    assert (death.exit_status.status, death.breach) == (-11, "")
    await turn()
    assert bench.heard == ["ready", "kill while busy", "dead"]


async def test_a_hangup_of_a_process_that_lives_on_is_a_breach(bench: Bench) -> None:
    bench.reach(State.BUSY)
    assert bench.child.on_hangup is not None
    bench.child.on_hangup()
    assert bench.answer is not None
    death = await bench.answer
    assert isinstance(death, Death)
    assert death.breach == "it closed its socket"
    assert bench.child.kills == 1


@pytest.mark.parametrize(
    "ending",
    [ExitStatus(-9, 0, 0, out_of_memory=True), ExitStatus(-11, 0, 0)],
    ids=["out of memory", "SIGSEGV"],
)
async def test_a_hangup_of_a_process_that_takes_its_time_to_end_is_none(
    bench: Bench, ending: ExitStatus
) -> None:
    bench.reach(State.BUSY)
    bench.child.dies_of = ending
    assert bench.child.on_hangup is not None
    bench.child.on_hangup()
    assert bench.answer is not None
    death = await bench.answer
    assert death == Death(ending, "")
    assert bench.runner.breach == ""


async def test_a_second_word_that_it_is_bound_is_a_breach(bench: Bench) -> None:
    bench.reach(State.STOPPING)
    bench.child.say(BOUND)
    assert bench.runner.breach == "bound a second time"


async def test_an_answer_that_nobody_could_take_is_not_lost(bench: Bench) -> None:
    bench.reach(State.BUSY)
    assert bench.answer is not None
    bench.answer.cancel()
    bench.child.end(-9)
    await turn()
    await turn()
    assert isinstance(await bench.runner.renew_answer(), Death)


async def test_an_interrupt_writes_one_byte_to_its_pipe(bench: Bench) -> None:
    bench.reach(State.STOPPING)
    assert os.read(bench.interrupt_read, 10) == b"!"


async def test_the_word_that_it_is_bound_may_come_after_the_stop(bench: Bench) -> None:
    bench.reach(State.BINDING)
    bench.runner.interrupt()
    bench.child.say(BOUND, DONE)
    assert bench.answer is not None
    assert bench.answer.done()
    assert bench.runner.state is State.STOPPING


async def test_it_tells_the_layers_that_it_verified_before_it_was_given_anything(
    bench: Bench,
) -> None:
    told = runner_pb2.RunnerReply.FromString(READY.SerializeToString())
    told.ready.layers.add(name="seccomp", active=True)
    told.ready.layers.add(name="landlock", active=False)
    told.ready.layers.add(name="empty-root", active=True)
    bench.child.say(told)
    assert bench.runner.state is State.SPARE
    # Its own that hold, and its zygote's; it cannot speak for the zygote.
    assert bench.runner.layers.names == ("seccomp-sealed", "seccomp")


@pytest.mark.parametrize("told", [None, False], ids=["is not told", "is not active"])
async def test_a_runner_without_a_required_layer_never_serves(told: bool | None) -> None:
    bench = Bench(required=("session",))
    ready = runner_pb2.RunnerReply(ready=runner_pb2.Ready())
    if told is not None:
        ready.ready.layers.add(name="session", active=told, detail="it has a terminal")
    bench.child.say(ready)
    assert bench.runner.state is State.DYING
    assert bench.runner.breach.startswith("isolation layer session: ")
    assert "ready" not in bench.heard
    await bench.runner.wait_dead()
    os.close(bench.interrupt_read)


@pytest.mark.parametrize("active", [True, False], ids=["another one", "not active"])
async def test_a_layer_that_does_not_hold_after_loading_ends_it(bench: Bench, active: bool) -> None:
    bench.reach(State.BINDING)
    told = runner_pb2.RunnerReply(bound=runner_pb2.Bound())
    told.bound.layers.add(name="seccomp" if active else "seccomp-sealed", active=active)
    bench.child.say(told)
    assert bench.runner.breach == "after loading, seccomp-sealed does not hold"
    # Whatever it says of other layers is not passed on.
    assert bench.runner.layers.names == ("seccomp-sealed",)


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (runner_pb2.BIND_FAILURE_SHORTAGE, True),
        (runner_pb2.BIND_FAILURE_MEMORY, True),
        (runner_pb2.BIND_FAILURE_ARTIFACT, False),
        (runner_pb2.BIND_FAILURE_ISOLATION, False),
    ],
)
async def test_only_a_shortage_is_nobodys_breach(
    bench: Bench, failure: runner_pb2.BindFailure.ValueType, kept: bool
) -> None:
    bench.reach(State.BINDING)
    told = runner_pb2.RunnerReply(bound=runner_pb2.Bound(error="no", failure=failure))
    bench.child.say(told)
    assert bench.answer is not None
    death = await bench.answer
    assert isinstance(death, Death)
    assert death.failure == (failure if kept else runner_pb2.BIND_FAILURE_UNSPECIFIED)


async def test_it_is_bound_once_and_the_call_follows_in_the_same_write(bench: Bench) -> None:
    bench.reach(State.IDLE)
    sent = [
        runner_pb2.RunnerCommand.FromString(payload).WhichOneof("command")
        for payload in frames.FrameReader(1 << 20).feed(bytes(bench.child.sent))
    ]
    assert sent == ["bind", "execute"]
    bench.begin()
    assert bench.runner.executions == 2
    assert bench.runner.state is State.BUSY
    with pytest.raises(AssertionError, match="one module for life"):
        bench.runner.begin(JOB, key("b"), None)
