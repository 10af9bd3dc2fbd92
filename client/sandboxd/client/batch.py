"""Many calls in few messages: what is sent together, and which result belongs to which call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sandboxd.client import checks, codec
from sandboxd.client.calls import Call, Limits
from sandboxd.client.errors import (
    CallCancelled,
    DeadlineFault,
    Fault,
    InternalFault,
    MessageTooLarge,
    Unavailable,
)
from sandboxd.client.execution import Execution
from sandboxd.client.faults import fault_of_status
from sandboxd.client.modules import Module, PushResult
from sandboxd.client.operations import (
    Load,
    ModuleLike,
    Operation,
    Operations,
    Stream,
    seconds_left,
    time_to_give_up,
)
from sandboxd.v1 import sandbox_pb2

# Far below what the daemon takes (10,000 calls, 4 MiB): long inputs begin to run while the rest of
# them is being read, and are held by the daemon for a short time only.
CALLS_PER_MESSAGE = 1000
MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BatchCall:
    """One call of a batch; the fields are those of `Client.execute`.

    A module that is given as bytes or as a path is pushed, once, and called by digest.
    """

    module: ModuleLike
    call: Call
    limits: Limits | None = None
    fresh: bool = False
    require_layers: Iterable[str] | None = None


Result: TypeAlias = Execution | Fault
"""What came of one call of a batch: what `Client.execute` would have returned or raised."""

Results: TypeAlias = list[Result]


@dataclass(frozen=True, slots=True)
class Opened:
    """The next calls: the stream of their results, as the step `Stream` returned it.

    `refused` are those that were not sent, because something is wrong with them; None is the stream
    if none was sent.
    """

    refused: list[tuple[int, Fault]]
    stream: Any


class Batches:
    """Sends calls, one message of them after the other.

    `open` sends the next message, and `results` takes what its stream brings apart. Indices are
    places in `calls`, from 0.
    """

    def __init__(
        self,
        operations: Operations,
        calls: Iterable[BatchCall],
        max_parallel: int,
        timeout: float | None,
    ) -> None:
        checks.check_parallel(max_parallel)
        self._operations = operations
        # Those that are all there are looked at before anything is sent.
        self._at_hand: Sequence[BatchCall] | None = calls if isinstance(calls, Sequence) else None
        self._calls = enumerate(calls) if self._at_hand is not None else _checked(calls)
        self._max_parallel = max_parallel
        self._give_up = time_to_give_up(timeout)
        self._pushed: dict[bytes | Path, PushResult] = {}
        # Of the message that is made: index and request of each call, and those refused here.
        self._requests: list[tuple[int, sandbox_pb2.ExecuteRequest]] = []
        self._refused: list[tuple[int, Fault]] = []
        # Requests that did not fit into the message before.
        self._left_over: deque[tuple[int, sandbox_pb2.ExecuteRequest]] = deque()
        self._message_bytes = MESSAGE_BYTES
        self._unanswered: set[int] = set()

    def open(self) -> Operation[Opened | None]:
        """Send the next calls; None if there are none left."""
        yield from self._look_ahead()
        yield from self._collect()
        if not self._requests and not self._refused:
            return None
        stream = (yield from self._send()) if self._requests else None
        return Opened(self._refused, stream)

    def _send(self) -> Operation[Any]:
        """Send the message that was made; None if it has more bytes than the daemon takes."""
        message = sandbox_pb2.ExecuteBatchRequest(max_parallel=self._max_parallel)
        message.requests.extend(request for _, request in self._requests)
        self._unanswered = set(range(len(self._requests)))

        def attempt() -> Operation[Any]:
            return (yield Stream(message, seconds_left(self._give_up)))

        try:
            return (yield from self._operations.retrying(attempt, self._give_up, only_refused=True))
        except MessageTooLarge as fault:
            if len(self._requests) > 1:
                self._message_bytes = message.ByteSize() // 2
                self._left_over.extendleft(reversed(self._requests))
            else:
                self._refused.append((self._requests[0][0], fault))
            return None

    def results(self, message: sandbox_pb2.ExecuteBatchResponse) -> Iterator[tuple[int, Result]]:
        """Translate one message of the stream. Raises `InternalFault` for what nobody asked for."""
        for result in message.results:
            if result.index not in self._unanswered:
                raise _broken(f"a result for call {result.index} that nobody waits for")
            self._unanswered.remove(result.index)
            index, _ = self._requests[result.index]
            if result.HasField("response"):
                yield index, codec.execution_of(result.response)
            else:
                yield index, fault_of_status(result.error)

    def check_complete(self) -> None:
        """Raise `InternalFault` unless the stream brought a result for every call."""
        if self._unanswered:
            raise _broken(f"{len(self._unanswered)} calls without a result")

    def _look_ahead(self) -> Operation[None]:
        """Raise what is wrong with arguments, and with files, while nothing was sent."""
        calls, self._at_hand = self._at_hand or (), None
        for _ in _checked(calls):
            pass
        files = dict.fromkeys(call.module for call in calls if isinstance(call.module, Path))
        for path in files:
            yield Load(path)

    def _collect(self) -> Operation[None]:
        """Fill the next message."""
        self._requests, self._refused = [], []
        size = 0
        while len(self._requests) + len(self._refused) < CALLS_PER_MESSAGE:
            found = self._left_over.popleft() if self._left_over else (yield from self._next())
            if found is None:
                return
            size += found[1].ByteSize()
            if self._requests and size > self._message_bytes:
                self._left_over.appendleft(found)
                return
            self._requests.append(found)

    def _next(self) -> Operation[tuple[int, sandbox_pb2.ExecuteRequest] | None]:
        """Prepare the next call that can be sent."""
        for index, call in self._calls:
            try:
                return index, (yield from self._prepare(call))
            except (Unavailable, DeadlineFault, CallCancelled):
                raise  # Nothing is wrong with the call.
            except Fault as fault:
                self._refused.append((index, fault))
                if len(self._refused) >= CALLS_PER_MESSAGE:
                    return None
        return None

    def _prepare(self, call: BatchCall) -> Operation[sandbox_pb2.ExecuteRequest]:
        module = call.module
        if isinstance(module, bytes | Path):
            if module not in self._pushed:
                self._pushed[module] = yield from self._operations.push(
                    module, timeout=seconds_left(self._give_up)
                )
            module = self._pushed[module]
        return (
            yield from self._operations.stored_request(
                module,
                call.call,
                call.limits,
                call.fresh,
                call.require_layers,
                seconds_left(self._give_up),
            )
        )


def all_at_hand(calls: Iterable[BatchCall]) -> Sequence[BatchCall]:
    """Take all calls from an iterator, so that all can be looked at before anything is sent."""
    return calls if isinstance(calls, Sequence) else list(calls)


def in_order(results: Iterable[tuple[int, Result]]) -> Results:
    """Return results of all calls in the order of the calls."""
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def _checked(calls: Iterable[BatchCall]) -> Iterator[tuple[int, BatchCall]]:
    for index, call in enumerate(calls):
        _check(index, call)
        yield index, call


def _check(index: int, call: object) -> None:
    """Raise TypeError or ValueError, with the call's place, for wrong arguments."""
    try:
        if not isinstance(call, BatchCall):
            raise TypeError(f"a BatchCall is needed, not {type(call).__name__}")
        if not isinstance(call.module, str | bytes | Path | Module | PushResult):
            raise TypeError(
                "module is a digest, a Module, bytes or a Path, not " + type(call.module).__name__
            )
        checks.check_module(call.module)
        checks.check_execution(call.call, call.limits, call.require_layers)
    except (TypeError, ValueError) as error:
        raise type(error)(f"calls[{index}]: {error}") from None


def _broken(what: str) -> InternalFault:
    return InternalFault(f"the daemon answered a batch with {what}", code="INTERNAL")
