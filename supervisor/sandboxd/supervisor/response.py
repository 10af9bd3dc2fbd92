"""From how a call ended to what its client is told: an ExecuteResponse.

What a runner says of its guest is checked in runner.py and passed on; what it cannot know (that it
was stopped, that it died) is told here.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults, requests
from sandboxd.supervisor.call import Call
from sandboxd.supervisor.embedding import field_tag, varint
from sandboxd.supervisor.outbox import NOTHING, Written
from sandboxd.supervisor.runner import Answer, Death, Runner
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.watchdog import StopReason, Watchdog
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

log = logging.getLogger(__name__)

_RECEIPT = field_tag(sandbox_pb2.ExecuteResponse.RECEIPT_FIELD_NUMBER)
# Numbers are not output that a guest can flood with: a signature bounds them. The log's framing is
# bounded by its 1,024 entries (outbox.LOG_OVERHEAD_BYTES).
_UNCOUNTED_OUT_BYTES = 64 * 1024
_PASSED_ON = frozenset(
    {"completed", "exited", "trapped", "limit_exceeded", "host_error", "link_error"}
)
# Its module was loaded before the call came.
_BOUND_BEFORE = frozenset({sandbox_pb2.START_KIND_REUSED, sandbox_pb2.START_KIND_LOADED})
_WITH_MESSAGE = frozenset({"trapped", "limit_exceeded", "host_error", "link_error"})


class Responder:
    """Puts responses together. Shared by all calls.

    `stopping` is set when the drain is over: processes die because the daemon stops.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._about_daemon = b""

    def describe_daemon(self, engine_version: str, isolation_profile: str) -> None:
        """Set what receipts tell of the daemon from now on."""
        self._about_daemon = sandbox_pb2.Receipt(
            engine_version=engine_version, isolation_profile=isolation_profile
        ).SerializeToString()

    def respond(
        self, call: Call, runner: Runner, ending: Answer, watchdog: Watchdog, written: Written
    ) -> tuple[str, bytes]:
        """Return the name of the outcome, and the response serialized.

        Raises `faults.Fault` if the call ended for a reason that is not its guest's.
        """
        response = sandbox_pb2.ExecuteResponse()
        lie = ""
        bytes_out = 0
        if written is not NOTHING:
            lie = _tell_written(response, written)
            bytes_out = len(written.stdout) + len(written.stderr) + len(written.log)
        if isinstance(ending, Death):
            self._tell_death(call, response, ending, watchdog)
        else:
            lie = lie or _mismatch(call, ending, written.result)
            bytes_out += _tell_result(call, response, ending, watchdog, written.result)
        if bytes_out > call.limits.output_bytes + _UNCOUNTED_OUT_BYTES:
            lie = "the process claimed output beyond its limit"
            response.ClearField("logs")
        if lie:
            response.protocol_violation.message = lie
        elif runner.breach:
            # It answered and went on talking.
            response.protocol_violation.message = runner.breach
        outcome = response.WhichOneof("outcome")
        assert outcome is not None, "every ending is told"
        return outcome, self._with_receipt(call, response, ending, bytes_out)

    def respond_unstarted(self, call: Call, stage: sandbox_pb2.Stage.ValueType) -> bytes:
        """Return the response to a call whose deadline passed in this stage, before it ran."""
        response = sandbox_pb2.ExecuteResponse()
        deadline = response.deadline_exceeded
        deadline.wall_time_ns = call.wall_time_ns
        deadline.stop.stage = stage
        deadline.stop.method = sandbox_pb2.STOP_METHOD_NOT_STARTED
        deadline.stop.overshoot_ns = _since_ns(call.deadline_at)
        call.start_kind = sandbox_pb2.START_KIND_UNSPECIFIED
        return self._with_receipt(call, response, None, 0)

    def _with_receipt(
        self,
        call: Call,
        response: sandbox_pb2.ExecuteResponse,
        ending: Answer | None,
        bytes_out: int,
    ) -> bytes:
        receipt = sandbox_pb2.Receipt()
        receipt.module_digest = call.key.digest
        receipt.run_time_ns = int(call.run_s * 1e9)
        receipt.cpu_time_ns = call.cpu_time_ns
        receipt.peak_memory_bytes = call.peak_memory_bytes
        receipt.bytes_in = requests.bytes_in(call.request, call.kind)
        receipt.bytes_out = bytes_out
        receipt.start_kind = call.start_kind
        if call.queue_s:
            receipt.queue_time_ns = int(call.queue_s * 1e9)
        if call.compile_s:
            receipt.compile_time_ns = int(call.compile_s * 1e9)
        if call.bind_s:
            receipt.bind_time_ns = int(call.bind_s * 1e9)
        if isinstance(ending, runner_pb2.Result):
            reported = receipt.self_reported
            reported.linear_memory_bytes = ending.linear_memory_bytes
            reported.run_time_ns = ending.run_time_ns
            if ending.HasField("fuel_consumed"):
                reported.fuel_consumed = ending.fuel_consumed
        own = receipt.SerializeToString()
        # Fields of one receipt, the unchanging ones as they were serialized once.
        fields = own + call.limits.receipt_fields + self._about_daemon + call.layers.receipt_fields
        return b"".join((response.SerializeToString(), _RECEIPT, varint(len(fields)), fields))

    def _tell_death(
        self,
        call: Call,
        response: sandbox_pb2.ExecuteResponse,
        death: Death,
        watchdog: Watchdog,
    ) -> None:
        exit_status = death.exit_status
        if watchdog.reason is not None and not death.breach:
            _tell_stop(call, response, watchdog, sandbox_pb2.STOP_METHOD_KILLED, ())
        elif death.failure == runner_pb2.BIND_FAILURE_MEMORY:
            response.limit_exceeded.kind = call_pb2.LIMIT_KIND_MEMORY
            response.limit_exceeded.message = death.breach
        elif death.failure == runner_pb2.BIND_FAILURE_SHORTAGE:
            raise faults.Overloaded(death.breach, retry_after_s=1.0)
        elif death.breach:
            response.protocol_violation.message = death.breach
        elif self.stopping:
            # Not a refusal, and no time to retry after: this guest may have run.
            raise faults.CutOff("the daemon stopped before the call ended; its drain was over")
        elif not exit_status.known:
            raise faults.ZygoteLost(
                "the process was lost with the zygote, which is being replaced; retry",
                retry_after_s=0.5,
            )
        elif exit_status.out_of_memory:
            response.limit_exceeded.kind = call_pb2.LIMIT_KIND_MEMORY
            response.limit_exceeded.message = "the process used more memory than its cgroup has"
        elif exit_status.status < 0:
            _tell_signal(call, response, -exit_status.status)
        else:
            response.protocol_violation.message = (
                f"the process ended without an answer (status {exit_status.status})"
            )


