"""A daemon made of paper: the gRPC API of sandboxd without anything behind it.

The API is the seam at which the client's and the CLI's tests are cut off from the daemon. The fake
keeps the API's rules that the client relies on (digests, pages, prefixes, message limits) and for
the rest answers what a test tells it to.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    call_pb2,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)

I32, I64, F32, F64 = (
    call_pb2.VALUE_TYPE_I32,
    call_pb2.VALUE_TYPE_I64,
    call_pb2.VALUE_TYPE_F32,
    call_pb2.VALUE_TYPE_F64,
)
WASM = b"\0asm\x01\0\0\0"
CREATED_S = 1_700_000_000


def digest_of(wasm: bytes) -> str:
    return f"sha256:{hashlib.sha256(wasm).hexdigest()}"


def function(name: str, params: list[Any], results: list[Any], module: str = "") -> call_pb2.Extern:
    return call_pb2.Extern(
        module=module,
        name=name,
        kind=call_pb2.EXTERN_KIND_FUNCTION,
        params=params,
        results=results,
    )


@dataclass
class Refusal:
    """A fault to answer with; without a reason it looks like the transport's own."""

    code: grpc.StatusCode
    message: str = "refused"
    reason: str = ""
    domain: str = "sandboxd"
    metadata: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    raw_details: bytes | None = None

    def details(self) -> bytes | None:
        if self.raw_details is not None or not self.reason:
            return self.raw_details
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain=self.domain, metadata=self.metadata
        )
        details: list[Any] = [info]
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for path, description in self.violations.items():
                bad.field_violations.add(field=path, description=description)
            details.append(bad)
        if self.retry_after_ms is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(self.retry_after_ms)
            details.append(retry)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return bytes(status.SerializeToString())


@dataclass
class Seen:
    """One request that arrived."""

    method: str
    request: Any
    seconds_left: float | None


Answer = Callable[[sandbox_pb2.ExecuteRequest], sandbox_pb2.ExecuteResponse]


