"""One Execute, from arrival to answer.

    check -> compiled? -> runner -> frame out -> watchdog -> frame in -> outcome and receipt

The deadline runs from arrival and covers every stage; the stage in which it passes is told. A
call whose client is gone is stopped the same way, and goes on here without anybody to answer
until its runner is back in the pool or dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults, requests
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.gate import shutting_down
from sandboxd.supervisor.keys import Key, digest_of
from sandboxd.supervisor.layers import Layers
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.memory_file import sealed_memory_file
from sandboxd.supervisor.outbox import Written
from sandboxd.supervisor.pool import Pool, QueueDeadline
from sandboxd.supervisor.runner import Answer, Death, Runner
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.watchdog import StopReason, Watchdog
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")

# The outcomes of a runner that may serve again: the guest ended by itself, in order.
_CLEAN = frozenset({"completed", "exited"})
# A refusal by the runner ran no guest code either, but the supervisor had checked before: be safe.
_PASSED_ON = frozenset(
    {"completed", "exited", "trapped", "limit_exceeded", "host_error", "link_error"}
)
_WITH_MESSAGE = frozenset({"trapped", "limit_exceeded", "host_error", "link_error"})
# A gRPC deadline that is this close counts as passed. The client's own timer cancels the call, and
# it started when the request was sent: earlier than ours by as long as the request was under way.
_GRPC_DEADLINE_SLACK_S = 0.05


@dataclass(slots=True)
class _Call:
    """A call on its way: what was asked, what applies, and how long each stage took."""

    request: sandbox_pb2.ExecuteRequest
    key: Key
    limits: CallLimits
    arrived_at: float
    deadline_at: float
    wall_time_ns: int
    grpc_deadline_at: float | None
    queue_s: float = 0.0
    compile_s: float = 0.0
    bind_s: float = 0.0
    run_s: float = 0.0
    cpu_time_ns: int = 0
    peak_memory_bytes: int = 0
    start_kind: sandbox_pb2.StartKind.ValueType = sandbox_pb2.START_KIND_UNSPECIFIED
    layers: tuple[str, ...] = ()
    """Layers of isolation that its runner and that one's zygote told of; none without a runner."""


