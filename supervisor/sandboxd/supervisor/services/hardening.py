"""What stands between the transport and every method.

gRPC answers bytes that are not a message with INTERNAL, and an exception with UNKNOWN. Neither may
happen here: bad bytes are the client's fault and get a typed refusal; a `Fault` becomes its status
with details; anything else is a bug, is logged with its traceback, and is the only INTERNAL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from sandboxd.supervisor import faults, refusal
from sandboxd.supervisor.gate import Gate
from sandboxd.supervisor.stats import Stats

# Streams of answers (health watches, reflection) that may be open at once: they live as long as
# clients like. Beyond that, the oldest one ends.
MAX_STREAMS = 64
_OPEN: AbstractContextManager[None] = nullcontext()
_MALFORMED = object()


class HardenedServer:
    """Stands in for an `aio.Server` while services are added, and wraps their methods.

    Methods of the services in `gated` are counted by the gate, and refused once it is closed.
    """

    def __init__(self, server: aio.Server, stats: Stats, gate: Gate, gated: Container[str]) -> None:
        self._server = server
        self._gate = gate
        self._gated = gated
        self._stats = stats
        # Of the streams that are open, oldest first.
        self._streams: list[asyncio.Timeout] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignored: generated code registers the same methods by name right after."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register a service's methods, each one wrapped."""
        gate = self._gate if service in self._gated else _OPEN
        wrapped = {name: self._wrap(handler, gate) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, wrapped),)
        )
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap(
        self, handler: grpc.RpcMethodHandler[Any, Any], gate: AbstractContextManager[None]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        decode = _tolerant(handler.request_deserializer)
        encode = handler.response_serializer
        if handler.unary_unary is not None:
            behaviour = self._call(handler.unary_unary, gate)
            return grpc.unary_unary_rpc_method_handler(behaviour, decode, encode)
        if handler.stream_unary is not None:
            streamed = self._stream_in(handler.stream_unary, gate)
            return grpc.stream_unary_rpc_method_handler(streamed, decode, encode)
        if handler.unary_stream is not None:
            # One that the gate counts is a call, which ends by itself; any other lives for as long
            # as its client likes.
            streaming = (
                self._stream_out(handler.unary_stream)
                if gate is _OPEN
                else self._call(handler.unary_stream, gate)
            )
            return grpc.unary_stream_rpc_method_handler(streaming, decode, encode)
        both = self._stream_both(handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(both, decode, encode)

    def _call(
        self, method: Callable[..., Any], gate: AbstractContextManager[None]
    ) -> Callable[..., Awaitable[Any]]:
        # One request; the answer is returned, or written through the context.
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                if request is _MALFORMED:
                    raise refusal.malformed()
                with gate:
                    return await method(request, context)
            except Exception as error:  # noqa: BLE001 - the last line before the transport
                # See _refuse: this frame is remembered, too.
                del request
                await self._refuse(context, error)

        return call

    def _stream_in(
        self, method: Callable[..., Awaitable[Any]], gate: AbstractContextManager[None]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                with gate:
                    return await method(_checked(requests), context)
            except Exception as error:  # noqa: BLE001 - the last line before the transport
                await self._refuse(context, error)

        return call

    def _stream_out(self, method: Callable[..., Any]) -> Callable[..., Any]:
        # Health.Watch writes through the context and returns an awaitable, not an iterator.
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            try:
                if request is _MALFORMED:
                    raise refusal.malformed()
                async with self._stream():
                    await method(request, context)
            except Exception as error:  # noqa: BLE001 - the last line before the transport
                await self._refuse(context, error)

        return call

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        if len(self._streams) >= MAX_STREAMS:
            # On a unix socket no client can be told from another. If the newest were refused, one
            # client could keep everybody from watching for as long as it likes.
            self._streams.pop(0).reschedule(asyncio.get_running_loop().time())
        scope = asyncio.timeout(None)
        self._streams.append(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise faults.Overloaded(
                f"{MAX_STREAMS} streams were opened after this one; open it again",
                retry_after_s=1.0,
            ) from None
        finally:
            if scope in self._streams:
                self._streams.remove(scope)

    def _stream_both(self, method: Callable[..., Any] | None) -> Callable[..., AsyncIterator[Any]]:
        assert method is not None, "one of the four kinds of a method is set"

        async def call(
            requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async with self._stream():
                    async for response in method(_checked(requests), context):
                        yield response
            except Exception as error:  # noqa: BLE001 - the last line before the transport
                await self._refuse(context, error)

        return call

    async def _refuse(self, context: aio.ServicerContext[Any, Any], error: Exception) -> None:
        if isinstance(error, aio.AbortError):
            raise error
        fault = refusal.fault_of(error, self._stats)
        if fault is None:
            await context.abort(grpc.StatusCode.INTERNAL, refusal.INTERNAL_MESSAGE)
        assert fault is not None, "abort raises"
        # gRPC keeps the exception that ends a call in a reference cycle, and with it this one. Its
        # frames hold the request: megabytes that would wait for the garbage collector.
        fault.__traceback__ = fault.__context__ = fault.__cause__ = None
        trailer = ((faults.DETAILS_KEY, fault.details()),)
        await context.abort(fault.status, fault.message, trailer)


def _tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if decode is None:
        return None
    decoder = decode

    def tolerant(data: bytes) -> Any:
        try:
            return decoder(data)
        except DecodeError:
            return _MALFORMED

    return tolerant


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _MALFORMED:
            raise refusal.malformed()
        yield request
