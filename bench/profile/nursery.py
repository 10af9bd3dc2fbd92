"""A process like the zygote whose children are real runners that mark their steps.

    python -m bench.profile.nursery --artifact FILE --rounds N

Prints JSON, a list of `Life`. The children run the product's own code (`children.run_child`); this
process is zygote and supervisor to them in one. A locked-down process may not ask what it has used,
so marks of time go into memory that is shared, and page faults are told when it is reaped: some
children end after one step, some after two, and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.baselines import zygote_like
from bench.profile.marks import Point, resolve, wrapped
from sandboxd.runner import children, rehearsal
from sandboxd.runner.channel import HEADER_BYTES, Channel, Closed
from sandboxd.runner.engine import Engines
from sandboxd.runner.isolation.lockdown import ChildPolicy, Planner
from sandboxd.runner.outbox import REGIONS_OFFSET_BYTES
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import control_pb2, runner_pb2

BEGUN, LOCKED, REHEARSED, RECEIVED, LOADED, SEALED, ANSWERED, PREPARED, CALLED = MARKS = (
    *("begun", "locked", "rehearsed", "received", "loaded", "sealed"),
    *("answered", "prepared", "called"),
)
"""In the order in which a runner makes them; it can end at each one."""
LATER_CALLS = 20
"""Calls between PREPARED and CALLED."""
_WARM_UP = 2
_MIB = 1 << 20
_UIDS = range(1_900_000_001, 1_900_000_074)
_INPUT = b"x" * 64


class Life(msgspec.Struct):
    """A child that ended at the mark `until`. Times of marks are ns of the monotonic clock."""

    until: str
    forked: int
    """Just before its fork."""
    marks: dict[str, int]
    faults: int
    """Minor page faults, its end included."""
    user_s: float
    system_s: float


class _SharedMarks:
    """Marks in memory that children share with their parent; one child at a time."""

    def __init__(self) -> None:
        self._view = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.until = CALLED
        self._answers = 0

    def marker(self, name: str) -> Callable[[], None]:
        """Return a function that marks, and ends the process if it is to end there."""
        index = MARKS.index(name)

        def mark() -> None:
            if not self._view[index]:
                self._view[index] = time.perf_counter_ns()
                if self.until == name:
                    os._exit(0)

        return mark

    def made(self, name: str) -> bool:
        return bool(self._view[MARKS.index(name)])

    def take(self) -> dict[str, int]:
        found = {name: self._view[index] for index, name in enumerate(MARKS) if self._view[index]}
        for index in range(len(MARKS)):
            self._view[index] = 0
        return found

    def install(self) -> None:
        """Wrap the steps of a child. Raises `marks.Gone` if the product has one no more."""
        _wrap("children", "lock_down", end=self.marker(LOCKED))
        _wrap("children", "rehearse", end=self.marker(REHEARSED))
        _wrap("mapping", "map_private", begin=self.marker(RECEIVED))
        _wrap("children", "seal_after_load", self.marker(LOADED), self.marker(SEALED))
        # A rehearsal calls, too.
        _wrap("guest", "Guest.execute", end=self._after(SEALED, self.marker(ANSWERED)))
        _wrap("guest", "Guest.prepare", end=self._after(ANSWERED, self._prepared))

    def _after(self, name: str, mark: Callable[[], None]) -> Callable[[], None]:
        return lambda: mark() if self.made(name) else None

    def _prepared(self) -> None:
        self.marker(PREPARED)()
        self._answers += 1
        if self._answers > LATER_CALLS:
            self.marker(CALLED)()


def _wrap(
    module: str,
    path: str,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> None:
    owner, name = resolve(Point(f"sandboxd.runner.{module}", path, "", ""))
    setattr(owner, name, wrapped(getattr(owner, name), begin, end))


class _Prepared(NamedTuple):
    """What is made while there are files."""

    artifact_fd: int
    artifact_bytes: int
    outbox_fd: int
    script: bytes


def _prepare(artifact: Path) -> Callable[[Engines], _Prepared]:
    def prepare(engines: Engines) -> _Prepared:
        content = artifact.read_bytes()
        artifact_fd = os.memfd_create("artifact", os.MFD_CLOEXEC)
        os.write(artifact_fd, content)
        outbox_fd = os.memfd_create("outbox", os.MFD_CLOEXEC)
        os.ftruncate(outbox_fd, REGIONS_OFFSET_BYTES + 4 * _MIB)
        script = rehearsal.compile_script(engines)
        return _Prepared(artifact_fd, len(content), outbox_fd, script)

    return prepare


class _Nursery:
    """Forks runners and leads them through their lives."""

    def __init__(self, kept: zygote_like.Kept, prepared: _Prepared, marks: _SharedMarks) -> None:
        self._kept = kept
        self._prepared = prepared
        self._marks = marks
        self._planner = Planner()
        self._begun = 0
        self._job = runner_pb2.RunnerCommand(execute=_job()).SerializeToString()
        self._bind = runner_pb2.RunnerCommand(
            bind=runner_pb2.Bind(
                artifact_size_bytes=prepared.artifact_bytes, no_start_function=True
            )
        ).SerializeToString()

    def live(self, until: str) -> Life:
        """Fork a runner that ends at this mark, and be its supervisor."""
        self._marks.until = until
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pipe, interrupt = os.pipe()
        policy = self._policy(theirs.fileno(), pipe)
        plan = self._planner.plan(policy)
        fds = [theirs.fileno(), pipe, self._prepared.outbox_fd]
        forked = time.perf_counter_ns()
        pid = os.fork()
        if pid == 0:
            self._marks.marker(BEGUN)()
            children.run_child(
                control_pb2.CHILD_KIND_RUNNER,
                policy,
                plan,
                frozenset(),
                fds,
                self._kept.engines,
                self._prepared.script,
            )
        theirs.close()
        os.close(pipe)
        try:
            self._supervise(ours, until)
        finally:
            ours.close()
            os.close(interrupt)
            _, status, usage = os.wait4(pid, 0)
        return self._life(until, forked, status, usage)

    def _life(self, until: str, forked: int, status: int, usage: resource.struct_rusage) -> Life:
        marks = self._marks.take()
        if status:
            raise RuntimeError(f"a runner that should end when {until} ended with {status}")
        return Life(until, forked, marks, usage.ru_minflt, usage.ru_utime, usage.ru_stime)

    def _policy(self, socket_fd: int, pipe: int) -> ChildPolicy:
        self._begun += 1
        return ChildPolicy(
            profile="runner",
            keep_fds=frozenset(),
            moved_fds=(socket_fd, pipe),
            uid=_UIDS[self._begun % len(_UIDS)] if os.geteuid() == 0 else 0,
            data_bytes=1024 * _MIB,
            cpu_seconds=100,
            file_size_bytes=0,
            processes=1 << 20,
            parent_pid=os.getpid(),
            writable_code=self._kept.code_pages,
        )

    def _supervise(self, ours: socket.socket, until: str) -> None:
        channel = Channel(os.dup(ours.fileno()))
        try:
            self._lead(channel, ours)
        except (Closed, BrokenPipeError, ConnectionResetError):
            if until == CALLED:
                raise RuntimeError("a runner ended before its calls were answered") from None

    def _lead(self, channel: Channel, ours: socket.socket) -> None:
        _expect(channel, "ready")
        frames = _frame(self._bind) + _frame(self._job)
        socket.send_fds(ours, [frames], [self._prepared.artifact_fd])
        _expect(channel, "bound")
        _expect(channel, "result")
        for _ in range(LATER_CALLS):
            channel.send(self._job)
            _expect(channel, "result")
        # Its last words are said. That it prepares for another call is to be over before the end.
        ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(Closed):
            channel.receive()


def _expect(channel: Channel, kind: str) -> None:
    reply = runner_pb2.RunnerReply.FromString(channel.receive())
    wrong = reply.WhichOneof("reply") != kind or bool(reply.bound.error)
    if wrong or (kind == "result" and reply.result.completed.output != _INPUT):
        raise RuntimeError(f"a runner said, instead of {kind}: {reply}")


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


def _job() -> runner_pb2.Execute:
    call = call_pb2.BytesCall(export="echo", input=_INPUT)
    return runner_pb2.Execute(
        request=sandbox_pb2.ExecuteRequest(bytes=call),
        memory_bytes=64 * _MIB,
        table_elements=10_000,
        output_bytes=_MIB,
    )


def main() -> None:
    """Print the lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    marks = _SharedMarks()
    marks.install()
    kept, prepared = zygote_like.become(_prepare(arguments.artifact))
    nursery = _Nursery(kept, prepared, marks)
    lives = [nursery.live(until) for _ in range(_WARM_UP + arguments.rounds) for until in MARKS]
    sys.stdout.write(msgspec.json.encode(lives[_WARM_UP * len(MARKS) :]).decode())


if __name__ == "__main__":
    main()