class Executor:
    """Runs calls. Shared by all of them; holds no state of any one."""

    def __init__(
        self,
        pool: Pool,
        compiles: CompileService,
        store: Store,
        policy: LimitPolicy,
        stats: Stats,
        grace_s: float,
    ) -> None:
        self._pool = pool
        self._compiles = compiles
        self._store = store
        self._policy = policy
        self._stats = stats
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._default_limits = policy.resolve(sandbox_pb2.Limits())
        self.engine_version = ""
        self.isolation_profile = ""
        # Of the present zygote; None while there is none.
        self.layers: Layers | None = None
        # Set when the drain is over: processes die because the daemon stops.
        self.stopping = False

    async def execute(
        self, tenant: str, request: sandbox_pb2.ExecuteRequest, grpc_remaining_s: float | None
    ) -> sandbox_pb2.ExecuteResponse:
        """Return what the guest did. Raises `faults.Fault` for anything else."""
        arrived_at = self._loop.time()
        requests.check(request)
        if request.require_layers and self.layers is not None:
            # Early: before anything is compiled. The runner that is found later has the last word.
            _check_layers(self.layers.refuted(request.require_layers))
        limits = (
            self._policy.resolve(request.limits)
            if request.HasField("limits")
            else self._default_limits
        )
        wall_s = limits.wall_time_ms / 1000
        if grpc_remaining_s is not None:
            wall_s = min(wall_s, max(0.0, grpc_remaining_s))
        call = _Call(
            request=request,
            key=self._key(tenant, request, limits),
            limits=limits,
            arrived_at=arrived_at,
            deadline_at=arrived_at + wall_s,
            wall_time_ns=int(wall_s * 1e9),
            grpc_deadline_at=(None if grpc_remaining_s is None else arrived_at + grpc_remaining_s),
        )
        try:
            response = await self._run(call)
        except _Stopped as stopped:
            response = self._stopped_early(call, stopped)
        except asyncio.CancelledError:
            # Counted by _settle if a runner was at work; else nothing had started.
            if call.start_kind == sandbox_pb2.START_KIND_UNSPECIFIED:
                self._stats.outcome(self._cancel_name(call), self._since_ns(arrived_at))
            raise
        self._stats.outcome(str(response.WhichOneof("outcome")), self._since_ns(arrived_at))
        return response

    def _key(self, tenant: str, request: sandbox_pb2.ExecuteRequest, limits: CallLimits) -> Key:
        if request.HasField("wasm"):
            return Key(tenant, digest_of(request.wasm), limits.fuel is not None)
        if self._store.get(tenant, request.digest) is None:
            raise faults.ModuleNotFound(
                f"no module {request.digest} is stored; push it first",
                metadata={"digest": request.digest},
            )
        return Key(tenant, request.digest, limits.fuel is not None)

    # --- the stages -----------------------------------------------------------------------------

    async def _run(self, call: _Call) -> sandbox_pb2.ExecuteResponse:
        artifact = self._compiles.cache.get(call.key)
        if artifact is None:
            artifact = await self._compiled(call)
        requests.check_fits(call.request, artifact.info)
        if self._loop.time() >= call.deadline_at:
            raise _Stopped(sandbox_pb2.STAGE_QUEUE)
        fresh = call.request.process == sandbox_pb2.PROCESS_POLICY_FRESH
        runner = self._pool.acquire_nowait(call.key, fresh)
        call.start_kind = _start_kind(runner)
        while runner is None:
            runner = await self._queued(call, fresh)
            if runner.state not in (State.SPARE, State.IDLE):
                runner = None  # it died between being handed over and now
        return await self._on_runner(call, runner, artifact, fresh)

    async def _compiled(self, call: _Call) -> Artifact:
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

    async def _queued(self, call: _Call, fresh: bool) -> Runner:
        started_at = self._loop.time()
        try:
            runner = await self._pool.acquire(call.key, fresh, call.deadline_at)
        except QueueDeadline:
            raise _Stopped(sandbox_pb2.STAGE_QUEUE) from None
        except asyncio.CancelledError:
            call.start_kind = sandbox_pb2.START_KIND_UNSPECIFIED
            raise
        finally:
            call.queue_s += self._loop.time() - started_at
        call.start_kind = _start_kind(runner)
        if call.start_kind == sandbox_pb2.START_KIND_SPARE:
            # It had to be waited for: no spare was there when the call came.
            call.start_kind = sandbox_pb2.START_KIND_COLD
        return runner

    async def _on_runner(
        self, call: _Call, runner: Runner, artifact: Artifact, fresh: bool
    ) -> sandbox_pb2.ExecuteResponse:
        call.layers = runner.layers
        required = call.request.require_layers
        if required and (missing := set(required).difference(call.layers)):
            self._pool.release(runner, reusable=True)
            _check_layers(missing)
        base_cpu_ns = runner.child.cpu_time_ns()
        handed_at = self._loop.time()
        answer = runner.begin(_job(call), call.key, artifact)
        watchdog = Watchdog(
            runner,
            call.deadline_at,
            call.limits.cpu_time_ms * 1_000_000,
            base_cpu_ns,
            self._grace_s,
        )
        try:
            ending = await answer
        except asyncio.CancelledError:
            watchdog.stop(StopReason.CANCELLED)
            self._abandon(call, runner, watchdog, handed_at, base_cpu_ns)
            raise
        watchdog.disarm()
        self._measure(call, runner, ending, handed_at, base_cpu_ns)
        written = runner.outbox.take(call.limits.output_bytes)
        clean = False
        try:
            response = self._response(call, runner, ending, watchdog, written)
            # By the final verdict: a lie may be found only when the answer is put together.
            clean = watchdog.reason is None and response.WhichOneof("outcome") in _CLEAN
            return response
        finally:
            self._give_back(runner, clean and not fresh)

    def _measure(
        self, call: _Call, runner: Runner, ending: Answer, handed_at: float, base_cpu_ns: int
    ) -> None:
        now = self._loop.time()
        started_at = handed_at
        if handed_at <= runner.bound_at:
            call.bind_s = runner.bound_at - handed_at
            started_at = runner.bound_at
        call.run_s = now - started_at
        if isinstance(ending, Death):
            call.cpu_time_ns = max(0, ending.exit_status.cpu_time_ns - base_cpu_ns)
            call.peak_memory_bytes = ending.exit_status.peak_rss_bytes
        else:
            call.cpu_time_ns = max(0, runner.child.cpu_time_ns() - base_cpu_ns)
            call.peak_memory_bytes = runner.child.peak_rss_bytes()

    def _give_back(self, runner: Runner, reusable: bool) -> None:
        reusable = reusable and runner.state is State.BUSY
        if reusable:
            runner.finish()
        self._pool.release(runner, reusable)

    # --- a call that nobody waits for any more ---------------------------------------------------

    def _abandon(
        self, call: _Call, runner: Runner, watchdog: Watchdog, handed_at: float, base_cpu_ns: int
    ) -> None:
        name = self._cancel_name(call)

        async def settle() -> None:
            ending = await runner.renew_answer()
            watchdog.disarm()
            self._measure(call, runner, ending, handed_at, base_cpu_ns)
            self._pool.release(runner, reusable=False)
            self._stats.outcome(name, self._since_ns(call.arrived_at))

        task = self._loop.create_task(settle())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    def _cancel_name(self, call: _Call) -> str:
        at = call.grpc_deadline_at
        if at is not None and self._loop.time() >= at - _GRPC_DEADLINE_SLACK_S:
            return "deadline_exceeded"
        return "cancelled"

    def _since_ns(self, at: float) -> int:
        return int((self._loop.time() - at) * 1e9)

    # --- the answer -----------------------------------------------------------------------------

    def _response(
        self,
        call: _Call,
        runner: Runner,
        ending: Answer,
        watchdog: Watchdog,
        written: Written,
    ) -> sandbox_pb2.ExecuteResponse:
        response = sandbox_pb2.ExecuteResponse(stdout=written.stdout, stderr=written.stderr)
        bytes_out = len(written.stdout) + len(written.stderr)
        honest = written.honest
        if written.log:
            try:
                response.logs.MergeFromString(written.log)
            except DecodeError:
                honest = False
            bytes_out += len(written.log)
        if isinstance(ending, Death):
            self._tell_death(call, response, ending, watchdog)
        else:
            self._tell_result(call, response, ending, watchdog, written.result)
            bytes_out += _result_bytes(response)
        if not honest or bytes_out > _allowed_out(call):
            response.protocol_violation.message = "the process claimed output beyond its limit"
        elif runner.breach:
            # It answered and went on talking.
            response.protocol_violation.message = runner.breach
        self._tell_receipt(call, response, ending, bytes_out)
        return response

    def _tell_death(
        self,
        call: _Call,
        response: sandbox_pb2.ExecuteResponse,
        death: Death,
        watchdog: Watchdog,
    ) -> None:
        exit_status = death.exit_status
        if watchdog.reason is not None and not death.breach:
            self._tell_stop(call, response, watchdog, sandbox_pb2.STOP_METHOD_KILLED, ())
        elif death.failure == runner_pb2.BIND_FAILURE_MEMORY:
            response.limit_exceeded.kind = call_pb2.LIMIT_KIND_MEMORY
            response.limit_exceeded.message = death.breach
        elif death.failure == runner_pb2.BIND_FAILURE_SHORTAGE:
            raise faults.Overloaded(death.breach, retry_after_s=1.0)
        elif death.breach:
            response.protocol_violation.message = death.breach
        elif self.stopping:
            raise shutting_down()
        elif not exit_status.known:
            raise faults.ZygoteLost(
                "the process was lost with the zygote, which is being replaced; retry",
                retry_after_s=0.5,
            )
        elif exit_status.out_of_memory:
            response.limit_exceeded.kind = call_pb2.LIMIT_KIND_MEMORY
            response.limit_exceeded.message = "the process used more memory than its cgroup has"
        elif exit_status.status == -signal.SIGKILL:
            raise faults.RunnerLost(
                "the process was killed from outside (by an operator, or for lack of memory); "
                "retry",
                retry_after_s=0.1,
            )
        elif exit_status.status == -signal.SIGSYS:
            log.error("SIGSYS: a runner of %s made a forbidden system call", call.key.digest)
            response.sandbox_violation.message = (
                "the process made a system call that no guest needs, and was killed"
            )
        elif exit_status.status < 0:
            response.crashed.signal = -exit_status.status
            response.crashed.signal_name = _signal_name(-exit_status.status)
        else:
            response.protocol_violation.message = (
                f"the process ended without an answer (status {exit_status.status})"
            )

    def _tell_result(
        self,
        call: _Call,
        response: sandbox_pb2.ExecuteResponse,
        result: runner_pb2.Result,
        watchdog: Watchdog,
        long_output: bytes,
    ) -> None:
        outcome = result.WhichOneof("outcome")
        interrupted = outcome == "trapped" and result.trapped.code == call_pb2.TRAP_CODE_INTERRUPT
        if watchdog.reason is not None and interrupted:
            frames = tuple(_clean_frames(result.trapped.frames))
            self._tell_stop(call, response, watchdog, sandbox_pb2.STOP_METHOD_INTERRUPTED, frames)
        elif outcome == "rejected":
            rejected = result.rejected
            raise faults.ArgumentMismatch(
                # Twice in a status, escaped, and still within what metadata may have.
                for_people(rejected.message, 512),
                field=for_people(rejected.field, 128),
            )
        elif outcome in _PASSED_ON:
            told = getattr(response, outcome)
            told.CopyFrom(getattr(result, outcome))
            if outcome == "completed" and long_output:
                told.output = long_output
            elif outcome in _WITH_MESSAGE:
                told.message = for_people(told.message)
            if outcome in ("trapped", "limit_exceeded"):
                _clean_frames(told.frames)

    def _tell_stop(
        self,
        call: _Call,
        response: sandbox_pb2.ExecuteResponse,
        watchdog: Watchdog,
        method: sandbox_pb2.StopMethod.ValueType,
        frames: tuple[call_pb2.Frame, ...],
    ) -> None:
        bound = call.start_kind == sandbox_pb2.START_KIND_REUSED or call.bind_s > 0
        stop = sandbox_pb2.Stop(
            stage=sandbox_pb2.STAGE_RUN if bound else sandbox_pb2.STAGE_BIND,
            method=method,
            overshoot_ns=max(0, self._since_ns(watchdog.due_at)),
            frames=frames,
        )
        if watchdog.reason is StopReason.CPU_TIME:
            response.cpu_time_exceeded.stop.CopyFrom(stop)
            response.cpu_time_exceeded.cpu_time_ns = call.limits.cpu_time_ms * 1_000_000
        else:
            response.deadline_exceeded.stop.CopyFrom(stop)
            response.deadline_exceeded.wall_time_ns = call.wall_time_ns

    def _stopped_early(self, call: _Call, stopped: _Stopped) -> sandbox_pb2.ExecuteResponse:
        response = sandbox_pb2.ExecuteResponse()
        deadline = response.deadline_exceeded
        deadline.wall_time_ns = call.wall_time_ns
        deadline.stop.stage = stopped.stage
        deadline.stop.method = sandbox_pb2.STOP_METHOD_NOT_STARTED
        deadline.stop.overshoot_ns = max(0, self._since_ns(call.deadline_at))
        call.start_kind = sandbox_pb2.START_KIND_UNSPECIFIED
        self._tell_receipt(call, response, None, 0)
        return response

    def _tell_receipt(
        self,
        call: _Call,
        response: sandbox_pb2.ExecuteResponse,
        ending: Answer | None,
        bytes_out: int,
    ) -> None:
        receipt = response.receipt
        receipt.module_digest = call.key.digest
        receipt.queue_time_ns = int(call.queue_s * 1e9)
        receipt.compile_time_ns = int(call.compile_s * 1e9)
        receipt.bind_time_ns = int(call.bind_s * 1e9)
        receipt.run_time_ns = int(call.run_s * 1e9)
        receipt.cpu_time_ns = call.cpu_time_ns
        receipt.peak_memory_bytes = call.peak_memory_bytes
        receipt.bytes_in = requests.bytes_in(call.request)
        receipt.bytes_out = bytes_out
        receipt.start_kind = call.start_kind
        receipt.engine_version = self.engine_version
        receipt.limits.CopyFrom(call.limits.message())
        receipt.isolation_layers.extend(call.layers)
        receipt.isolation_profile = self.isolation_profile
        if isinstance(ending, runner_pb2.Result):
            reported = receipt.self_reported
            reported.linear_memory_bytes = ending.linear_memory_bytes
            reported.run_time_ns = ending.run_time_ns
            if ending.HasField("fuel_consumed"):
                reported.fuel_consumed = ending.fuel_consumed

    async def close(self) -> None:
        """Wait for calls that were abandoned; their runners must be on their way out."""
        for task in list(self._abandoned):
            with contextlib.suppress(asyncio.CancelledError):
                await task


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


