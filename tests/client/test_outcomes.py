"""Every outcome becomes its frozen class, and check() its exception."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from tests.client.fake_daemon import FakeDaemon

from sandboxd import client as api
from sandboxd.client import Client
from sandboxd.v1 import call_pb2, sandbox_pb2

FRAME = call_pb2.Frame(
    function_index=3, function_name="boom", module_offset_bytes=64, function_offset_bytes=2
)
STOP = sandbox_pb2.Stop(
    stage=sandbox_pb2.STAGE_RUN,
    method=sandbox_pb2.STOP_METHOD_INTERRUPTED,
    overshoot_ns=5,
    frames=[FRAME],
)
TOLD = api.Stop(api.Stage.RUN, api.StopMethod.INTERRUPTED, 5, (api.Frame(3, "boom", 64, 2),))

OUTCOMES: list[tuple[dict[str, Any], Any, type[api.GuestError[Any]]]] = [
    ({"exited": call_pb2.Exited(code=300)}, api.Exited(300), api.GuestExited),
    (
        {
            "trapped": call_pb2.Trapped(
                code=call_pb2.TRAP_CODE_UNREACHABLE, message="m", frames=[FRAME]
            )
        },
        api.Trapped(api.TrapCode.UNREACHABLE, "m", TOLD.frames),
        api.GuestTrapped,
    ),
    (
        {"deadline_exceeded": sandbox_pb2.DeadlineExceeded(stop=STOP, wall_time_ns=9)},
        api.DeadlineExceeded(TOLD, 9),
        api.GuestDeadlineExceeded,
    ),
    ({"cancelled": sandbox_pb2.Cancelled(stop=STOP)}, api.Cancelled(TOLD), api.GuestCancelled),
    (
        {"cpu_time_exceeded": sandbox_pb2.CpuTimeExceeded(stop=STOP, cpu_time_ns=8)},
        api.CpuTimeExceeded(TOLD, 8),
        api.GuestCpuTimeExceeded,
    ),
    (
        {"limit_exceeded": call_pb2.LimitExceeded(kind=call_pb2.LIMIT_KIND_FUEL, message="f")},
        api.LimitExceeded(api.LimitKind.FUEL, "f"),
        api.GuestLimitExceeded,
    ),
    ({"host_error": call_pb2.HostError(message="p")}, api.HostError("p"), api.GuestHostError),
    (
        {"link_error": call_pb2.LinkError(module="env", name="x", message="missing")},
        api.LinkError("env", "x", "missing"),
        api.GuestLinkError,
    ),
    (
        {"crashed": sandbox_pb2.Crashed(signal=11, signal_name="SIGSEGV")},
        api.Crashed(11, "SIGSEGV"),
        api.GuestCrashed,
    ),
    (
        {"sandbox_violation": sandbox_pb2.SandboxViolation(message="execve")},
        api.SandboxViolation("execve"),
        api.GuestSandboxViolation,
    ),
    (
        {"protocol_violation": sandbox_pb2.ProtocolViolation(message="half a frame")},
        api.ProtocolViolation("half a frame"),
        api.GuestProtocolViolation,
    ),
    ({}, api.UnknownOutcome(), api.GuestError),
]


@pytest.mark.parametrize(("fields", "outcome", "error"), OUTCOMES)
def test_every_outcome_has_its_class_and_its_exception(
    daemon: FakeDaemon,
    client: Client,
    fields: dict[str, Any],
    outcome: Any,
    error: type[api.GuestError[Any]],
) -> None:
    daemon.answer = lambda _: sandbox_pb2.ExecuteResponse(stdout=b"so far", **fields)
    execution = client.run(daemon.store())
    assert execution.outcome == outcome
    assert execution.stdout == b"so far"
    with pytest.raises(api.GuestError) as caught:
        execution.check()
    assert type(caught.value) is error
    assert caught.value.outcome == outcome
    assert caught.value.execution is execution
    assert pickle.loads(pickle.dumps(caught.value)).execution == execution


def test_the_list_above_has_every_outcome_of_the_api() -> None:
    listed = {name for fields, _, _ in OUTCOMES for name in fields}
    oneof = sandbox_pb2.ExecuteResponse.DESCRIPTOR.oneofs_by_name["outcome"]
    assert listed | {"completed"} == {field.name for field in oneof.fields}


def test_completion_gives_plain_values(daemon: FakeDaemon, client: Client) -> None:
    def answer(_: object) -> sandbox_pb2.ExecuteResponse:
        response = sandbox_pb2.ExecuteResponse()
        response.completed.results.add(i32=-1)
        response.completed.results.add(f64=0.5)
        return response

    daemon.answer = answer
    execution = client.call(daemon.store(), "add", 1, 2).check()
    assert execution.values == (-1, 0.5)
    assert execution.outcome == api.Completed((api.i32(-1), api.f64(0.5)))
    with pytest.raises(ValueError, match="too many values"):
        _ = execution.value


def test_results_of_a_call_that_failed_raise_its_error(daemon: FakeDaemon, client: Client) -> None:
    daemon.answer = lambda _: sandbox_pb2.ExecuteResponse(trapped=call_pb2.Trapped())
    execution = client.call(daemon.store(), "add", 1, 2)
    for name in ("value", "values", "output"):
        with pytest.raises(api.GuestTrapped):
            getattr(execution, name)


def test_exit_code_0_passes_the_check_but_has_no_result(daemon: FakeDaemon, client: Client) -> None:
    execution = client.run(daemon.store()).check()
    with pytest.raises(ValueError, match="no result"):
        _ = execution.output


def test_numbers_of_a_newer_daemon_become_unknown(daemon: FakeDaemon, client: Client) -> None:
    trapped = call_pb2.Trapped.FromString(b"\x08\x63")  # code = 99
    daemon.answer = lambda _: sandbox_pb2.ExecuteResponse(trapped=trapped)
    assert client.run(daemon.store()).outcome == api.Trapped(api.TrapCode.UNKNOWN)


def test_logs_and_receipt_come_back_in_full(daemon: FakeDaemon, client: Client) -> None:
    def answer(request: sandbox_pb2.ExecuteRequest) -> sandbox_pb2.ExecuteResponse:
        response = sandbox_pb2.ExecuteResponse(exited=call_pb2.Exited())
        response.logs.entries.add(message=b"\xff\x00")
        response.logs.entries.add(number=call_pb2.Value(i64=-5))
        receipt = response.receipt
        receipt.module_digest = request.digest
        receipt.cpu_time_ns = 11
        receipt.start_kind = sandbox_pb2.START_KIND_SPARE
        receipt.limits.CopyFrom(request.limits)
        receipt.self_reported.fuel_consumed = 0
        return response

    daemon.answer = answer
    digest = daemon.store()
    limits = api.Limits(wall_time_ms=5000, memory_bytes=1 << 20, fuel=0)
    execution = client.run(digest, limits=limits)
    assert execution.logs == (b"\xff\x00", api.i64(-5))
    assert execution.receipt.module_digest == digest
    assert execution.receipt.cpu_time_ns == 11
    assert execution.receipt.start_kind is api.StartKind.SPARE
    assert execution.receipt.limits == limits
    assert execution.receipt.self_reported == api.SelfReported(0, 0, 0)


def test_outcomes_cannot_be_changed() -> None:
    exited = api.Exited(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        exited.code = 0  # type: ignore[misc]


def test_a_description_cannot_act_on_a_terminal() -> None:
    evil = "\x1b[2J\x9b1m\u202e\n"
    for outcome in (
        api.Trapped(api.TrapCode.ABORT, evil),
        api.LinkError(evil, evil, evil),
        api.HostError(evil),
        api.Crashed(11, evil),
    ):
        assert outcome.describe().isprintable()
