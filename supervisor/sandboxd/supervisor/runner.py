"""One runner process: its state, its frames, its outbox, its end.

Who may say what is a table (`_ALLOWED`) keyed by the runner's state: any other message, a frame too
long, or bytes that are not a message, is a breach; the process is killed and the call that it was
running is answered with what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import frames
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.child import UNKNOWN_EXIT, Child, ExitStatus
from sandboxd.supervisor.forecast import Expected
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.layers import NOTHING_HELD, LayerMissing, Layers
from sandboxd.supervisor.lifecycle import TRANSITIONS, Event, State
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.text import for_people
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

# Every frame is short: at most a result of 16 KiB, a thousand numbers, or a backtrace of the
# engine's 20 frames with names of 256 characters. What is longer goes through the outbox. A long
# frame would be costly to parse, and the process that sends it decides what is in it.
MAX_FRAME_BYTES = 64 * 1024
# What a result may hold (see call.proto) and what the engine allows a function to return.
MAX_BACKTRACE_FRAMES = 64
MAX_RESULTS = 1000
# Fields of a reply: those results, and what is beside them. Only a frame that is large enough to
# have more is counted.
MAX_REPLY_FIELDS = 2 * MAX_RESULTS
_REPLY_KIND = runner_pb2.RunnerReply.DESCRIPTOR
_UNCOUNTED_BYTES = 4096
# A process that ends closes its socket a moment before the kernel tells of its end. One that lives
# on for this long has closed it on purpose, or the kernel is busy with what it leaves: memory files
# that only a mapping holds go last.
_HANGUP_PATIENCE_S = 0.2

# CPU time that a process may use while it has no call. An honest one drops the last instance and
# prepares the next; to give a gigabyte back takes 0.15 s.
MAX_IDLE_CPU_NS = 500_000_000

# Reasons for which a runner cannot be bound that neither it nor its guest is to blame for.
_NO_BREACH = frozenset({runner_pb2.BIND_FAILURE_MEMORY, runner_pb2.BIND_FAILURE_SHORTAGE})

_ALLOWED: dict[State, frozenset[str]] = {
    State.STARTING: frozenset({"ready", "failed"}),
    State.SPARE: frozenset(),
    State.LOADING: frozenset({"bound"}),
    State.BINDING: frozenset({"bound"}),
    State.IDLE: frozenset(),
    State.BUSY: frozenset({"result"}),
    # The word that it was bound may be on its way when the call is stopped.
    State.STOPPING: frozenset({"bound", "result"}),
    State.DYING: frozenset(),
    State.DEAD: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Death:
    """The answer of a runner that ended instead: how, and why it was ended, if it was.

    `breach` is the rule that it broke. `failure` is set, with the words in `breach`, if it could
    not be bound for a reason that is nobody's breach.
    """

    exit_status: ExitStatus
    breach: str
    failure: runner_pb2.BindFailure.ValueType = runner_pb2.BIND_FAILURE_UNSPECIFIED


Answer = runner_pb2.Result | Death


class Runner:
    """A runner. The pool owns it, one call at a time borrows it.

    `on_ready(runner)`, `on_kill(runner, previous_state)` and `on_dead(runner)` are called once
    each, in this order; the first one not if it never got ready. `zygote_layers` hears of its
    layers before it is ready; from then on `layers` names all that hold for it.
    """

    def __init__(
        self,
        child: Child,
        outbox: Outbox,
        interrupt_fd: int,
        zygote_layers: Layers,
        on_ready: Callable[[Runner], None],
        on_kill: Callable[[Runner, State], None],
        on_dead: Callable[[Runner], None],
    ) -> None:
        self.child = child
        self.outbox = outbox
        self.key: Key | None = None
        self.executions = 0
        self.retire_after_executions = 0
        self.retire_at = 0.0
        self.idle_since = 0.0
        self.bound_at = 0.0
        self._idle_cpu_ns = 0
        self.breach = ""
        self.exit_status = UNKNOWN_EXIT
        self.layers = NOTHING_HELD
        self._hung_up = False
        self._bind_failure = runner_pb2.BIND_FAILURE_UNSPECIFIED
        self._interrupt_fd = interrupt_fd
        self._zygote_layers = zygote_layers
        self._on_ready = on_ready
        self._on_loaded: Callable[[Runner], None] | None = None
        self._on_kill = on_kill
        self._on_dead = on_dead
        # Where it is in its life. Nobody but `_advance` sets it.
        self.state = State.STARTING
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Answer] | None = None
        # The answer, whoever waits for it: a cancelled future cannot take it.
        self._given: Answer | None = None
        self._reader = frames.FrameReader(MAX_FRAME_BYTES)
        self._ready_seen = False
        self._binding = False
        self._burial: asyncio.Task[None] | None = None
        child.on_data = self._on_data
        child.on_hangup = self._on_hangup
        child.listen()
        child.forked.add_done_callback(lambda _: self._maybe_ready())
        child.gone.add_done_callback(lambda _: self._on_gone())

    @property
    def is_running(self) -> bool:
        """True while it works on a call that nobody has stopped yet."""
        return self.state in (State.BINDING, State.BUSY)

    def _advance(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    # --- what the pool and a call do with it -----------------------------------------------------

    def begin(self, job: bytes, key: Key, artifact: Artifact | None) -> asyncio.Future[Answer]:
        """Hand it a call, as the frame of a RunnerCommand, and return the future of its answer.

        A spare needs `artifact`, is bound to `key` first, and the call follows in the same write.
        """
        self._answer = self._loop.create_future()
        self.executions += 1
        if self.state is State.SPARE:
            assert artifact is not None
            self._advance(Event.BIND)
            self._bind(key, artifact, _bind_command(key, artifact), job)
        else:
            assert self.key == key, "a runner serves one module for life"
            self._advance(Event.EXECUTE)
            self.child.send(job)
        return self._answer

    def load(self, expected: Expected, on_loaded: Callable[[Runner], None]) -> None:
        """Bind a spare to a module ahead of its call; `on_loaded(runner)` when it is idle.

        If it cannot be bound it ends, as it does with a call.
        """
        self._advance(Event.LOAD)
        self._on_loaded = on_loaded
        bind = _bind_command(expected.key, expected.artifact)
        bind.memory_bytes = expected.memory_bytes
        bind.table_elements = expected.table_elements
        bind.export = expected.export
        self._bind(expected.key, expected.artifact, bind, b"")

    def _bind(self, key: Key, artifact: Artifact, bind: runner_pb2.Bind, job: bytes) -> None:
        self._binding = True
        self.key = key
        command = runner_pb2.RunnerCommand(bind=bind).SerializeToString()
        self.child.send(frames.encode(command) + job, artifact.fd)

    def renew_answer(self) -> asyncio.Future[Answer]:
        """Return a new future for the running call: the one that waited for it was cancelled."""
        self._answer = self._loop.create_future()
        if self._given is not None:
            self._answer.set_result(self._given)
        return self._answer

    def finish(self, now: float, cpu_time_ns: int) -> None:
        """The call was answered cleanly; the runner is free for the next one of its module.

        `now` is the time of the event loop's clock, `cpu_time_ns` what the process has used so far.
        """
        self._advance(Event.ANSWERED)
        self._answer = self._given = None
        self.idle_since = now
        self._idle_cpu_ns = cpu_time_ns

    def rested(self, cpu_time_ns: int) -> bool:
        """Return False if it went on computing after its last answer, beyond tidying up.

        `cpu_time_ns` is what the process has used so far. A runner that has no call yet, or has
        one, has rested.
        """
        return not self._idle_cpu_ns or cpu_time_ns - self._idle_cpu_ns <= MAX_IDLE_CPU_NS

    def interrupt(self) -> None:
        """Ask it to stop its call: its interrupt thread bumps the engine's epoch."""
        self._advance(Event.STOP)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._interrupt_fd, b"!")

    def kill(self) -> None:
        """Kill it for certain; idempotent."""
        if self.state in (State.DYING, State.DEAD):
            return
        previous = self.state
        self._advance(Event.KILL)
        self.child.kill()
        self.child.deafen()
        self._on_kill(self, previous)
        self._burial = self._loop.create_task(self._bury())

    async def wait_dead(self) -> None:
        """Wait until it is reaped. It must have been killed."""
        if self._burial is not None:
            await asyncio.shield(self._burial)

    # --- what it says ----------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._dispatch(payload)
                if self.state is State.DYING:
                    return
        except (frames.FrameBreach, DecodeError) as error:
            self._breached(str(error) or "the frame is not a message")
            return
        if self._reader.pending_bytes and not _ALLOWED[self.state]:
            self._breached(f"part of a message while {self.state.value}")

    def _dispatch(self, payload: bytes) -> None:
        if len(payload) > _UNCOUNTED_BYTES and frames.more_fields_than(
            payload, MAX_REPLY_FIELDS, _REPLY_KIND
        ):
            self._breached(f"no reply, or one of more than {MAX_REPLY_FIELDS} fields")
            return
        reply = runner_pb2.RunnerReply.FromString(payload)
        kind = reply.WhichOneof("reply")
        if kind not in _ALLOWED[self.state]:
            self._breached(f"message {kind} while {self.state.value}")
            return
        match kind:
            case "result":
                self._answered(reply.result)
            case "bound":
                self._bound(reply.bound)
            case "ready":
                self._ready(reply.ready)
            case "failed":
                self._breached(f"it could not get ready: {reply.failed.message}")

    def _ready(self, ready: runner_pb2.Ready) -> None:
        try:
            self.layers = self._zygote_layers.of_child(ready.layers)
        except LayerMissing as missing:
            self._breached(str(missing))
            return
        self._ready_seen = True
        self._maybe_ready()

    def _answered(self, result: runner_pb2.Result) -> None:
        if self._given is not None:
            self._breached("a second result for one call")
        elif self.child.unsent_bytes:
            self._breached("a result for a call that it has not read")
        elif breach := _implausible(result):
            self._breached(breach)
        else:
            self._give(result)

    def _give(self, given: Answer) -> None:
        self._given = given
        answer = self._answer
        if answer is not None and not answer.done():
            answer.set_result(given)

    def _bound(self, bound: runner_pb2.Bound) -> None:
        if not self._binding:
            self._breached("bound a second time")
            return
        self._binding = False
        if bound.error:
            if bound.failure in _NO_BREACH:
                self._bind_failure = bound.failure
            self._breached(f"it could not load the compiled module: {bound.error}")
            return
        # What it says now is the word of a process that has loaded hostile code. That a layer holds
        # cannot be believed beyond what the zygote has rehearsed; that one does not is an alarm.
        missing = self._zygote_layers.sealing.difference(
            layer.name for layer in bound.layers if layer.active
        )
        if missing:
            self._breached(f"after loading, {', '.join(sorted(missing))} does not hold")
            return
        self.bound_at = self._loop.time()
        if self.state is State.BINDING:
            self._advance(Event.BOUND)
        elif self.state is State.LOADING:
            self._advance(Event.BOUND)
            self.idle_since = self.bound_at
            self._idle_cpu_ns = self.child.cpu_time_ns()
            assert self._on_loaded is not None
            self._on_loaded(self)

    def _maybe_ready(self) -> None:
        if self._ready_seen and self.child.pid and self.state is State.STARTING:
            self._advance(Event.READY)
            self._on_ready(self)

    def _breached(self, breach: str) -> None:
        if self.state in (State.DYING, State.DEAD):
            return
        self.breach = for_people(breach)
        self.kill()

    # --- its end ---------------------------------------------------------------------------------

    def _on_gone(self) -> None:
        self.kill()

    def _on_hangup(self) -> None:
        if self.state in (State.STARTING, State.SPARE, State.LOADING, State.IDLE):
            self.kill()
        elif self.state not in (State.DYING, State.DEAD) and not self.child.gone.done():
            # A process that ends closes its socket a moment before it is gone. One that lives on
            # has hung up on us.
            self._loop.call_later(_HANGUP_PATIENCE_S, self._check_gone)

    def _check_gone(self) -> None:
        if not self.child.gone.done() and self.state not in (State.DYING, State.DEAD):
            self._hung_up = True
            self.kill()

    async def _bury(self) -> None:
        exit_status = self.exit_status = await self.child.wait_exit()
        if self._hung_up and exit_status.may_be_our_kill:
            self.breach = "it closed its socket"
        self._advance(Event.EXITED)
        if self._given is None:
            self._give(Death(exit_status, self.breach, self._bind_failure))
        self.child.close()
        os.close(self._interrupt_fd)
        self._on_dead(self)