class FakeDaemon(
    sandbox_pb2_grpc.SandboxServiceServicer,
    module_pb2_grpc.ModuleServiceServicer,
    admin_pb2_grpc.AdminServiceServicer,
):
    """Serves on a unix socket; tests read `seen` and write the other attributes."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.address = f"unix://{socket}"
        self.seen: list[Seen] = []
        self.refusals: defaultdict[str, deque[Refusal]] = defaultdict(deque)
        self.modules: dict[str, module_pb2.Module] = {}
        self.answer: Answer = completed
        self.status = admin_pb2.GetStatusResponse(version="9.9.9", engine_version="50.0.0")
        self.exports = [
            function("add", [I32, I32], [I32]),
            function("mix", [I64, F32, F64], [F64, I32]),
            call_pb2.Extern(name="memory", kind=call_pb2.EXTERN_KIND_MEMORY, minimum=1),
        ]
        self.imports: list[call_pb2.Extern] = []
        self.hang = False
        self.drops = 0
        """Of every batch, so many calls find their module deleted."""
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.page_size = 100
        self.credentials: grpc.ServerCredentials | None = None
        """If set, the fake serves TLS on a TCP port of the loopback interface instead."""

    def store(self, wasm: bytes = WASM, digest: str = "") -> str:
        """Put a module in as if it had been pushed; returns its digest."""
        module = module_pb2.Module(
            digest=digest or digest_of(wasm),
            size_bytes=len(wasm),
            imports=self.imports,
            exports=self.exports,
        )
        module.create_time.FromSeconds(CREATED_S)
        self.modules[module.digest] = module
        return module.digest

    def requests(self, method: str) -> list[Any]:
        return [seen.request for seen in self.seen if seen.method == method]

    # --- SandboxService -------------------------------------------------------------------------

    async def Execute(self, request: Any, context: Any) -> sandbox_pb2.ExecuteResponse:  # noqa: N802
        await self._arrive("Execute", request, context)
        if request.digest and request.digest not in self.modules:
            await self._not_found(request.digest, context)
        await self._maybe_hang()
        return self.answer(request)

    async def ExecuteBatch(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[sandbox_pb2.ExecuteBatchResponse]:
        """Answer in reverse order, two results in a message; with `hang`, one message only."""
        await self._arrive("ExecuteBatch", request, context)
        results = [self._batch_result(*item) for item in enumerate(request.requests)]
        results.reverse()
        for at in range(0, len(results), 2):
            yield sandbox_pb2.ExecuteBatchResponse(results=results[at : at + 2])
            await self._maybe_hang()

    def _batch_result(self, index: int, request: Any) -> sandbox_pb2.BatchResult:
        refusal = None
        if self.refusals["item"] and request.WhichOneof("call") == "wasi":
            refusal = self.refusals["item"].popleft()
        elif request.digest not in self.modules or index < self.drops:
            refusal = no_module(request.digest)
        if refusal is None:
            return sandbox_pb2.BatchResult(index=index, response=self.answer(request))
        status = status_pb2.Status.FromString(refusal.details() or b"")
        return sandbox_pb2.BatchResult(index=index, error=status)

    async def _maybe_hang(self) -> None:
        if self.hang:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    # --- ModuleService --------------------------------------------------------------------------

    async def Push(self, request_iterator: Any, context: Any) -> module_pb2.PushResponse:  # noqa: N802
        header, chunks = module_pb2.PushHeader(), []
        # However late the cancellation arrives: on a busy machine even after an answer was made.
        context.add_done_callback(lambda done: self.cancelled.set() if done.cancelled() else None)
        try:
            async for request in request_iterator:
                if request.HasField("header"):
                    header = request.header
                else:
                    chunks.append(request.chunk)
                    self.started.set()
            # CAVEAT: to a grpc.aio server a client that went away ends its stream like one that is
            # done; the cancellation arrives when the handler next waits.
            # One that told no size may have gone away in the middle; on a busy machine it takes a
            # while to hear of it.
            await asyncio.sleep(0.02 if header.size_bytes else 0.5)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await self._arrive("Push", (header, chunks), context)
        wasm = b"".join(chunks)
        digest = digest_of(wasm)
        if header.digest and header.digest != digest:
            await refuse(
                context, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "other bytes", "DIGEST_MISMATCH")
            )
        created = digest not in self.modules
        self.store(wasm)
        return module_pb2.PushResponse(
            module=self.modules[digest], created=created, compile_time_ns=12_000_000 * created
        )

    async def Get(self, request: Any, context: Any) -> module_pb2.GetResponse:  # noqa: N802
        await self._arrive("Get", request, context)
        if request.digest not in self.modules:
            await self._not_found(request.digest, context)
        return module_pb2.GetResponse(module=self.modules[request.digest])

    async def List(self, request: Any, context: Any) -> module_pb2.ListResponse:  # noqa: N802
        await self._arrive("List", request, context)
        prefix = f"sha256:{request.digest_prefix.removeprefix('sha256:')}"
        found = sorted(d for d in self.modules if d.startswith(prefix) and d > request.page_token)
        size = min(request.page_size or self.page_size, self.page_size)
        page = [
            module_pb2.Module(
                digest=d,
                size_bytes=self.modules[d].size_bytes,
                create_time=self.modules[d].create_time,
            )
            for d in found[:size]
        ]
        token = page[-1].digest if len(found) > size else ""
        return module_pb2.ListResponse(modules=page, next_page_token=token)

    async def Delete(self, request: Any, context: Any) -> module_pb2.DeleteResponse:  # noqa: N802
        await self._arrive("Delete", request, context)
        if self.modules.pop(request.digest, None) is None:
            await self._not_found(request.digest, context)
        return module_pb2.DeleteResponse()

    # --- AdminService ---------------------------------------------------------------------------

    async def GetStatus(self, request: Any, context: Any) -> admin_pb2.GetStatusResponse:  # noqa: N802
        await self._arrive("GetStatus", request, context)
        return self.status

    # --- rules ----------------------------------------------------------------------------------

    async def _arrive(self, method: str, request: Any, context: Any) -> None:
        if method in ("Execute", "ExecuteBatch"):
            self.started.set()
        self.seen.append(Seen(method, request, context.time_remaining()))
        if self.refusals[method]:
            await refuse(context, self.refusals[method].popleft())

    async def _not_found(self, digest: str, context: Any) -> None:
        await refuse(context, no_module(digest))

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(self, server)
        module_pb2_grpc.add_ModuleServiceServicer_to_server(self, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, server)
        if self.credentials is None:
            server.add_insecure_port(self.address)
        else:
            port = server.add_secure_port("localhost:0", self.credentials)
            self.address = f"localhost:{port}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=0)


def no_module(digest: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        f"no module {digest} is stored",
        "MODULE_NOT_FOUND",
        metadata={"digest": digest},
    )


async def refuse(context: Any, refusal: Refusal) -> None:
    details = refusal.details()
    metadata = (("grpc-status-details-bin", details),) if details is not None else ()
    await context.abort(refusal.code, refusal.message, metadata)


def completed(request: sandbox_pb2.ExecuteRequest) -> sandbox_pb2.ExecuteResponse:
    """Answer as a guest would that adds its numbers, or that returns its input in upper case."""
    response = sandbox_pb2.ExecuteResponse()
    match request.WhichOneof("call"):
        case "typed":
            total = sum(arg.i32 for arg in request.typed.args)
            response.completed.results.add(i32=total)
        case "bytes":
            response.completed.output = request.bytes.input.upper()
        case _:
            response.exited.code = 0
            response.stdout = request.wasi.stdin
    response.receipt.module_digest = request.digest or digest_of(request.wasm)
    return response


@contextmanager
def in_thread(daemon: FakeDaemon) -> Iterator[FakeDaemon]:
    """Serve from another thread, for clients that block this one."""
    ready, loop_box, failures = threading.Event(), [], []

    async def main() -> None:
        stop = asyncio.Event()
        loop_box.append((asyncio.get_running_loop(), stop))
        async with daemon.serve():
            ready.set()
            await stop.wait()

    def target() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=target)
    thread.start()
    ready.wait(10)
    try:
        assert not failures, failures
        yield daemon
    finally:
        loop, stop = loop_box[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


async def happens(event: threading.Event, within_s: float = 5.0) -> bool:
    """Wait for an event without blocking the loop that is to set it."""
    return await asyncio.to_thread(event.wait, within_s)
