"""Requests in one line each, stubs of a daemon, and refusals taken apart."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sandboxd.v1 import (
    call_pb2,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)

# Longer than anything may take on the slowest machine that runs these tests.
PATIENCE_S = 60.0

Request = sandbox_pb2.ExecuteRequest
Response = sandbox_pb2.ExecuteResponse


# --- requests -------------------------------------------------------------------------------------


def i32(number: int) -> call_pb2.Value:
    return call_pb2.Value(i32=number)


def i64(number: int) -> call_pb2.Value:
    return call_pb2.Value(i64=number)


def _request(module: str | bytes, fresh: bool, limits: dict[str, int], **call: Any) -> Request:
    request = sandbox_pb2.ExecuteRequest(**call)
    if isinstance(module, str):
        request.digest = module
    else:
        request.wasm = module
    if limits:
        request.limits.CopyFrom(sandbox_pb2.Limits(**limits))
    if fresh:
        request.process = sandbox_pb2.PROCESS_POLICY_FRESH
    return request


def typed(
    module: str | bytes, export: str, *args: call_pb2.Value, fresh: bool = False, **limits: int
) -> Request:
    """A typed call of a module, by digest or inline."""
    call = call_pb2.TypedCall(export=export, args=args)
    return _request(module, fresh, limits, typed=call)


def bytes_call(
    module: str | bytes, export: str, data: bytes, convention: int = 0, length: int = 0,
    **limits: int,
) -> Request:  # fmt: skip
    """A bytes call."""
    call = call_pb2.BytesCall(
        export=export,
        input=data,
        result_convention=convention,  # type: ignore[arg-type]
        result_length_bytes=length,
    )
    return _request(module, False, limits, bytes=call)


def wasi(
    module: str | bytes,
    *args: str,
    env: dict[str, str] | None = None,
    stdin: bytes = b"",
    fresh: bool = False,
    **limits: int,
) -> Request:
    """A WASI command."""
    variables = [
        call_pb2.EnvironmentVariable(name=name, value=value) for name, value in (env or {}).items()
    ]
    call = call_pb2.WasiCommand(args=args, env=variables, stdin=stdin)
    return _request(module, fresh, limits, wasi=call)


# --- a daemon's methods ---------------------------------------------------------------------------


class Caller:
    """Blocking calls of one daemon."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.sandbox: Any = sandbox_pb2_grpc.SandboxServiceStub(channel)
        self.modules: Any = module_pb2_grpc.ModuleServiceStub(channel)

    def execute(self, request: Request, timeout: float = PATIENCE_S) -> Response:
        response: Response = self.sandbox.Execute(request, timeout=timeout)
        return response

    def push(
        self, wasm: bytes, header: module_pb2.PushHeader | None = None, chunk_bytes: int = 1_000_000
    ) -> module_pb2.PushResponse:
        return self.push_parts(parts(wasm, header, chunk_bytes))

    def push_parts(self, requests: Iterable[module_pb2.PushRequest]) -> module_pb2.PushResponse:
        response: module_pb2.PushResponse = self.modules.Push(iter(requests), timeout=PATIENCE_S)
        return response

    def get(self, digest: str) -> module_pb2.Module:
        module: module_pb2.Module = self.modules.Get(
            module_pb2.GetRequest(digest=digest), timeout=PATIENCE_S
        ).module
        return module

    def list(self, **fields: Any) -> module_pb2.ListResponse:
        response: module_pb2.ListResponse = self.modules.List(
            module_pb2.ListRequest(**fields), timeout=PATIENCE_S
        )
        return response

    def delete(self, digest: str) -> None:
        self.modules.Delete(module_pb2.DeleteRequest(digest=digest), timeout=PATIENCE_S)


@contextlib.contextmanager
def calling(daemon: Any) -> Iterator[Caller]:
    """Connect to a daemon."""
    with daemon.channel() as channel:
        yield Caller(channel)


def parts(
    wasm: bytes, header: module_pb2.PushHeader | None = None, chunk_bytes: int = 1_000_000
) -> list[module_pb2.PushRequest]:
    """The messages of a push."""
    first = [module_pb2.PushRequest(header=header)] if header is not None else []
    chunks = [wasm[at : at + chunk_bytes] for at in range(0, len(wasm), chunk_bytes)]
    return first + [module_pb2.PushRequest(chunk=chunk) for chunk in chunks]


# --- refusals -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A gRPC status and its google.rpc details; `reason` is empty if there are none."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    field: str = ""
    retry_after_ms: int | None = None
    metadata: dict[str, str] | None = None


def refusal(error: Any) -> Refusal:
    """Take a gRPC error apart."""
    found: dict[str, Any] = {}
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                kind = detail.TypeName().rpartition(".")[2]
                found[kind] = getattr(error_details_pb2, kind)()
                assert detail.Unpack(found[kind])
    info, bad, retry = (found.get(kind) for kind in ("ErrorInfo", "BadRequest", "RetryInfo"))
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason if info else "",
        field=bad.field_violations[0].field if bad else "",
        retry_after_ms=retry.retry_delay.ToMilliseconds() if retry else None,
        metadata=dict(info.metadata) if info else None,
    )


def refused(call: Callable[..., Any], *arguments: Any) -> Refusal:
    """Make a call that must be refused, and say how it was."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return refusal(caught.value)


# --- waiting --------------------------------------------------------------------------------------


def eventually(condition: Callable[[], Any], what: str = "", timeout_s: float = 30.0) -> Any:
    """Return the first true value of `condition`; fail if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never so: {what or condition}"
        time.sleep(0.02)
    return value


def count(daemon: Any, name: str) -> int:
    """How often an outcome or fault was counted."""
    return sum(entry.count for entry in daemon.status().outcomes if entry.name == name)


def running(status: Any) -> int:
    """How many runners work on a call."""
    return int(status.pool.busy)
