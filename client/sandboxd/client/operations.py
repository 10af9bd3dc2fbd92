"""What the clients do, written once and without I/O.

Every operation is a generator that yields steps (one RPC, one upload, one pause, one file to
read) and receives their results; `Client` performs the steps by blocking, `AsyncClient` by
awaiting. A step that fails has its `Fault` thrown into the generator.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterable, Callable, Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message

from sandboxd.client import checks, codec
from sandboxd.client.calls import Call, Limits, TypedCall
from sandboxd.client.errors import Fault, ModuleDamaged, ModuleNotFound
from sandboxd.client.execution import Execution
from sandboxd.client.modules import (
    Extern,
    Module,
    PushResult,
    check_digest,
    digest_of,
    find_signature,
)
from sandboxd.client.status import Status
from sandboxd.client.values import Value, fit
from sandboxd.v1 import admin_pb2, module_pb2, sandbox_pb2

ModuleLike: TypeAlias = str | bytes | Path | Module | PushResult
Source: TypeAlias = Path | bytes | Iterable[bytes] | AsyncIterable[bytes]
Progress: TypeAlias = Callable[[int], None]

# The daemon takes messages of 4 MiB; this leaves a MiB for the call's input.
INLINE_BYTES_MAX = 3 << 20
_REQUEST_BYTES_MAX = (4 << 20) - 1024
# An answer that takes longer than the call's limit by this much will not come.
DEADLINE_SLACK_S = 2.0
# Signatures kept, by digest: a digest's interface never changes.
_INTERFACES_MAX = 1024

Method = Literal["Execute", "Get", "List", "Delete", "GetStatus"]


@dataclass(frozen=True, slots=True)
class Unary:
    """Call a method; the result is its response message."""

    method: Method
    request: Message
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Stream:
    """Call ExecuteBatch and wait for its first message; the result is an iterator over messages.

    So a batch that is refused fails as a step does, before anybody reads its stream.
    """

    request: sandbox_pb2.ExecuteBatchRequest
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Upload:
    """Call Push with the source's bytes in chunks; the result is a PushResponse."""

    header: module_pb2.PushHeader
    source: bytes | Iterable[bytes] | AsyncIterable[bytes]
    timeout_s: float | None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Read a file; the result is its bytes. Raises OSError."""

    path: Path


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait; there is no result."""

    seconds: float


_T = TypeVar("_T")
Step: TypeAlias = Unary | Stream | Upload | Load | Pause
Operation: TypeAlias = Generator[Step, Any, _T]


