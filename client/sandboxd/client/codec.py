"""Translates between the package's own types and `sandboxd.v1` messages.

Enum numbers and outcomes that this version does not know become `UNKNOWN` and `UnknownOutcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from sandboxd.client import calls, execution, modules, outcomes, status, values
from sandboxd.v1 import admin_pb2, call_pb2, module_pb2, sandbox_pb2

_EnumT = TypeVar("_EnumT", bound=StrEnum)


class _ProtoEnum(Protocol):
    def Name(self, number: Any) -> str: ...  # noqa: N802 - protobuf's name


def _enum(kind: type[_EnumT], source: _ProtoEnum, prefix: str, number: int) -> _EnumT:
    """Find the member named as in the proto file, less its prefix; UNKNOWN if there is none."""
    try:
        return kind[source.Name(number).removeprefix(prefix)]
    except (KeyError, ValueError):
        return kind["UNKNOWN"]


# --- requests ---------------------------------------------------------------------------------

_CONVENTIONS = {
    calls.Convention.PACKED: call_pb2.RESULT_CONVENTION_PACKED_I64,
    calls.Convention.POINTER_LENGTH: call_pb2.RESULT_CONVENTION_POINTER_LENGTH,
    calls.Convention.NUL: call_pb2.RESULT_CONVENTION_NUL_TERMINATED,
    calls.Convention.FIXED: call_pb2.RESULT_CONVENTION_FIXED_LENGTH,
}


def execute_request(
    call: calls.Call,
    limits: calls.Limits | None,
    fresh: bool,
    require_layers: Iterable[str] = (),
) -> sandbox_pb2.ExecuteRequest:
    """Make a request without its module. Every argument of a typed call must be a `Value`."""
    request = sandbox_pb2.ExecuteRequest()
    match call:
        case calls.TypedCall():
            request.typed.export = call.export
            request.typed.args.extend(_value_message(arg) for arg in call.args)
        case calls.BytesCall():
            request.bytes.export = call.export
            request.bytes.input = call.input
            request.bytes.result_convention = _CONVENTIONS[call.convention]
            request.bytes.result_length_bytes = call.result_length or 0
        case calls.WasiCommand():
            request.wasi.SetInParent()
            request.wasi.args.extend(call.args)
            for name, text in call.env.items():
                request.wasi.env.add(name=name, value=text)
            request.wasi.stdin = call.stdin
    if limits is not None:
        _copy_limits(limits, request.limits)
    if fresh:
        request.process = sandbox_pb2.PROCESS_POLICY_FRESH
    request.require_layers.extend(require_layers)
    return request


def layer_names(layers: Iterable[str] | None) -> tuple[str, ...]:
    """Return the names of required layers; raises TypeError for a bare string."""
    if layers is None:
        return ()
    if isinstance(layers, str | bytes):
        raise TypeError(
            f"require_layers takes several names: write [{layers!r}] instead of {layers!r}"
        )
    names = tuple(layers)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"require_layers takes names of layers, not {name!r}")
    return names


def _value_message(arg: values.Value | values.Number) -> call_pb2.Value:
    if not isinstance(arg, values.Value):
        raise TypeError(f"{arg!r} has no WebAssembly type; write i32({arg!r}), i64, f32 or f64")
    message = call_pb2.Value()
    setattr(message, arg.type.value, arg.number)
    return message


_LIMITS = (
    "wall_time_ms",
    "cpu_time_ms",
    "memory_bytes",
    "table_elements",
    "output_bytes",
    "fuel",
)


def _copy_limits(limits: calls.Limits, message: sandbox_pb2.Limits) -> None:
    message.SetInParent()
    for name in _LIMITS:
        number = getattr(limits, name)
        if number is not None:
            setattr(message, name, number)


# --- answers ----------------------------------------------------------------------------------


def _value(message: call_pb2.Value) -> values.Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        return values.Value(values.ValueType.UNKNOWN, 0)
    return values.Value(values.ValueType(kind), getattr(message, kind))


def _frames(messages: Iterable[call_pb2.Frame]) -> tuple[outcomes.Frame, ...]:
    return tuple(
        outcomes.Frame(
            m.function_index, m.function_name, m.module_offset_bytes, m.function_offset_bytes
        )
        for m in messages
    )


def _stop(m: sandbox_pb2.Stop) -> outcomes.Stop:
    return outcomes.Stop(
        stage=_enum(outcomes.Stage, sandbox_pb2.Stage, "STAGE_", m.stage),
        method=_enum(outcomes.StopMethod, sandbox_pb2.StopMethod, "STOP_METHOD_", m.method),
        overshoot_ns=m.overshoot_ns,
        frames=_frames(m.frames),
    )


def _completed(m: call_pb2.Completed) -> outcomes.Outcome:
    return outcomes.Completed(tuple(_value(result) for result in m.results), m.output)


def _trapped(m: call_pb2.Trapped) -> outcomes.Outcome:
    code = _enum(outcomes.TrapCode, call_pb2.TrapCode, "TRAP_CODE_", m.code)
    return outcomes.Trapped(code, m.message, _frames(m.frames))


def _limit_exceeded(m: call_pb2.LimitExceeded) -> outcomes.Outcome:
    kind = _enum(outcomes.LimitKind, call_pb2.LimitKind, "LIMIT_KIND_", m.kind)
    return outcomes.LimitExceeded(kind, m.message, _frames(m.frames))


_OUTCOMES: dict[str, Callable[[Any], outcomes.Outcome]] = {
    "completed": _completed,
    "exited": lambda m: outcomes.Exited(m.code),
    "trapped": _trapped,
    "deadline_exceeded": lambda m: outcomes.DeadlineExceeded(_stop(m.stop), m.wall_time_ns),
    "cancelled": lambda m: outcomes.Cancelled(_stop(m.stop)),
    "cpu_time_exceeded": lambda m: outcomes.CpuTimeExceeded(_stop(m.stop), m.cpu_time_ns),
    "limit_exceeded": _limit_exceeded,
    "host_error": lambda m: outcomes.HostError(m.message),
    "link_error": lambda m: outcomes.LinkError(m.module, m.name, m.message),
    "crashed": lambda m: outcomes.Crashed(m.signal, m.signal_name),
    "sandbox_violation": lambda m: outcomes.SandboxViolation(m.message),
    "protocol_violation": lambda m: outcomes.ProtocolViolation(m.message),
}


def execution_of(response: sandbox_pb2.ExecuteResponse) -> execution.Execution:
    """Translate an ExecuteResponse."""
    kind = response.WhichOneof("outcome")
    return execution.Execution(
        outcome=_OUTCOMES[kind](getattr(response, kind)) if kind else outcomes.UnknownOutcome(),
        stdout=response.stdout,
        stderr=response.stderr,
        logs=tuple(
            entry.message if entry.WhichOneof("entry") == "message" else _value(entry.number)
            for entry in response.logs.entries
        ),
        receipt=_receipt(response.receipt),
    )


def _receipt(m: sandbox_pb2.Receipt) -> execution.Receipt:
    told = m.self_reported
    limits = {name: getattr(m.limits, name) for name in _LIMITS if m.limits.HasField(name)}  # type: ignore[arg-type]
    return execution.Receipt(
        module_digest=m.module_digest,
        queue_time_ns=m.queue_time_ns,
        compile_time_ns=m.compile_time_ns,
        bind_time_ns=m.bind_time_ns,
        run_time_ns=m.run_time_ns,
        cpu_time_ns=m.cpu_time_ns,
        peak_memory_bytes=m.peak_memory_bytes,
        bytes_in=m.bytes_in,
        bytes_out=m.bytes_out,
        start_kind=_enum(execution.StartKind, sandbox_pb2.StartKind, "START_KIND_", m.start_kind),
        engine_version=m.engine_version,
        limits=calls.Limits(**limits),
        self_reported=execution.SelfReported(
            told.linear_memory_bytes,
            told.fuel_consumed if told.HasField("fuel_consumed") else None,
            told.run_time_ns,
        )
        if m.HasField("self_reported")
        else None,
        isolation_layers=tuple(m.isolation_layers),
        isolation_profile=m.isolation_profile,
    )


_value_type = partial(_enum, values.ValueType, call_pb2.ValueType, "VALUE_TYPE_")


def _extern(m: call_pb2.Extern) -> modules.Extern:
    kind = _enum(modules.ExternKind, call_pb2.ExternKind, "EXTERN_KIND_", m.kind)
    return modules.Extern(
        name=m.name,
        kind=kind,
        module=m.module,
        signature=values.Signature(
            tuple(map(_value_type, m.params)), tuple(map(_value_type, m.results))
        )
        if kind is modules.ExternKind.FUNCTION
        else None,
        minimum=m.minimum,
        maximum=m.maximum if m.HasField("maximum") else None,
    )


def module_of(m: module_pb2.Module) -> modules.Module:
    """Translate a Module."""
    return modules.Module(
        digest=m.digest,
        size_bytes=m.size_bytes,
        create_time=_time(m, "create_time", m.create_time),
        imports=tuple(map(_extern, m.imports)),
        exports=tuple(map(_extern, m.exports)),
    )


def push_result_of(m: module_pb2.PushResponse) -> modules.PushResult:
    """Translate a PushResponse."""
    return modules.PushResult(module_of(m.module), m.created, m.compile_time_ns)


def _time(owner: Message, name: str, stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if owner.HasField(name) else None


def status_of(m: admin_pb2.GetStatusResponse) -> status.Status:
    """Translate a GetStatusResponse."""
    return status.Status(
        version=m.version,
        engine_version=m.engine_version,
        pid=m.pid,
        zygote_pid=m.zygote_pid,
        start_time=_time(m, "start_time", m.start_time),
        uptime_ns=m.uptime_ns,
        pool=_same_fields(status.PoolStatus, m.pool),
        queue=_same_fields(status.QueueStatus, m.queue),
        latency=_same_fields(status.LatencyQuantiles, m.latency),
        outcomes=tuple(_same_fields(status.OutcomeCount, o) for o in m.outcomes),
        runners=tuple(map(_runner, m.runners)),
        layers=tuple(_same_fields(status.Layer, layer) for layer in m.layers),
        isolation_profile=m.isolation_profile,
        host=_same_fields(status.Host, m.host),
        artifacts=_same_fields(status.ArtifactStatus, m.artifacts),
        modules=m.modules,
        compiling=m.compiling,
    )


def _runner(m: admin_pb2.Runner) -> status.Runner:
    return status.Runner(
        pid=m.pid,
        state=_enum(status.RunnerState, admin_pb2.RunnerState, "RUNNER_STATE_", m.state),
        tenant=m.tenant,
        module_digest=m.module_digest,
        age_ns=m.age_ns,
        executions=m.executions,
        rss_bytes=m.rss_bytes,
        cpu_time_ns=m.cpu_time_ns,
    )


_RowT = TypeVar(
    "_RowT", status.PoolStatus, status.QueueStatus, status.LatencyQuantiles, status.OutcomeCount,
    status.Layer, status.Host, status.ArtifactStatus,
)  # fmt: skip


def _same_fields(kind: type[_RowT], message: Message) -> _RowT:
    """Copy a flat message into the dataclass that has the same field names."""
    return kind(**{name: getattr(message, name) for name in kind.__dataclass_fields__})
