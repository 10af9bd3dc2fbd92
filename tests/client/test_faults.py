"""Every gRPC status becomes the exception that its reason promises."""

from __future__ import annotations

import pickle
from pathlib import Path

import grpc
import pytest
from tests.client.fake_daemon import FakeDaemon, Refusal

from sandboxd import client as api
from sandboxd.client import AsyncClient, Client

Code = grpc.StatusCode

REASONS = [
    (Code.INVALID_ARGUMENT, "INVALID_REQUEST", api.InvalidRequest),
    (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", api.InvalidRequest),
    (Code.INVALID_ARGUMENT, "INVALID_MODULE", api.InvalidModule),
    (Code.INVALID_ARGUMENT, "MODULE_TOO_COMPLEX", api.ModuleTooComplex),
    (Code.INVALID_ARGUMENT, "MODULE_TOO_LARGE", api.ModuleTooLarge),
    (Code.INVALID_ARGUMENT, "DIGEST_MISMATCH", api.DigestMismatch),
    (Code.INVALID_ARGUMENT, "EXPORT_NOT_FOUND", api.ExportNotFound),
    (Code.INVALID_ARGUMENT, "ARGUMENT_MISMATCH", api.ArgumentMismatch),
    (Code.NOT_FOUND, "MODULE_NOT_FOUND", api.ModuleNotFound),
    (Code.DATA_LOSS, "MODULE_DAMAGED", api.ModuleDamaged),
    (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", api.QueueFull),
    (Code.RESOURCE_EXHAUSTED, "STORE_FULL", api.StoreFull),
    (Code.UNAVAILABLE, "RUNNER_LOST", api.RunnerLost),
    (Code.UNAVAILABLE, "ZYGOTE_LOST", api.ZygoteLost),
    (Code.UNAVAILABLE, "COMPILER_LOST", api.CompilerLost),
    (Code.UNAVAILABLE, "SHUTTING_DOWN", api.ShuttingDown),
    (Code.UNAVAILABLE, "CUT_OFF", api.CutOff),
    (Code.UNAVAILABLE, "OVERLOADED", api.Overloaded),
    (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", api.DeadlineFault),
    # Reasons of a newer daemon fall back to their status.
    (Code.INVALID_ARGUMENT, "FROM_THE_FUTURE", api.InvalidRequest),
    (Code.UNAVAILABLE, "FROM_THE_FUTURE", api.Unavailable),
    (Code.PERMISSION_DENIED, "FROM_THE_FUTURE", api.AccessDenied),
    (Code.UNAUTHENTICATED, "FROM_THE_FUTURE", api.AccessDenied),
    (Code.INTERNAL, "FROM_THE_FUTURE", api.InternalFault),
    (Code.UNIMPLEMENTED, "FROM_THE_FUTURE", api.Unsupported),
    (Code.RESOURCE_EXHAUSTED, "FROM_THE_FUTURE", api.Fault),
    (Code.FAILED_PRECONDITION, "FROM_THE_FUTURE", api.Fault),
]


@pytest.mark.parametrize(("code", "reason", "kind"), REASONS)
def test_every_reason_has_its_exception(
    daemon: FakeDaemon, client: Client, code: Code, reason: str, kind: type[api.Fault]
) -> None:
    daemon.refusals["GetStatus"].append(Refusal(code, "what happened", reason, metadata={"k": "v"}))
    with pytest.raises(api.Fault) as caught:
        client.status()
    fault = caught.value
    assert type(fault) is kind
    assert (fault.code, fault.reason, fault.message) == (code.name, reason, "what happened")
    assert dict(fault.metadata) == {"k": "v"}


async def test_asyncio_errors_map_in_the_same_way(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    refusal = Refusal(Code.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_after_ms=1500)
    loop_daemon.refusals["GetStatus"].append(refusal)
    with pytest.raises(api.QueueFull) as caught:
        await async_client.status()
    assert caught.value.retry_after == 1.5


def test_a_reason_of_another_domain_does_not_count(daemon: FakeDaemon, client: Client) -> None:
    proxy = Refusal(Code.UNAVAILABLE, "proxy", "QUEUE_FULL", domain="envoy.example")
    daemon.refusals["GetStatus"].append(proxy)
    with pytest.raises(api.Unavailable) as caught:
        client.status()
    assert type(caught.value) is api.Unavailable


def test_details_carry_offset_fields_and_delay(daemon: FakeDaemon, client: Client) -> None:
    daemon.refusals["GetStatus"].append(
        Refusal(
            Code.INVALID_ARGUMENT,
            "bad",
            "INVALID_MODULE",
            metadata={"offset_bytes": "77"},
            violations={"module.wasm": "not a module"},
            retry_after_ms=250,
        )
    )
    with pytest.raises(api.InvalidModule) as caught:
        client.status()
    assert caught.value.offset_bytes == 77
    assert caught.value.field_violations == (api.FieldViolation("module.wasm", "not a module"),)
    assert caught.value.retry_after == 0.25


@pytest.mark.parametrize("offset", ["", "x", "-1", "٣", "1.5"])
def test_an_offset_that_is_no_number_is_unknown(offset: str) -> None:
    assert api.InvalidModule("bad", metadata={"offset_bytes": offset}).offset_bytes is None


@pytest.mark.parametrize(
    "details", [b"", b"\xff\xff\xff", b"\x1a\x05\x0a\x03abc", b"\x1a\x06\x12\x04\xff\xff\xff\xff"]
)
def test_details_that_do_not_parse_are_left_out(
    daemon: FakeDaemon, client: Client, details: bytes
) -> None:
    daemon.refusals["GetStatus"].append(Refusal(Code.INVALID_ARGUMENT, "bad", raw_details=details))
    with pytest.raises(api.InvalidRequest) as caught:
        client.status()
    assert caught.value.reason is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.UNAVAILABLE, api.DaemonUnreachable),
        (Code.RESOURCE_EXHAUSTED, api.Overloaded),
        (Code.DEADLINE_EXCEEDED, api.DeadlineFault),
        (Code.CANCELLED, api.CallCancelled),
        (Code.UNKNOWN, api.InternalFault),
        (Code.ABORTED, api.Fault),
    ],
)
def test_a_status_without_details_is_the_transports(
    daemon: FakeDaemon, client: Client, code: Code, kind: type[api.Fault]
) -> None:
    daemon.refusals["GetStatus"].append(Refusal(code))
    with pytest.raises(api.Fault) as caught:
        client.status()
    assert type(caught.value) is kind


def test_too_large_a_request_says_so(daemon: FakeDaemon, client: Client) -> None:
    digest = daemon.store()
    with pytest.raises(api.MessageTooLarge):
        client.run(digest, stdin=bytes(5 << 20))


def test_no_daemon_is_unreachable(socket: Path) -> None:
    with Client(socket) as client, pytest.raises(api.DaemonUnreachable):
        client.status()


async def test_no_daemon_is_unreachable_for_asyncio_too(socket: Path) -> None:
    async with AsyncClient(socket) as client:
        with pytest.raises(api.DaemonUnreachable):
            await client.status()


def test_a_fault_survives_pickling() -> None:
    fault = api.QueueFull("full", code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after=2.0)
    copy = pickle.loads(pickle.dumps(fault))
    assert type(copy) is api.QueueFull
    assert vars(copy) == vars(fault)


def test_a_faults_text_cannot_act_on_a_terminal() -> None:
    fault = api.ExportNotFound("no export '\x1b]0;owned\x07'")
    assert str(fault) == "no export '\\x1b]0;owned\\x07'"
    assert "\x1b" in fault.message
