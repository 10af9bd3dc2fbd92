"""ModuleService: Push, Get, List, Delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from sandboxd.supervisor import faults, requests
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.keys import DEFAULT_TENANT, DIGEST_PREFIX, Key
from sandboxd.supervisor.store import Entry, Incoming, Store
from sandboxd.supervisor.threads import in_thread, to_the_end
from sandboxd.v1 import module_pb2, module_pb2_grpc

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_PUSHES = 64
# A push whose next bytes do not come for this long is given up.
PUSH_IDLE_TIMEOUT_S = 30.0


class ModuleService(module_pb2_grpc.ModuleServiceServicer):
    """Stores modules."""

    def __init__(self, store: Store, compiles: CompileService, push_time_s: float) -> None:
        self._store = store
        self._compiles = compiles
        self._push_time_s = push_time_s
        compiles.on_damaged = self._damaged
        # Index and disk change together: a push and a delete of one digest must not interleave.
        self._writing = asyncio.Lock()
        self._pushes = 0

    async def Push(
        self,
        request_iterator: AsyncIterator[module_pb2.PushRequest],
        context: aio.ServicerContext[Any, Any],
    ) -> module_pb2.PushResponse:
        """See module.proto."""
        if self._pushes >= MAX_PUSHES:
            raise faults.Overloaded(f"{MAX_PUSHES} pushes are under way", retry_after_s=1.0)
        self._pushes += 1
        try:
            return await self._push(request_iterator, context.time_remaining())
        finally:
            self._pushes -= 1

    async def _push(
        self, request_iterator: AsyncIterator[module_pb2.PushRequest], remaining: float | None
    ) -> module_pb2.PushResponse:
        incoming = self._store.begin()
        try:
            async with asyncio.timeout(remaining):
                header = await self._receive(incoming, request_iterator)
                # A client that cancels in the middle looks like one that is done: the stream ends,
                # and the cancellation arrives at the next suspension. Let it arrive before a
                # module that was cut short is taken for a whole one.
                await asyncio.sleep(0)
                _check_claims(incoming, header)
                return await self._admit(DEFAULT_TENANT, incoming)
        except TimeoutError:
            raise faults.DeadlineFault(
                "the deadline passed before the module was stored; nothing was kept"
            ) from None
        finally:
            await in_thread(incoming.close)

    async def _receive(
        self, incoming: Incoming, parts: AsyncIterator[module_pb2.PushRequest]
    ) -> module_pb2.PushHeader:
        try:
            async with asyncio.timeout(self._push_time_s) as total:
                return await _receive(incoming, parts)
        except TimeoutError:
            if not total.expired():
                raise  # the client's own deadline
            raise faults.DeadlineFault(
                f"the module did not come within {self._push_time_s:g} s (--push-time); nothing "
                "was kept",
                metadata={"setting": "--push-time"},
            ) from None

    async def _admit(self, tenant: str, incoming: Incoming) -> module_pb2.PushResponse:
        digest = incoming.digest
        if self._store.get(tenant, digest) is None:
            # For nothing is compiled what there is no room for; asked again when it is stored.
            self._store.check_room(incoming.size_bytes)
        key = Key(tenant, digest, fuel=False)
        started_at = asyncio.get_running_loop().time()
        cached = self._compiles.cache.get(key) is not None
        artifact = await self._compiles.artifact(key, incoming.reopen)
        elapsed_s = asyncio.get_running_loop().time() - started_at
        if cached or artifact.from_disk:
            elapsed_s = 0.0
        created = False
        entry = self._store.get(tenant, digest)
        if entry is None:
            new = Entry(digest, incoming.size_bytes, time.time_ns(), disk_bytes=0)
            # Shielded: once the rename is under way the outcome must be entered in the index.
            commit = self._commit(tenant, incoming, _describe(new, artifact))
            committed = await to_the_end(commit)
            entry, created = committed
        saving = self._compiles.keep(key, artifact)
        if saving is not None:
            await asyncio.shield(saving)
        return module_pb2.PushResponse(
            module=_describe(entry, artifact),
            created=created,
            compile_time_ns=int(elapsed_s * 1e9),
        )

    async def _commit(
        self, tenant: str, incoming: Incoming, meta: module_pb2.Module
    ) -> tuple[Entry, bool]:
        async with self._writing:
            if self._store.get(tenant, meta.digest) is None:
                self._store.check_room(Entry.of(meta).disk_bytes)
            created = await asyncio.to_thread(self._store.commit, tenant, incoming, meta)
            return self._store.remember(tenant, meta), created

    def _damaged(self, key: Key) -> None:
        """Serve a module no longer whose bytes are not its own: who pushes it again, mends it."""
        self._store.forget(key.tenant, key.digest)

    async def Get(
        self, request: module_pb2.GetRequest, context: aio.ServicerContext[Any, Any]
    ) -> module_pb2.GetResponse:
        """See module.proto."""
        requests.check_digest(request.digest, "digest")
        module = None
        if self._store.get(DEFAULT_TENANT, request.digest) is not None:
            module = await in_thread(self._store.describe, DEFAULT_TENANT, request.digest)
        if module is None:
            raise _not_found(request.digest)
        return module_pb2.GetResponse(module=module)

    async def List(
        self, request: module_pb2.ListRequest, context: aio.ServicerContext[Any, Any]
    ) -> module_pb2.ListResponse:
        """See module.proto."""
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        if request.page_token:
            requests.check_digest(request.page_token, "page_token")
        prefix = request.digest_prefix.removeprefix(DIGEST_PREFIX)
        if not set(prefix) <= set("0123456789abcdef"):
            raise faults.InvalidRequest(
                'a prefix is lower-case hex digits, with or without "sha256:"',
                field="digest_prefix",
            )
        found = self._store.page(
            DEFAULT_TENANT, DIGEST_PREFIX + prefix, request.page_token, size + 1
        )
        response = module_pb2.ListResponse(modules=[entry.brief() for entry in found[:size]])
        if len(found) > size:
            response.next_page_token = found[size - 1].digest
        return response

    async def Delete(
        self, request: module_pb2.DeleteRequest, context: aio.ServicerContext[Any, Any]
    ) -> module_pb2.DeleteResponse:
        """See module.proto."""
        requests.check_digest(request.digest, "digest")
        await to_the_end(self._remove(DEFAULT_TENANT, request.digest))
        return module_pb2.DeleteResponse()

    async def _remove(self, tenant: str, digest: str) -> None:
        async with self._writing:
            if not self._store.forget(tenant, digest):
                raise _not_found(digest)
            for fuel in (False, True):
                self._compiles.cache.drop(Key(tenant, digest, fuel))
            await asyncio.to_thread(self._compiles.disk.remove, tenant, digest)
            await asyncio.to_thread(self._store.remove, tenant, digest)


async def _receive(
    incoming: Incoming, parts: AsyncIterator[module_pb2.PushRequest]
) -> module_pb2.PushHeader:
    header = module_pb2.PushHeader()
    first = True
    while (part := await _next(parts)) is not None:
        match part.WhichOneof("part"):
            case "header" if first:
                header = part.header
                if header.digest:
                    requests.check_digest(header.digest, "header.digest")
            case "header":
                raise faults.InvalidRequest("only the first message has a header", field="header")
            case "chunk" if not part.chunk:
                # Nothing but a way to keep a push open.
                raise faults.InvalidRequest("a chunk has at least one byte", field="chunk")
            case "chunk":
                await in_thread(incoming.write, part.chunk)
                requests.check_magic_so_far(incoming.head)
            case _:
                raise faults.InvalidRequest("set header or chunk", field="part")
        first = False
    requests.check_magic(incoming.head)
    return header


async def _next(parts: AsyncIterator[module_pb2.PushRequest]) -> module_pb2.PushRequest | None:
    try:
        async with asyncio.timeout(PUSH_IDLE_TIMEOUT_S):
            return await anext(parts, None)
    except TimeoutError:
        raise faults.InvalidRequest(
            f"no more bytes came for {PUSH_IDLE_TIMEOUT_S:.0f} s; nothing was kept", field="chunk"
        ) from None


def _check_claims(incoming: Incoming, header: module_pb2.PushHeader) -> None:
    if header.size_bytes and header.size_bytes != incoming.size_bytes:
        raise faults.DigestMismatch(
            f"{incoming.size_bytes} bytes came, {header.size_bytes} were announced",
            field="header.size_bytes",
        )
    if header.digest and header.digest != incoming.digest:
        raise faults.DigestMismatch(
            f"the bytes have the digest {incoming.digest}, not the announced one",
            field="header.digest",
            metadata={"digest": incoming.digest},
        )


def _describe(entry: Entry, artifact: Artifact) -> module_pb2.Module:
    module = entry.brief()
    module.imports.extend(artifact.info.imports)
    module.exports.extend(artifact.info.exports)
    return module


def _not_found(digest: str) -> faults.ModuleNotFound:
    return faults.ModuleNotFound(f"no module {digest} is stored", metadata={"digest": digest})
