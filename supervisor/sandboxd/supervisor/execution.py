"""One Execute, from arrival to answer.

    check -> compiled? -> runner -> frame out -> watchdog -> frame in -> outcome and receipt

The deadline runs from arrival and covers every stage; the stage in which it passes is told. A
call whose client is gone is stopped the same way, and goes on here without anybody to answer
until its runner is back in the pool or dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Collection
from typing import TypeVar

from sandboxd.supervisor import faults, requests
from sandboxd.supervisor.alarms import Alarms
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.call import Call, Received, held_memory, job_frame
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.forecast import Expected
from sandboxd.supervisor.held import HeldMemory
from sandboxd.supervisor.keys import Key, digest_of
from sandboxd.supervisor.layers import Layers
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.line import QueueDeadline
from sandboxd.supervisor.memory_file import sealed_memory_file
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.response import Responder
from sandboxd.supervisor.runner import Answer, Death, Runner
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store
from sandboxd.supervisor.watchdog import StopReason, Watchdog
from sandboxd.v1 import sandbox_pb2

T = TypeVar("T")

# The outcomes of a runner that may serve again: the guest ended by itself, in order.
_CLEAN = frozenset({"completed", "exited"})
# A gRPC deadline that is this close counts as passed. The client's own timer cancels the call, and
# it started when the request was sent: earlier than ours by as long as the request was under way.
_GRPC_DEADLINE_SLACK_S = 0.05
_NO_LIMITS = sandbox_pb2.Limits()


class Executor:
    """Runs calls. Shared by all of them; holds no state of any one.

    `layers` are those of the present zygote, None while there is none; `responder` tells what
    became of calls; `held` counts the memory of those that wait.
    """

    def __init__(
        self,
        pool: Pool,
        compiles: CompileService,
        store: Store,
        policy: LimitPolicy,
        stats: Stats,
        grace_s: float,
        max_held_bytes: int = 1 << 62,
    ) -> None:
        self._pool = pool
        self._compiles = compiles
        self._store = store
        self._policy = policy
        self._stats = stats
        self._grace_s = grace_s
        self._alarms = Alarms()
        self._loop = asyncio.get_running_loop()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._default_limits = policy.resolve(_NO_LIMITS)
        self.held = HeldMemory(max_held_bytes)
        self.layers: Layers | None = None
        self.responder = Responder()

    async def execute(
        self, tenant: str, received: Received, grpc_remaining_s: float | None
    ) -> bytes:
        """Return what the guest did, a serialized ExecuteResponse.

        Raises `faults.Fault` for anything else.
        """
        arrived_at = time.monotonic()
        request, _ = received
        kind = requests.check(request)
        if request.require_layers and self.layers is not None:
            # Early: before anything is compiled. The runner that is found later has the last word.
            _check_layers(self.layers.refuted(request.require_layers))
        limits = self._default_limits
        if request.HasField("limits"):
            limits = self._policy.resolve(request.limits)
        wall_s = limits.wall_time_ms / 1000
        grpc_deadline_at = None
        if grpc_remaining_s is not None:
            wall_s = min(wall_s, max(0.0, grpc_remaining_s))
            grpc_deadline_at = arrived_at + grpc_remaining_s
        key = self._key(tenant, request, limits)
        call = Call(received, kind, key, limits, arrived_at, wall_s, grpc_deadline_at)
        try:
            outcome, response = await self._run(call)
        except _Stopped as stopped:
            outcome = "deadline_exceeded"
            response = self.responder.respond_unstarted(call, stopped.stage)
        except asyncio.CancelledError:
            # Counted by _settle if a runner was at work; else nothing had started.
            if call.start_kind == sandbox_pb2.START_KIND_UNSPECIFIED:
                self._stats.outcome(_cancel_name(call), _since_ns(arrived_at))
            raise
        self._stats.outcome(outcome, _since_ns(arrived_at))
        return response

    def _key(self, tenant: str, request: sandbox_pb2.ExecuteRequest, limits: CallLimits) -> Key:
        if request.HasField("wasm"):
            return Key(tenant, digest_of(request.wasm), limits.fuel is not None)
        digest = request.digest
        if self._store.get(tenant, digest) is None:
            raise faults.ModuleNotFound(
                f"no module {digest} is stored; push it first", metadata={"digest": digest}
            )
        return Key(tenant, digest, limits.fuel is not None)

    # --- the stages -----------------------------------------------------------------------------

    async def _run(self, call: Call) -> tuple[str, bytes]:
        request = call.request
        artifact = self._compiles.cache.get(call.key)
        if artifact is None:
            with self.held.hold(held_memory(call.received[1])):
                artifact = await self._compiled(call)
        requests.check_fits(request, call.kind, artifact.info)
        if time.monotonic() >= call.deadline_at:
            raise _Stopped(sandbox_pb2.STAGE_QUEUE)
        fresh = request.process == sandbox_pb2.PROCESS_POLICY_FRESH
        runner = self._pool.acquire_nowait(call.key, fresh)
        if runner is None:
            with self.held.hold(held_memory(call.received[1])):
                runner = await self._queued(call, fresh)
        elif runner.state is State.SPARE:
            call.start_kind = sandbox_pb2.START_KIND_SPARE
        elif runner.executions:
            call.start_kind = sandbox_pb2.START_KIND_REUSED
        else:
            call.start_kind = sandbox_pb2.START_KIND_LOADED
        return await self._on_runner(call, runner, artifact, fresh)

    async def _compiled(self, call: Call) -> Artifact:
        started_at = self._loop.time()
        request = call.request

        def open_wasm() -> int:
            if request.HasField("wasm"):
                return sealed_memory_file(request.wasm)
            return self._store.open_wasm(call.key.tenant, call.key.digest)

        try:
            artifact = await _until(
                call.deadline_at,
                # A stored module will be needed again: once begun, it is compiled to the end.
                self._compiles.artifact(call.key, open_wasm, keep=request.HasField("digest")),
            )
        except TimeoutError:
            raise _Stopped(sandbox_pb2.STAGE_COMPILE) from None
        except FileNotFoundError:
            raise faults.ModuleNotFound(f"module {call.key.digest} was deleted") from None
        finally:
            call.compile_s = self._loop.time() - started_at
        if artifact.from_disk:
            call.compile_s = 0.0
        return artifact

    async def _queued(self, call: Call, fresh: bool) -> Runner:
        """Wait for a runner that is alive."""
        while True:
            started_at = self._loop.time()
            try:
                runner = await self._pool.acquire(call.key, fresh, call.deadline_at)
            except QueueDeadline:
                raise _Stopped(sandbox_pb2.STAGE_QUEUE) from None
            finally:
                call.queue_s += self._loop.time() - started_at
            if runner.state in (State.SPARE, State.IDLE):
                break
            # It died between being handed over and now.
            self._pool.release(runner, reusable=False)
        if runner.state is State.IDLE:
            call.start_kind = (
                sandbox_pb2.START_KIND_REUSED
                if runner.executions
                else sandbox_pb2.START_KIND_LOADED
            )
        elif runner.child.started_at > call.arrived_at:
            call.start_kind = sandbox_pb2.START_KIND_COLD
        else:
            call.start_kind = sandbox_pb2.START_KIND_SPARE
        return runner

    async def _on_runner(
        self, call: Call, runner: Runner, artifact: Artifact, fresh: bool
    ) -> tuple[str, bytes]:
        limits = call.limits
        call.layers = runner.layers
        required = call.request.require_layers
        if required and (missing := set(required).difference(runner.layers.names)):
            self._pool.release(runner, reusable=True)
            _check_layers(missing)
        base_cpu_ns = runner.child.cpu_time_ns()
        rested = runner.rested(base_cpu_ns)
        try:
            frame = job_frame(call, runner.outbox)
        except BaseException:
            self._pool.release(runner, reusable=False)
            raise
        handed_at = time.monotonic()
        answer = runner.begin(frame, call.key, artifact)
        watchdog = Watchdog(
            self._alarms,
            runner,
            handed_at,
            call.deadline_at,
            limits.cpu_time_ms * 1_000_000,
            base_cpu_ns,
            self._grace_s,
        )
        try:
            ending = await answer
        except asyncio.CancelledError:
            watchdog.stop(StopReason.CANCELLED)
            if runner.bound_at:
                self._pool.expect(_again(call, artifact))
            self._abandon(call, runner, watchdog, handed_at, base_cpu_ns)
            raise
        watchdog.disarm()
        now = time.monotonic()
        cpu_time_ns = _measure(call, runner, ending, handed_at, now, base_cpu_ns)
        clean = False
        try:
            written = runner.outbox.take(limits.output_bytes)
            outcome, response = self.responder.respond(call, runner, ending, watchdog, written)
            # By the final verdict: a lie may be found only when the answer is put together.
            clean = watchdog.reason is None and outcome in _CLEAN and rested
            return outcome, response
        finally:
            clean = clean and runner.state is State.BUSY
            if clean and not fresh:
                runner.finish(now, cpu_time_ns)
                self._pool.release(runner, reusable=True)
            else:
                self._use_up(call, runner, artifact, clean)

    def _use_up(self, call: Call, runner: Runner, artifact: Artifact, clean: bool) -> None:
        """Give a runner back that serves no more; its next call will want another one."""
        if runner.bound_at:
            self._pool.expect(_again(call, artifact))
        if clean:
            self._pool.discard(runner)
        else:
            self._pool.release(runner, reusable=False)
        runner.outbox.close()

    # --- a call that nobody waits for any more ---------------------------------------------------

    def _abandon(
        self, call: Call, runner: Runner, watchdog: Watchdog, handed_at: float, base_cpu_ns: int
    ) -> None:
        name = _cancel_name(call)

        async def settle() -> None:
            ending = await runner.renew_answer()
            watchdog.disarm()
            _measure(call, runner, ending, handed_at, time.monotonic(), base_cpu_ns)
            self._pool.release(runner, reusable=False)
            runner.outbox.close()
            self._stats.outcome(name, _since_ns(call.arrived_at))

        task = self._loop.create_task(settle())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def close(self) -> None:
        """Wait for calls that were abandoned; their runners must be on their way out."""
        for task in list(self._abandoned):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._alarms.close()


def _again(call: Call, artifact: Artifact) -> Expected:
    """Return another call like this one, as what is to be expected."""
    limits = call.limits
    export = call.request.bytes.export if call.kind == "bytes" else ""
    return Expected(call.key, artifact, limits.memory_bytes, limits.table_elements, export)


def _check_layers(missing: Collection[str]) -> None:
    if missing:
        names = sorted(missing)
        raise faults.LayerNotActive(
            f"not active on this host: {', '.join(names)}; see `sandboxctl doctor`",
            field="require_layers",
            metadata={"layers": ",".join(names)},
        )


class _Stopped(Exception):  # noqa: N818 - a verdict, never seen outside
    """The deadline passed before anything ran."""

    def __init__(self, stage: sandbox_pb2.Stage.ValueType) -> None:
        super().__init__()
        self.stage = stage


def _measure(
    call: Call, runner: Runner, ending: Answer, handed_at: float, now: float, base_cpu_ns: int
) -> int:
    """Fill in what the call used; return the CPU time that its process has used so far."""
    started_at = handed_at
    if handed_at <= runner.bound_at:
        call.bind_s = runner.bound_at - handed_at
        started_at = runner.bound_at
    call.run_s = now - started_at
    if isinstance(ending, Death):
        cpu_time_ns = ending.exit_status.cpu_time_ns
        call.peak_memory_bytes = ending.exit_status.peak_rss_bytes
    else:
        cpu_time_ns = runner.child.cpu_time_ns()
        call.peak_memory_bytes = runner.child.peak_rss_bytes()
    call.cpu_time_ns = max(0, cpu_time_ns - base_cpu_ns)
    return cpu_time_ns


def _cancel_name(call: Call) -> str:
    at = call.grpc_deadline_at
    if at is not None and time.monotonic() >= at - _GRPC_DEADLINE_SLACK_S:
        return "deadline_exceeded"
    return "cancelled"


def _since_ns(at: float) -> int:
    return int((time.monotonic() - at) * 1e9)


async def _until(deadline_at: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout_at(deadline_at):
        return await work
