"""Requests in one line each."""

from __future__ import annotations

from sandboxd.v1 import call_pb2, sandbox_pb2

Request = sandbox_pb2.ExecuteRequest

PACKED = call_pb2.RESULT_CONVENTION_PACKED_I64
FIXED = call_pb2.RESULT_CONVENTION_FIXED_LENGTH


def bytes_call(
    digest: str,
    export: str,
    data: bytes,
    *,
    convention: call_pb2.ResultConvention.ValueType = PACKED,
    length: int = 0,
    fresh: bool = False,
    limits: sandbox_pb2.Limits | None = None,
) -> Request:
    """A bytes call of a pushed module."""
    call = call_pb2.BytesCall(
        export=export, input=data, result_convention=convention, result_length_bytes=length
    )
    return _finish(Request(digest=digest, bytes=call, limits=limits), fresh)


def typed_call(
    digest: str,
    export: str,
    *args: int,
    fresh: bool = False,
    limits: sandbox_pb2.Limits | None = None,
) -> Request:
    """A typed call with i32 arguments."""
    call = call_pb2.TypedCall(export=export, args=[call_pb2.Value(i32=number) for number in args])
    return _finish(Request(digest=digest, typed=call, limits=limits), fresh)


def wasi_command(
    digest: str,
    *args: str,
    stdin: bytes = b"",
    fresh: bool = False,
    limits: sandbox_pb2.Limits | None = None,
) -> Request:
    """A WASI command."""
    call = call_pb2.WasiCommand(args=args, stdin=stdin)
    return _finish(Request(digest=digest, wasi=call, limits=limits), fresh)


def _finish(request: Request, fresh: bool) -> Request:
    if fresh:
        request.process = sandbox_pb2.PROCESS_POLICY_FRESH
    return request