def _tell_written(response: sandbox_pb2.ExecuteResponse, written: Written) -> str:
    """Tell what the guest wrote. Return what is wrong with it, "" if nothing is."""
    response.stdout = written.stdout
    response.stderr = written.stderr
    if written.log:
        try:
            response.logs.MergeFromString(written.log)
        except DecodeError:
            return "the process left a log that is not one"
    return "" if written.honest else "the process claimed output beyond its limit"


def _mismatch(call: Call, result: runner_pb2.Result, long_output: bytes) -> str:
    """Say how a result cannot be one of this kind of call; "" if it can."""
    if long_output and (call.kind != "bytes" or result.completed.output):
        return f"a result in the outbox that no {call.kind} call has"
    if result.WhichOneof("outcome") == "completed":
        if call.kind == "wasi":
            return "a command completed instead of exiting"
        if result.completed.output if call.kind == "typed" else result.completed.results:
            return f"a result that no {call.kind} call has"
    return ""


def _tell_signal(call: Call, response: sandbox_pb2.ExecuteResponse, number: int) -> None:
    match number:
        case signal.SIGKILL:
            raise faults.RunnerLost(
                "the process was killed from outside (by an operator, or for lack of memory); "
                "retry",
                retry_after_s=0.1,
            )
        case signal.SIGSYS:
            log.error("SIGSYS: a runner of %s made a forbidden system call", call.key.digest)
            response.sandbox_violation.message = (
                "the process made a system call that no guest needs, and was killed"
            )
        case _:
            response.crashed.signal = number
            response.crashed.signal_name = _signal_name(number)


def _tell_result(
    call: Call,
    response: sandbox_pb2.ExecuteResponse,
    result: runner_pb2.Result,
    watchdog: Watchdog,
    long_output: bytes,
) -> int:
    """Tell what the runner said, and return how many bytes of result that is."""
    outcome = result.WhichOneof("outcome")
    if outcome == "completed":
        told = response.completed
        told.CopyFrom(result.completed)
        if long_output:
            told.output = long_output
        return len(told.output) + 8 * len(told.results)
    interrupted = outcome == "trapped" and result.trapped.code == call_pb2.TRAP_CODE_INTERRUPT
    if watchdog.reason is not None and interrupted:
        frames = tuple(_clean_frames(result.trapped.frames))
        _tell_stop(call, response, watchdog, sandbox_pb2.STOP_METHOD_INTERRUPTED, frames)
    elif outcome == "rejected":
        rejected = result.rejected
        raise faults.ArgumentMismatch(
            # Twice in a status, escaped, and still within what metadata may have.
            for_people(rejected.message, 512),
            field=for_people(rejected.field, 128),
        )
    elif outcome in _PASSED_ON:
        passed = getattr(response, outcome)
        passed.CopyFrom(getattr(result, outcome))
        if outcome in _WITH_MESSAGE:
            passed.message = for_people(passed.message)
        if outcome == "link_error":
            passed.module, passed.name = for_people(passed.module), for_people(passed.name)
        if outcome in ("trapped", "limit_exceeded"):
            _clean_frames(passed.frames)
    return 0


def _tell_stop(
    call: Call,
    response: sandbox_pb2.ExecuteResponse,
    watchdog: Watchdog,
    method: sandbox_pb2.StopMethod.ValueType,
    frames: tuple[call_pb2.Frame, ...],
) -> None:
    bound = call.start_kind in _BOUND_BEFORE or call.bind_s > 0
    stop = sandbox_pb2.Stop(
        stage=sandbox_pb2.STAGE_RUN if bound else sandbox_pb2.STAGE_BIND,
        method=method,
        overshoot_ns=_since_ns(watchdog.due_at),
        frames=frames,
    )
    if watchdog.reason is StopReason.CPU_TIME:
        response.cpu_time_exceeded.stop.CopyFrom(stop)
        response.cpu_time_exceeded.cpu_time_ns = call.limits.cpu_time_ms * 1_000_000
    else:
        response.deadline_exceeded.stop.CopyFrom(stop)
        response.deadline_exceeded.wall_time_ns = call.wall_time_ns


def _clean_frames(frames: Iterable[call_pb2.Frame]) -> Iterable[call_pb2.Frame]:
    for frame in frames:
        if not frame.function_name.isprintable():
            frame.function_name = for_people(frame.function_name)
    return frames


def _since_ns(at: float) -> int:
    return max(0, int((time.monotonic() - at) * 1e9))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
