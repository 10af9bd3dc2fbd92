"""The blocking client."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
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
from sandboxd.client.upload import messages
from sandboxd.client.values import Number, Value
from sandboxd.v1.admin_pb2_grpc import AdminServiceStub
from sandboxd.v1.module_pb2 import PushRequest
from sandboxd.v1.module_pb2_grpc import ModuleServiceStub
from sandboxd.v1.sandbox_pb2 import ExecuteBatchResponse
from sandboxd.v1.sandbox_pb2_grpc import SandboxServiceStub

_T = TypeVar("_T")


class Client:
    """A connection to one daemon; threads may share it.

    Every method raises a `Fault` when the request or the daemon is at fault. What a guest did is
    an outcome in the `Execution`; it raises only from `Execution.check()`.

    Ctrl-C (KeyboardInterrupt) in a method cancels its RPC: the daemon stops the guest. There is one
    instant, when gRPC has sent a request and not begun to wait, in which it loses the call; then it
    is cancelled when the client is closed.

    Args:
        address: `unix:///path`, `unix:path`, `/path`, `host:port` or `dns:///host:port`; None
            means SANDBOXD_ADDRESS, else `unix:///run/sandboxd/sandboxd.sock`.
        tls: for a TCP target; without it the connection is neither encrypted nor authenticated.
        timeout: seconds for get, list, delete and status where the call names none.
        retries: how often to try again after a fault that names a time to come back
            (`retry_after`), waiting that long. Off by default. A call is repeated only after
            faults that refused it before any guest ran (QUEUE_FULL, OVERLOADED, SHUTTING_DOWN),
            so that it runs at most once.
        deadline_slack: seconds that the transport waits for an answer beyond a call's limit, so
            that the daemon's own answer, with output and backtrace, arrives first.
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
        self._operations = Operations(timeout_s=timeout, slack_s=deadline_slack, retries=retries)
        if tls is None:
            self._channel = grpc.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(
                self.target, tls.credentials(), options=(*CHANNEL_OPTIONS, *tls.options())
            )
        modules = ModuleServiceStub(self._channel)
        sandbox = SandboxServiceStub(self._channel)
        self._push = modules.Push
        self._execute_batch = sandbox.ExecuteBatch
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[Any, Any]] = {
            "Execute": sandbox.Execute,
            "Get": modules.Get,
            "List": modules.List,
            "Delete": modules.Delete,
            "GetStatus": AdminServiceStub(self._channel).GetStatus,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls in other threads are cancelled."""
        self._channel.close()

    # --- running -------------------------------------------------------------------------------

    def execute(
        self,
        module: ModuleLike,
        call: Call,
        *,
        limits: Limits | None = None,
        fresh: bool = False,
        require_layers: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> Execution:
        """Run one call in a fresh instance and tell what came of it.

        Args:
            module: a digest (`"sha256:…"`), the result of `push` or `get`, or the WebAssembly
                binary as bytes or as the path of a file. Up to 3 MiB it travels with the call
                and is not stored; a larger one is pushed if the daemon does not have it.
            call: a `TypedCall`, `BytesCall` or `WasiCommand`.
            limits: None, or a limit that is None, takes the daemon's default.
            fresh: run in a process that serves this call only.
            require_layers: layers of isolation that must be active, by name, or the call is
                refused with `LayerNotActive`; `status().layers` names them. None requires none.
            timeout: seconds above 0, for everything, repeats included; None or infinity waits
                for as long as it takes. It reaches the daemon as the call's wall-clock limit, so
                that running out of it is the outcome `DeadlineExceeded`; only a daemon that does
                not answer is a `DeadlineFault`.
        """
        return self._do(
            self._operations.execute(module, call, limits, fresh, require_layers, timeout)
        )

    def call(
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
        return self.execute(
            module,
            TypedCall(export, args),
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    def call_bytes(
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
        return self.execute(
            module,
            call,
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    def run(
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
        return self.execute(
            module,
            call,
            limits=limits,
            fresh=fresh,
            require_layers=require_layers,
            timeout=timeout,
        )

    # --- running many --------------------------------------------------------------------------

    def execute_batch(
        self,
        calls: Iterable[BatchCall],
        *,
        max_parallel: int = 0,
        timeout: float | None = None,
    ) -> Generator[tuple[int, Result], None, None]:
        """Run many calls in few messages; iterate over what came of each, as they end.

        Every call is one of its own, as with `execute`, and what is wrong with one harms no
        other. An item is the call's place in `calls`, from 0, and its `Execution`, or the `Fault`
        that `execute` would have raised. The iterator itself raises a `Fault` when it cannot go on:
        calls without a result by then may have run. Nothing is sent before the first result is
        asked for. To leave early, close the iterator (`contextlib.closing`, or its `close()`):
        that cancels the calls that run, and the others never start.

        Raises TypeError, ValueError or OSError for arguments that are wrong and for a file that
        cannot be read: of a sequence before anything is sent, else when it comes to that call.

        Args:
            calls: as many as you like, of one module or of several; sent up to 1,000 at a time,
                each message when all of the one before have ended.
            max_parallel: how many may be under way at once; 0 leaves it to the daemon, which
                takes one more than it has processors.
            timeout: seconds for everything, from when the first result is asked for; when they
                are over, the iterator raises `DeadlineFault`. `BatchCall.limits` bound the single
                call, from when the daemon takes it up.
        """
        batches = Batches(self._operations, calls, max_parallel, timeout)
        while (opened := self._do(batches.open())) is not None:
            if opened.stream is not None:
                with contextlib.closing(opened.stream):
                    for message in opened.stream:
                        yield from batches.results(message)
                batches.check_complete()
            yield from opened.refused

    def execute_all(
        self,
        calls: Iterable[BatchCall],
        *,
        max_parallel: int = 0,
        timeout: float | None = None,
    ) -> Results:
        """Run many calls in few messages; return what came of each, in their order.

        See `execute_batch`. A `Fault` of a single call is in the list, not raised. All calls are
        taken from `calls` and looked at before anything is sent.
        """
        results = self.execute_batch(all_at_hand(calls), max_parallel=max_parallel, timeout=timeout)
        return in_order(results)

    # --- modules and status --------------------------------------------------------------------

    def push(
        self,
        source: Path | bytes | Iterable[bytes],
        *,
        digest: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> PushResult:
        """Store a module; when this returns, it is on disk. Pushing it again changes nothing.

        Args:
            source: a file, the bytes, or an iterator over pieces of them. What the iterator
                raises comes out of this method, and nothing is stored.
            digest: what the bytes must hash to; needed only for an iterator.
            timeout: seconds, compiling included; None waits for as long as the daemon compiles.
            progress: is called, from another thread, with the number of bytes sent so far.
        """
        operation = self._operations.push(source, digest=digest, timeout=timeout, progress=progress)
        return self._do(operation)

    def get(self, digest: str | Module, *, timeout: float | None = None) -> Module:
        """Describe one stored module, imports and exports included."""
        return self._do(self._operations.get(digest, timeout))

    def list(
        self, prefix: str = "", *, page_size: int = 0, timeout: float | None = None
    ) -> Iterator[Module]:
        """Iterate over the stored modules, ordered by digest; pages are fetched as needed.

        Args:
            prefix: only digests that begin so: `sha256:` and hex digits, or hex digits alone.
            page_size: modules per request; 0 means the daemon's default.
            timeout: seconds per page.
        """
        token = ""
        while True:
            page, token = self._do(self._operations.list_page(prefix, page_size, token, timeout))
            yield from page
            if not token:
                return

    def delete(self, digest: str | Module, *, timeout: float | None = None) -> None:
        """Remove one stored module; calls that have started are not affected."""
        self._do(self._operations.delete(digest, timeout))

    def status(self, *, timeout: float | None = None) -> Status:
        """Take a snapshot of the daemon."""
        return self._do(self._operations.status(timeout))

    # --- performing steps ----------------------------------------------------------------------

    def _do(self, operation: Operation[_T]) -> _T:
        try:
            step = next(operation)
            while True:
                try:
                    result = self._perform(step)
                except Fault as fault:
                    step = operation.throw(fault)
                else:
                    step = operation.send(result)
        except StopIteration as end:
            value: _T = end.value
            return value
        finally:
            operation.close()

    def _perform(self, step: Step) -> Any:
        match step:
            case Unary():
                try:
                    return self._methods[step.method](step.request, timeout=step.timeout_s)
                except grpc.RpcError as error:
                    raise fault_of(error) from None
            case Stream():
                return self._stream(step)
            case Upload():
                return self._upload(step)
            case Load():
                return step.path.read_bytes()
            case Pause():
                return time.sleep(step.seconds)

    def _stream(self, step: Stream) -> Generator[ExecuteBatchResponse, None, None]:
        call = _uninterrupted(lambda: self._execute_batch(step.request, timeout=step.timeout_s))
        try:
            first = next(call, None)
        except grpc.RpcError as error:
            raise fault_of(error) from None
        except BaseException:
            call.cancel()
            raise
        return _messages(first, call)

    def _upload(self, upload: Upload) -> Any:
        pieces = _Pieces(upload)
        call = None
        try:
            call = self._push.future(pieces, timeout=upload.timeout_s)
            pieces.begin(call.cancel)
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if pieces.error is not None:
                raise pieces.error from None
            if isinstance(error, grpc.FutureCancelledError):
                raise
            raise fault_of(error) from None
        except BaseException:
            pieces.give_up()
            if call is not None:
                call.cancel()
            raise


def _uninterrupted(begin: Callable[[], Any]) -> Any:
    """Begin a streaming call in a thread, where Ctrl-C does not strike.

    CAVEAT: with the first one on a channel gRPC starts a thread. If an interrupt keeps it from
    that, the channel knows of a call that nobody serves, and its `close` waits for ever.
    """
    begun: Future[Any] = Future()

    def run() -> None:
        try:
            begun.set_result(begin())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            begun.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    # Interrupted here, the call is dropped as soon as it is made, and that cancels it.
    return begun.result()


def _messages(
    first: ExecuteBatchResponse | None, call: Any
) -> Generator[ExecuteBatchResponse, None, None]:
    """Read a stream whose first message came; it is cancelled if it is not read to its end."""
    try:
        if first is not None:
            yield first
            yield from call
    except grpc.RpcError as error:
        raise fault_of(error) from None
    finally:
        call.cancel()


class _Pieces(Iterator[PushRequest]):
    """The messages of a push, which gRPC takes in a thread of its own.

    When the source raises, this cancels the call *before* it ends the stream: a stream that just
    ended would be a complete module to the daemon, and a raise here would be logged by gRPC.
    """

    def __init__(self, upload: Upload) -> None:
        self.error: Exception | None = None
        self._messages = messages(upload)
        self._abort: Any = None
        self._held = threading.Event()
        self._given_up = False

    def begin(self, cancel: Any) -> None:
        """Let the pieces go; the call, which exists only now, is cancelled like this."""
        self._abort = cancel
        self._held.set()

    def give_up(self) -> None:
        """Send nothing more."""
        self._given_up = True
        self._held.set()

    def __next__(self) -> PushRequest:
        self._held.wait()
        if self._given_up:
            raise StopIteration
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller of push
            self.error = error
            self._abort()
            raise StopIteration from None
