"""One call in progress: what it may still write, and whether the host has ended it.

Host functions and output callbacks are C callbacks that outlive any call, and the engine runs
output callbacks on a thread of its own. They find their call by a key that the store carries,
so that one that comes late finds no call instead of the next one.
"""

import itertools
from types import TracebackType

import wasmtime

from sandboxd.runner.outbox import Outbox, Region
from sandboxd.runner.outcomes import Outcome, Stop, exceeded
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

# docs/abi.md, "Imports".
MAX_LOG_ENTRIES = 1024
LOG_ENTRY_COST_BYTES = 16

# However much the supervisor allows: a result travels in one protobuf message, which cannot
# be 2 GiB, and lengths up to here fit the C ints of ctypes.
MAX_OUTPUT_BYTES = 1 << 30

_keys = itertools.count(1)
_calls: "dict[int, Call]" = {}


def find(key: int | None) -> "Call | None":
    """The call in progress that has this key."""
    return _calls.get(key) if key else None


class Call:
    """The host's side of one call; a context manager that makes it findable by its key.

    key: what stores and output streams carry to find it.
    outcome: set once, by the first host function or output callback that ends the call.
    bug: an error of the host's own code in a callback; raised by `check`.
    inbox_bytes: length of the input that is in the inbox; 0 if there is none.
    """

    def __init__(self, job: runner_pb2.Execute, outbox: Outbox, engine: wasmtime.Engine):
        self.key = next(_keys)
        self.outcome: Outcome | None = None
        self.bug: BaseException | None = None
        self.remaining_bytes = min(job.output_bytes, MAX_OUTPUT_BYTES)
        self.inbox_bytes = job.inbox_bytes
        self._allowed_bytes = job.output_bytes
        self._log_entries = 0
        self._outbox = outbox
        self._engine = engine

    def __enter__(self) -> "Call":
        _calls[self.key] = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del _calls[self.key]

    def end(self, outcome: Outcome) -> None:
        """End the call with this outcome, unless it has been ended already."""
        if self.outcome is None:
            self.outcome = outcome

    def check(self) -> None:
        """Raise what a callback could not: Stop if the call was ended, or its bug."""
        if self.bug is not None:
            raise self.bug
        if self.outcome is not None:
            raise Stop(self.outcome)

    def write(self, region: Region, data: bytes) -> bool:
        """Write to standard output or error what fits; False if that was not all."""
        kept = self._outbox.append(region, data[: self.remaining_bytes])
        self.remaining_bytes -= kept
        if kept < len(data):
            self._end_for_output()
            return False
        return True

    def log(self, entry: call_pb2.LogEntry) -> None:
        """Keep a log entry; one that does not fit is dropped and ends the call."""
        cost = LOG_ENTRY_COST_BYTES + len(entry.message)
        if self._log_entries == MAX_LOG_ENTRIES:
            self.remaining_bytes = 0
            self.end(
                call_pb2.LimitExceeded(
                    kind=call_pb2.LIMIT_KIND_OUTPUT,
                    message=f"the guest logged more than {MAX_LOG_ENTRIES} entries",
                )
            )
        elif cost > self.remaining_bytes or not self._outbox.append_log(entry.SerializeToString()):
            self._end_for_output()
        else:
            self._log_entries += 1
            self.remaining_bytes -= cost

    def inbox(self) -> int:
        """Address of the input that is in the inbox."""
        return self._outbox.inbox(self.inbox_bytes)

    def take_result(self, length_bytes: int) -> None:
        """Count a result against the output limit; raises Stop if it is too long for that."""
        if length_bytes > self.remaining_bytes:
            raise exceeded(
                call_pb2.LIMIT_KIND_OUTPUT,
                f"a result of {length_bytes} bytes does not fit the {self.remaining_bytes} bytes "
                f"that are left of {self._allowed_bytes} bytes of output",
            )
        self.remaining_bytes -= length_bytes

    def put_result(self, address: int, length_bytes: int) -> None:
        """Leave a result in the outbox; raises Stop if it is too long for the output limit."""
        self.take_result(length_bytes)
        if self._outbox.append_from(Region.RESULT, address, length_bytes) < length_bytes:
            raise ValueError(f"an outbox that cannot take a result of {length_bytes} bytes")

    def _end_for_output(self) -> None:
        self.remaining_bytes = 0
        self.end(
            call_pb2.LimitExceeded(
                kind=call_pb2.LIMIT_KIND_OUTPUT,
                message=f"the guest wrote more than {self._allowed_bytes} bytes of output",
            )
        )
        # An output callback can only give the guest an error number, which it may ignore.
        # A reached epoch it cannot: it traps at the next loop or function entry.
        self._engine.increment_epoch()
