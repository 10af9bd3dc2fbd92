"""The asyncio client: the methods of `Client`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from sandboxd.client.batch import BatchCall, Batches, Result, Results, all_at_hand, in_order
from sandboxd.client.calls import BytesCall, Call, Convention, Limits, TypedCall, WasiCommand
from sandboxd.client.errors import Fault
from sandboxd.client.execution import Execution
from sandboxd.client.faults import fault_of
from sandboxd.client.modules import Module, PushResult
from sandboxd.client.operations import (
    DEADLINE_SLACK_S,
    Load,
    ModuleLike,
    Operation,
    Operations,
    Pause,
    Progress,
    Step,
    Stream,
    Unary,
    Upload,
)
from sandboxd.client.status import Status
from sandboxd.client.target import CHANNEL_OPTIONS, Tls, resolve_target
from sandboxd.client.upload import messages_async
from sandboxd.client.values import Number, Value
from sandboxd.v1.admin_pb2_grpc import AdminServiceStub
from sandboxd.v1.module_pb2 import PushRequest
from sandboxd.v1.module_pb2_grpc import ModuleServiceStub
from sandboxd.v1.sandbox_pb2 import ExecuteBatchResponse
from sandboxd.v1.sandbox_pb2_grpc import SandboxServiceStub

_T = TypeVar("_T")


class AsyncClient:
    """A connection to one daemon, for one event loop.

    Takes the arguments of `Client`, and its methods do the same. Cancelling a task that awaits
    one cancels the RPC: the daemon stops the guest.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        *,
        tls: Tls | None = None,
        timeout: float | None = 30.0,
        retries: int = 0,
        deadline_slack: float = DEADLINE_SLACK_S,
    ) -> None:
        self.target = resolve_target(address)
        """The gRPC target that `address` stood for."""
        self._tls = tls
        self._operations = Operations(timeout_s=timeout, slack_s=deadline_slack, retries=retries)
        self._connection: _Connection | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in other tasks are cancelled."""
        self._closed = True
        if self._connection is not None:
            await self._connection.channel.close()

    # --- running -------------------------------------------------------------------------------

    async def execute(
        self,
        module: ModuleLike,
        call: Call,
        *,
        limits: Limits | None = None,
        fresh: bool = False,
        require_layers: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Execution:
        """Run one call; see `Client.execute`."""
        return await self._do(
            self._operations.execute(module, call, limits, fresh, require_layers, timeout)
        )

    async def call(
        self,
        module: ModuleLike,
        export: str,
        *args: Number | Value,
        limits: Limits | None = None,
        fresh: bool = False,
        require_layers: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Execution:
        """Call an export with numbers; see `TypedCall` for when a bare number is enough."""
        return await self.execute(
            module,
            TypedCall(export, args),
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    async def call_bytes(
        self,
        module: ModuleLike,
        export: str,
        data: bytes,
        *,
        convention: Convention = Convention.PACKED,
        result_length: int | None = None,
        limits: Limits | None = None,
        fresh: bool = False,
        require_layers: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Execution:
        """Call an export with bytes; see `BytesCall`."""
        call = BytesCall(export, data, convention, result_length)
        return await self.execute(
            module,
            call,
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    async def run(
        self,
        module: ModuleLike,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        *,
        limits: Limits | None = None,
        fresh: bool = False,
        require_layers: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Execution:
        """Run a WASI command; `args` is all of argv, see `WasiCommand`."""
        call = WasiCommand(args, env or {}, stdin)
        return await self.execute(
            module,
            call,
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    # --- running many --------------------------------------------------------------------------

    async def execute_batch(
        self,
        calls: Iterable[BatchCall],
        *,
        max_parallel: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[tuple[int, Result], None]:
        """Run many calls in few messages; iterate over what came of each, as they end.

        See `Client.execute_batch`. To leave the iteration early, close the iterator
        (`contextlib.aclosing`): that is what cancels the calls.
        """
        batches = Batches(self._operations, calls, max_parallel, timeout)
        while (opened := await self._do(batches.open())) is not None:
            if opened.stream is not None:
                async with contextlib.aclosing(opened.stream):
                    async for message in opened.stream:
                        for result in batches.results(message):
                            yield result
                batches.check_complete()
            for refused in opened.refused:
                yield refused

    async def execute_all(
        self,
        calls: Iterable[BatchCall],
        *,
        max_parallel: int = 0,
        timeout: float | None = None,
    ) -> Results:
        """Run many calls in few messages; return what came of each; see `Client.execute_all`."""
        results = self.execute_batch(all_at_hand(calls), max_parallel=max_parallel, timeout=timeout)
        return in_order([result async for result in results])

    # --- modules and status --------------------------------------------------------------------

    async def push(
        self,
        source: Path | bytes | Iterable[bytes] | AsyncIterable[bytes],
        *,
        digest: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> PushResult:
        """Store a module; see `Client.push`. `progress` is called on the event loop."""
        operation = self._operations.push(source, digest=digest, timeout=timeout, progress=progress)
        return await self._do(operation)

    async def get(self, digest: str | Module, *, timeout: float | None = None) -> Module:
        """Describe one stored module, imports and exports included."""
        return await self._do(self._operations.get(digest, timeout))

    async def list(
        self, prefix: str = "", *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Module]:
        """Iterate over the stored modules; see `Client.list`."""
        token = ""
        while True:
            operation = self._operations.list_page(prefix, page_size, token, timeout)
            page, token = await self._do(operation)
            for module in page:
                yield module
            if not token:
                return

    async def delete(self, digest: str | Module, *, timeout: float | None = None) -> None:
        """Remove one stored module; calls that have started are not affected."""
        await self._do(self._operations.delete(digest, timeout))

    async def status(self, *, timeout: float | None = None) -> Status:
        """Take a snapshot of the daemon."""
        return await self._do(self._operations.status(timeout))

    # --- performing steps ----------------------------------------------------------------------

    async def _do(self, operation: Operation[_T]) -> _T:
        try:
            step = next(operation)
            while True:
                try:
                    result = await self._perform(step)
                except Fault as fault:
                    step = operation.throw(fault)
                else:
                    step = operation.send(result)
        except StopIteration as end:
            value: _T = end.value
            return value
        finally:
            operation.close()

    async def _perform(self, step: Step) -> Any:
        match step:
            case Unary():
                method = self._connect().methods[step.method]
                try:
                    return await method(step.request, timeout=step.timeout_s)
                except grpc.aio.AioRpcError as error:
                    raise fault_of(error) from None
            case Stream():
                return await self._stream(step)
            case Upload():
                return await self._upload(step)
            case Load():
                return await asyncio.to_thread(step.path.read_bytes)
            case Pause():
                return await asyncio.sleep(step.seconds)

    async def _stream(self, step: Stream) -> AsyncGenerator[ExecuteBatchResponse, None]:
        call: Any = self._connect().execute_batch(step.request, timeout=step.timeout_s)
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise fault_of(error) from None
        except BaseException:
            call.cancel()
            raise
        return _messages(first, call)

    async def _upload(self, upload: Upload) -> Any:
        failed: Exception | None = None

        async def pieces() -> AsyncIterator[PushRequest]:
            nonlocal failed
            try:
                async for message in messages_async(upload):
                    yield message
            except Exception as error:
                failed = error
                raise  # gRPC cancels the call.

        call = self._connect().push(pieces(), timeout=upload.timeout_s)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise (failed or fault_of(error)) from None
        except asyncio.CancelledError:
            if failed is not None:
                raise failed from None
            raise

    def _connect(self) -> _Connection:
        """Open the channel on first use: it belongs to the loop that runs then."""
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._connection is None:
            self._connection = _Connection(self.target, self._tls)
        return self._connection


async def _messages(first: Any, call: Any) -> AsyncGenerator[ExecuteBatchResponse, None]:
    """Read a stream whose first message came; it is cancelled if it is not read to its end."""
    message = first
    try:
        while message is not grpc.aio.EOF:
            yield message
            message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise fault_of(error) from None
    finally:
        call.cancel()


class _Connection:
    """An open channel and its methods."""

    def __init__(self, target: str, tls: Tls | None) -> None:
        if tls is None:
            self.channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(
                target, tls.credentials(), options=(*CHANNEL_OPTIONS, *tls.options())
            )
        modules = ModuleServiceStub(self.channel)
        sandbox = SandboxServiceStub(self.channel)
        self.push = modules.Push
        self.execute_batch = sandbox.ExecuteBatch
        self.methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {
            "Execute": sandbox.Execute,
            "Get": modules.Get,
            "List": modules.List,
            "Delete": modules.Delete,
            "GetStatus": AdminServiceStub(self.channel).GetStatus,
        }