def _start_kind(runner: Runner | None) -> sandbox_pb2.StartKind.ValueType:
    if runner is None:
        return sandbox_pb2.START_KIND_UNSPECIFIED
    if runner.state is State.SPARE:
        return sandbox_pb2.START_KIND_SPARE
    return sandbox_pb2.START_KIND_REUSED


def _job(call: _Call) -> bytes:
    command = runner_pb2.RunnerCommand()
    job = command.execute
    request = call.request
    if request.HasField("bytes"):
        job.bytes.CopyFrom(request.bytes)
    elif request.HasField("typed"):
        job.typed.CopyFrom(request.typed)
    else:
        job.wasi.CopyFrom(request.wasi)
    limits = call.limits
    job.memory_bytes = limits.memory_bytes
    job.table_elements = limits.table_elements
    job.output_bytes = limits.output_bytes
    if limits.fuel is not None:
        job.fuel = limits.fuel
    return command.SerializeToString()


def _clean_frames(frames: Iterable[call_pb2.Frame]) -> Iterable[call_pb2.Frame]:
    for frame in frames:
        if not frame.function_name.isprintable():
            frame.function_name = for_people(frame.function_name)
    return frames


def _result_bytes(response: sandbox_pb2.ExecuteResponse) -> int:
    if not response.HasField("completed"):
        return 0
    return len(response.completed.output) + 8 * len(response.completed.results)


def _allowed_out(call: _Call) -> int:
    # Numbers are not output that a guest can flood with: a signature bounds them. The log's
    # framing is bounded by its 1,024 entries (outbox.LOG_OVERHEAD_BYTES).
    return call.limits.output_bytes + 64 * 1024


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


async def _until(deadline_at: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout_at(deadline_at):
        return await work
