"""Stand-ins for processes, at the seam between the pool and the zygote.

A `FakeZygote` hands out `FakeChild`ren, which say what a test has them say and die when it is due.
Everything above them (runner, pool, executor) is the real thing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import cast

from sandboxd.supervisor import frames
from sandboxd.supervisor.artifacts import Artifact, ModuleInfo
from sandboxd.supervisor.birth import PoolConfig
from sandboxd.supervisor.child import Child, ExitStatus
from sandboxd.supervisor.keys import EngineIdentity, Key
from sandboxd.supervisor.layers import Layers
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.runner import Runner
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import control_pb2, runner_pb2

LIMITS = ChildLimits(
    data_bytes=1 << 20, cpu_seconds=1, file_size_bytes=1 << 20, shared_bytes=0, processes=1
)
MAX_OUTPUT_BYTES = 64 * 1024
ENGINE = EngineIdentity("50.0.0", "aa", "bb", "cc")


def key(name: str) -> Key:
    return Key("default", name, fuel=False)


def result(**outcome: object) -> runner_pb2.RunnerReply:
    """A runner's answer; that the call completed, if nothing else is given."""
    chosen = outcome or {"completed": call_pb2.Completed()}
    return runner_pb2.RunnerReply(result=runner_pb2.Result(**chosen))  # type: ignore[arg-type]


READY = runner_pb2.RunnerReply(ready=runner_pb2.Ready())
SEALING = frozenset({"seccomp-sealed"})
SEALED = [control_pb2.IsolationLayer(name=name, active=True) for name in SEALING]
BOUND = runner_pb2.RunnerReply(bound=runner_pb2.Bound(layers=SEALED))
DONE = result()


class FakeChild:
    """What a `Runner` needs of a `Child`, without a process."""

    def __init__(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.started_at = loop.time()
        self.forked: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.on_data: Callable[[bytes], None] | None = None
        self.on_hangup: Callable[[], None] | None = None
        self.on_sent: Callable[[bytes], None] | None = None
        self.outbox_fd = -1
        self.sent = bytearray()
        self.kills = 0
        self.cpu_ns = 0
        self.unsent_bytes = 0
        self.exit_status: ExitStatus | None = None
        self.dies_of: ExitStatus | None = None
        """What a kill finds, if the process was ending already."""
        self.closed = False
        self.forked.set_result(None)

    def deafen(self) -> None:
        """Hear nothing of it any more."""
        self.on_data = None

    def listen(self) -> None:
        """Nothing to do: `say` delivers at once."""

    def send(self, frame: bytes, fd: int | None = None) -> None:
        self.sent += frame
        if self.on_sent is not None:
            self.on_sent(frame)

    def say(self, *replies: runner_pb2.RunnerReply) -> None:
        """Deliver these frames in one read."""
        self.say_bytes(b"".join(frames.encode(reply.SerializeToString()) for reply in replies))

    def say_bytes(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(data)

    def kill(self) -> None:
        self.kills += 1
        if self.exit_status is None:
            asyncio.get_running_loop().call_soon(self._end_as, self.dies_of or self._killed())

    def _killed(self) -> ExitStatus:
        return ExitStatus(-signal.SIGKILL, self.cpu_ns, 4096)

    def end(self, status: int, known: bool = True) -> None:
        """The process ends; the kernel's word and the zygote's report come together."""
        self._end_as(ExitStatus(status, self.cpu_ns, 4096, known))

    def _end_as(self, exit_status: ExitStatus) -> None:
        if self.exit_status is None:
            self.exit_status = exit_status
            self.gone.set_result(None)

    async def wait_exit(self) -> ExitStatus:
        await asyncio.shield(self.gone)
        assert self.exit_status is not None
        return self.exit_status

    def cpu_time_ns(self) -> int:
        return self.cpu_ns

    def peak_rss_bytes(self) -> int:
        return 4096

    def close(self) -> None:
        self.closed = True
        self.on_data = self.on_hangup = None
        if self.outbox_fd >= 0:
            os.close(self.outbox_fd)
            self.outbox_fd = -1


class FakeZygote:
    """Forks nothing. Its children report that they are ready one turn later, unless told not to."""

    def __init__(self, ready_at_once: bool = True) -> None:
        self.children: list[FakeChild] = []
        self.ready_at_once = ready_at_once
        self.has_slot = True
        self.awaited: list[bool] = []
        self.layers = Layers(SEALED, ())

    def spawn(
        self, kind: int, passed: Sequence[int], limits: ChildLimits, *, awaited: bool = False
    ) -> Child:
        self.awaited.append(awaited)
        child = FakeChild(pid=1000 + len(self.children))
        child.outbox_fd = os.dup(passed[-1])
        self.children.append(child)
        if self.ready_at_once:
            asyncio.get_running_loop().call_soon(child.say, READY)
        return cast(Child, child)

    def lose(self) -> None:
        """Every child dies with the zygote, and nobody reaps them."""
        for child in self.children:
            child.end(0, known=False)


def fake_child(runner: Runner) -> FakeChild:
    return cast(FakeChild, runner.child)


def module_artifact() -> Artifact:
    return Artifact(os.memfd_create("artifact"), 1, ModuleInfo.of((), ()), ENGINE)


def pool_config(**changes: float) -> PoolConfig:
    """A roomy pool in which nothing expires, but for `changes`."""
    chosen = {
        "capacity": 4,
        "spares": 0,
        "queue_capacity": 100,
        "max_executions": 1_000_000,
        "max_age_s": 1e6,
        "idle_timeout_s": 1e6,
        "max_output_bytes": MAX_OUTPUT_BYTES,
        "pause_s": 0.0,
        **changes,
    }
    return PoolConfig(limits=LIMITS, **chosen)  # type: ignore[arg-type]


def make_pool(zygote: FakeZygote, **changes: float) -> Pool:
    pool = Pool(pool_config(**changes))
    pool.use_zygote(cast(Zygote, zygote), 1)
    return pool


async def turn(times: int = 5) -> None:
    """Let the loop turn: what is due at once happens."""
    for _ in range(times):
        await asyncio.sleep(0)