def _bind_command(key: Key, artifact: Artifact) -> runner_pb2.Bind:
    return runner_pb2.Bind(
        artifact_size_bytes=artifact.size_bytes,
        fuel=key.fuel,
        no_start_function=artifact.info.no_start_function,
    )


def _implausible(result: runner_pb2.Result) -> str:  # noqa: PLR0911 - one for each outcome
    """Say what no honest runner can have put into a result; "" if there is nothing."""
    match result.WhichOneof("outcome"):
        case "completed":
            if len(result.completed.results) > MAX_RESULTS:
                return f"a result of {len(result.completed.results)} numbers"
        case None:
            return "a result without an outcome"
        case "trapped":
            if result.trapped.code not in call_pb2.TrapCode.values():
                return f"a trap code {result.trapped.code}"
            return _implausible_frames(result.trapped.frames)
        case "limit_exceeded":
            if result.limit_exceeded.kind not in call_pb2.LimitKind.values():
                return f"a limit {result.limit_exceeded.kind}"
            return _implausible_frames(result.limit_exceeded.frames)
    return ""


def _implausible_frames(backtrace: Sequence[call_pb2.Frame]) -> str:
    if len(backtrace) > MAX_BACKTRACE_FRAMES:
        return f"a backtrace of {len(backtrace)} frames"
    return ""