class Operations:
    """The operations of one client, and what it remembers between them."""

    def __init__(self, *, timeout_s: float | None, slack_s: float, retries: int) -> None:
        if retries < 0:
            raise ValueError("retries must not be negative")
        self._timeout_s = checks.patience(timeout_s)
        self._slack_s = slack_s
        self._retries = retries
        self._interfaces: dict[str, tuple[Extern, ...]] = {}

    # --- running -------------------------------------------------------------------------------

    def execute(
        self,
        module: ModuleLike,
        call: Call,
        limits: Limits | None,
        fresh: bool,
        require_layers: Iterable[str] | None,
        timeout: float | None,
    ) -> Operation[Execution]:
        """Run one call; a module too large to send inline is pushed if the daemon lacks it."""
        give_up = time_to_give_up(timeout)
        checks.check_execution(call, limits, require_layers)
        layers = codec.layer_names(require_layers)
        digest, wasm = yield from self._identify(module)
        if isinstance(call, TypedCall) and not _has_types(call):
            call = yield from self._typed(module, digest, call, seconds_left(give_up))
        request = codec.execute_request(call, limits, fresh, layers)
        if wasm is None:
            assert digest is not None
            request.digest = digest
            return (yield from self._run(request, give_up))
        if len(wasm) <= INLINE_BYTES_MAX and len(wasm) + request.ByteSize() <= _REQUEST_BYTES_MAX:
            request.wasm = wasm
            return (yield from self._run(request, give_up))
        request.digest = digest_of(wasm)
        try:
            return (yield from self._run(request, give_up))
        except (ModuleNotFound, ModuleDamaged):
            # Nothing ran: push what is missing, then run.
            yield from self.push(wasm, digest=request.digest, timeout=seconds_left(give_up))
            return (yield from self._run(request, give_up))

    def stored_request(
        self,
        module: str | Module | PushResult,
        call: Call,
        limits: Limits | None,
        fresh: bool,
        require_layers: Iterable[str] | None,
        timeout: float | None,
    ) -> Operation[sandbox_pb2.ExecuteRequest]:
        """Make the request of one call of a module that is stored."""
        layers = codec.layer_names(require_layers)
        digest, _ = yield from self._identify(module)
        if isinstance(call, TypedCall) and not _has_types(call):
            call = yield from self._typed(module, digest, call, timeout)
        request = codec.execute_request(call, limits, fresh, layers)
        assert digest is not None, "only bytes and paths have none"
        request.digest = digest
        return request

    def _identify(self, module: ModuleLike) -> Operation[tuple[str | None, bytes | None]]:
        """Tell a module's digest or its bytes."""
        match module:
            case str():
                return check_digest(module), None
            case Module():
                return module.digest, None
            case PushResult():
                return module.module.digest, None
            case bytes():
                return None, module
            case Path():
                return None, (yield Load(module))
        raise TypeError(
            f"a module is a digest, a Module, bytes or a Path, not {type(module).__name__}"
        )

    def _typed(
        self, module: ModuleLike, digest: str | None, call: TypedCall, timeout: float | None
    ) -> Operation[TypedCall]:
        """Give bare arguments their types from the signature, asking the daemon at most once."""
        if digest is None:
            raise TypeError(
                "a module given as bytes or path needs typed arguments, for example i32(7); "
                "or push it first and call it by digest"
            )
        if isinstance(module, PushResult):
            module = module.module
        if isinstance(module, Module) and module.exports:
            exports = module.exports
        elif digest in self._interfaces:
            exports = self._interfaces[digest]
        else:
            exports = (yield from self.get(digest, timeout)).exports
        signature = find_signature(exports, call.export)
        return replace(call, args=fit(call.args, signature, call.export))

    def _run(
        self, request: sandbox_pb2.ExecuteRequest, give_up: float | None
    ) -> Operation[Execution]:
        asked_ms = request.limits.wall_time_ms if request.limits.HasField("wall_time_ms") else None

        def attempt() -> Operation[Execution]:
            # The daemon must hear of the end of our patience as a limit of the call. As a gRPC
            # deadline the transport would give up at the very moment of the rich answer.
            wall_ms = asked_ms
            if give_up is not None:
                left_ms = max(1, math.ceil((give_up - time.monotonic()) * 1000))
                wall_ms = left_ms if asked_ms is None else min(asked_ms, left_ms)
            if wall_ms is not None:
                request.limits.wall_time_ms = wall_ms
            timeout_s = math.inf if wall_ms is None else wall_ms / 1000 + self._slack_s
            transport_s = timeout_s if timeout_s < checks.PATIENCE_MAX_S else None
            response = yield Unary("Execute", request, transport_s)
            return codec.execution_of(response)

        return (yield from self.retrying(attempt, give_up, only_refused=True))

    # --- modules and status --------------------------------------------------------------------

    def push(
        self,
        source: Source,
        *,
        digest: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Operation[PushResult]:
        """Store a module. Bytes and files are sent with their digest, and can be sent again."""
        give_up = time_to_give_up(timeout)
        if isinstance(source, str):
            raise TypeError("to push a file, pass a pathlib.Path")
        content = (yield Load(source)) if isinstance(source, Path) else source
        header = module_pb2.PushHeader()
        if digest is not None:
            header.digest = check_digest(digest)
        if isinstance(content, bytes):
            header.digest = header.digest or digest_of(content)
            header.size_bytes = len(content)

        def attempt() -> Operation[PushResult]:
            response = yield Upload(header, content, seconds_left(give_up), progress)
            return self._remember(codec.push_result_of(response))

        if not isinstance(content, bytes):  # An iterator can be read once.
            return (yield from attempt())
        return (yield from self.retrying(attempt, give_up))

    def get(self, digest: str | Module, timeout: float | None) -> Operation[Module]:
        """Describe one module."""
        request = module_pb2.GetRequest(digest=_digest(digest))
        response = yield from self._unary("Get", request, timeout)
        module = codec.module_of(response.module)
        self._learn(module)
        return module

    def list_page(
        self, prefix: str, page_size: int, token: str, timeout: float | None
    ) -> Operation[tuple[tuple[Module, ...], str]]:
        """Return one page of modules and the token of the next, empty after the last."""
        request = module_pb2.ListRequest(
            digest_prefix=prefix, page_size=page_size, page_token=token
        )
        response = yield from self._unary("List", request, timeout)
        return tuple(map(codec.module_of, response.modules)), response.next_page_token

    def delete(self, digest: str | Module, timeout: float | None) -> Operation[None]:
        """Remove one module."""
        request = module_pb2.DeleteRequest(digest=_digest(digest))
        yield from self._unary("Delete", request, timeout)

    def status(self, timeout: float | None) -> Operation[Status]:
        """Take a snapshot of the daemon."""
        response = yield from self._unary("GetStatus", admin_pb2.GetStatusRequest(), timeout)
        return codec.status_of(response)

    def _unary(self, method: Method, request: Message, timeout: float | None) -> Operation[Any]:
        timeout = self._timeout_s if timeout is None else timeout
        give_up = time_to_give_up(timeout)

        def attempt() -> Operation[Any]:
            return (yield Unary(method, request, seconds_left(give_up)))

        return (yield from self.retrying(attempt, give_up))

    # --- shared --------------------------------------------------------------------------------

    def retrying(
        self,
        attempt: Callable[[], Operation[_T]],
        give_up: float | None,
        *,
        only_refused: bool = False,
    ) -> Operation[_T]:
        """Repeat after a fault that names a time to come back, if that time is before the end.

        With `only_refused`, only after faults that are certain to have run no guest.
        """
        for _ in range(self._retries):
            try:
                return (yield from attempt())
            except Fault as fault:
                if fault.retry_after is None or (only_refused and not fault.refused):
                    raise
                # Spread the crowd that was refused at the same moment.
                pause_s = fault.retry_after * random.uniform(1.0, 1.5)  # noqa: S311
                if give_up is not None and time.monotonic() + pause_s >= give_up:
                    raise
            yield Pause(pause_s)
        return (yield from attempt())

    def _remember(self, result: PushResult) -> PushResult:
        self._learn(result.module)
        return result

    def _learn(self, module: Module) -> None:
        if len(self._interfaces) >= _INTERFACES_MAX:
            self._interfaces.clear()
        self._interfaces[module.digest] = module.exports


def _has_types(call: TypedCall) -> bool:
    return all(isinstance(arg, Value) for arg in call.args)


def _digest(module: str | Module) -> str:
    return module.digest if isinstance(module, Module) else check_digest(module)


def time_to_give_up(timeout: float | None) -> float | None:
    """Return when so many seconds will have passed, by the monotonic clock; None for never.

    Raises TypeError or ValueError for what is no time to wait.
    """
    seconds = checks.patience(timeout)
    return None if seconds is None else time.monotonic() + seconds


def seconds_left(give_up: float | None) -> float | None:
    """Return the seconds until then; None for never.

    It is at least a nanosecond, which is over at once: 0 is no timeout that may be asked for.
    """
    return None if give_up is None else max(1e-9, give_up - time.monotonic())
