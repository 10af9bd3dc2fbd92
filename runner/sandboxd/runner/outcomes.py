"""How a call can end other than by returning, and how the engine's failures are told apart.

A :class:`Stop` ends a call with an outcome, from any depth of the host's code.
Outcomes are messages of ``sandboxd.v1``; they say what the guest did, never that the host failed.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

from wasmtime import TrapCode
from wasmtime import _ffi as ffi

from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

# Trapped.message: "at most 4 KiB".
MAX_MESSAGE_BYTES = 4096
# Trapped.frames: "at most 64 frames". The engine itself captures no more than 20.
MAX_FRAMES = 64
MAX_FUNCTION_NAME_CHARS = 256
# A guest may choose names of any length; no more than this is ever copied of one.
# Four bytes are the longest UTF-8 character.
_MAX_NAME_BYTES_READ = MAX_FUNCTION_NAME_CHARS * 4

# An offset that the engine does not know, such as that of a stack overflow's innermost frame.
_UNKNOWN_OFFSET = (1 << 64) - 1

# All but `completed`, which is not how a call is stopped.
Outcome = (
    call_pb2.Exited
    | call_pb2.Trapped
    | call_pb2.LimitExceeded
    | call_pb2.HostError
    | call_pb2.LinkError
    | runner_pb2.Rejected
)

_STABLE_CODES: dict[int, call_pb2.TrapCode.ValueType] = {
    TrapCode.STACK_OVERFLOW.value: call_pb2.TRAP_CODE_STACK_OVERFLOW,
    TrapCode.MEMORY_OUT_OF_BOUNDS.value: call_pb2.TRAP_CODE_MEMORY_OUT_OF_BOUNDS,
    TrapCode.HEAP_MISALIGNED.value: call_pb2.TRAP_CODE_HEAP_MISALIGNED,
    TrapCode.TABLE_OUT_OF_BOUNDS.value: call_pb2.TRAP_CODE_TABLE_OUT_OF_BOUNDS,
    TrapCode.INDIRECT_CALL_TO_NULL.value: call_pb2.TRAP_CODE_INDIRECT_CALL_TO_NULL,
    TrapCode.BAD_SIGNATURE.value: call_pb2.TRAP_CODE_BAD_SIGNATURE,
    TrapCode.INTEGER_OVERFLOW.value: call_pb2.TRAP_CODE_INTEGER_OVERFLOW,
    TrapCode.INTEGER_DIVISION_BY_ZERO.value: call_pb2.TRAP_CODE_INTEGER_DIVISION_BY_ZERO,
    TrapCode.BAD_CONVERSION_TO_INTEGER.value: call_pb2.TRAP_CODE_BAD_CONVERSION_TO_INTEGER,
    TrapCode.UNREACHABLE.value: call_pb2.TRAP_CODE_UNREACHABLE,
    TrapCode.INTERRUPT.value: call_pb2.TRAP_CODE_INTERRUPT,
    TrapCode.NULL_REFERENCE.value: call_pb2.TRAP_CODE_NULL_REFERENCE,
}

# Messages of the engine about a module that could not be instantiated. Nothing of them
# is the guest's: they are only consulted when no guest code was running.
_INSTANTIATION_LIMITS = (
    (re.compile(r"memory minimum size of \d+ pages"), call_pb2.LIMIT_KIND_MEMORY),
    (re.compile(r"table minimum size of \d+ elements"), call_pb2.LIMIT_KIND_TABLE_ELEMENTS),
    (
        re.compile(r"(?:instance|memory|table) count too high at \d+"),
        call_pb2.LIMIT_KIND_INSTANCE_COUNT,
    ),
    # ENOMEM, EFBIG and ENOSPC are how resource limits look from inside.
    (
        re.compile(r"out of memory|mmap failed|\(os error (?:12|27|28)\)"),
        call_pb2.LIMIT_KIND_MEMORY,
    ),
)


_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], "\ufffd")


class Stop(Exception):  # noqa: N818 - how a call ends, not an error
    """The call is over, with this outcome."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome
        super().__init__(type(outcome).__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the engine came back without a result.

    code: the engine's number of the trap; None for an error that is not a trap of the engine.
    message: the root cause, without the backtrace; at most MAX_MESSAGE_BYTES of UTF-8.
    frames: the guest's backtrace, innermost first; empty if no guest code was running.
    """

    code: int | None
    message: str
    frames: list[call_pb2.Frame]


def broke_abi(message: str) -> Stop:
    """Stop because the guest broke a rule of docs/abi.md."""
    return Stop(call_pb2.HostError(message=for_people(message)))


def rejected(field: str, message: str) -> Stop:
    """Stop, before any guest code ran, because the call does not fit the module."""
    return Stop(runner_pb2.Rejected(field=field, message=for_people(message)))


def exceeded(kind: call_pb2.LimitKind.ValueType, message: str) -> Stop:
    """Stop because a limit of the call was reached."""
    return Stop(call_pb2.LimitExceeded(kind=kind, message=for_people(message)))


def take_failure(error: Any, trap: Any) -> Failure | None:
    """Read and free what a call into the engine left behind; None if it succeeded.

    `error` is a `wasmtime_error_t` pointer and `trap` a `wasm_trap_t` pointer, either may be null.
    """
    if trap:
        try:
            return _trap_failure(trap)
        finally:
            ffi.wasm_trap_delete(trap)
    if error:
        try:
            return _error_failure(error)
        finally:
            ffi.wasmtime_error_delete(error)
    return None


def error_text(error: Any, max_bytes: int) -> str:
    """Read, but do not free, the message of a `wasmtime_error_t` pointer."""
    vec = ffi.wasm_byte_vec_t()
    ffi.wasmtime_error_message(error, ctypes.byref(vec))
    return _take_text(vec, max_bytes)


def running_failure(failure: Failure) -> Outcome:
    """Outcome of a failure while guest code was running."""
    if failure.code == TrapCode.OUT_OF_FUEL.value:
        return call_pb2.LimitExceeded(
            kind=call_pb2.LIMIT_KIND_FUEL, message="all fuel was used up", frames=failure.frames
        )
    if failure.code is None:
        # The engine's own host calls (WASI) end a guest that passes a bad pointer so.
        return call_pb2.HostError(message=failure.message)
    code = _STABLE_CODES.get(failure.code, call_pb2.TRAP_CODE_OTHER)
    return call_pb2.Trapped(code=code, message=failure.message, frames=failure.frames)


def instantiation_failure(failure: Failure) -> Outcome:
    """Outcome of a failure to instantiate, be it by a limit or in the start function."""
    if failure.code is not None or failure.frames:
        return running_failure(failure)
    for pattern, kind in _INSTANTIATION_LIMITS:
        if pattern.search(failure.message):
            return call_pb2.LimitExceeded(kind=kind, message=failure.message)
    return call_pb2.HostError(message=f"the module cannot be instantiated: {failure.message}")


def with_frames(outcome: Outcome, failure: Failure) -> Outcome:
    """Add the backtrace to an outcome that the host decided on, if it has room for one."""
    if isinstance(outcome, call_pb2.Trapped | call_pb2.LimitExceeded):
        outcome.frames.extend(failure.frames)
    return outcome


def set_outcome(result: runner_pb2.Result, outcome: Outcome) -> None:
    """Set the outcome of a Result."""
    match outcome:
        case call_pb2.Exited():
            result.exited.CopyFrom(outcome)
        case call_pb2.Trapped():
            result.trapped.CopyFrom(outcome)
        case call_pb2.LimitExceeded():
            result.limit_exceeded.CopyFrom(outcome)
        case call_pb2.HostError():
            result.host_error.CopyFrom(outcome)
        case call_pb2.LinkError():
            result.link_error.CopyFrom(outcome)
        case runner_pb2.Rejected():
            result.rejected.CopyFrom(outcome)


def clip(text: str, max_bytes: int) -> str:
    """Cut a text to a number of UTF-8 bytes, and make it valid UTF-8."""
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def for_people(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """A text that may hold what a guest or client chose, made fit for a message.

    It is cut to a number of UTF-8 bytes, and control characters, which could be terminal
    escapes, become U+FFFD.
    """
    return clip(text.translate(_CONTROLS), max_bytes)


def _trap_failure(trap: Any) -> Failure:
    code = ffi.wasmtime_trap_code_t()
    has_code = ffi.wasmtime_trap_code(trap, ctypes.byref(code))
    vec = ffi.wasm_byte_vec_t()
    ffi.wasm_trap_message(trap, ctypes.byref(vec))
    message = _take_text(vec, _MAX_ENGINE_MESSAGE_BYTES)
    frames = ffi.wasm_frame_vec_t(0, None)
    ffi.wasm_trap_trace(trap, ctypes.byref(frames))
    return Failure(code.value if has_code else None, _root_cause(message), _take_frames(frames))


def _error_failure(error: Any) -> Failure:
    message = error_text(error, _MAX_ENGINE_MESSAGE_BYTES)
    frames = ffi.wasm_frame_vec_t(0, None)
    ffi.wasmtime_error_wasm_trace(error, ctypes.byref(frames))
    return Failure(None, _root_cause(message), _take_frames(frames))


# A message begins with the backtrace, whose names the guest chose and can make long; the cause
# is at its end, so the end is what is read.
_MAX_ENGINE_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES


def _take_text(vec: Any, max_bytes: int) -> str:
    try:
        size = min(vec.size, max_bytes)
        end = ctypes.addressof(vec.data.contents) + vec.size if size else 0
        return ctypes.string_at(end - size, size).decode("utf-8", "replace").rstrip("\0")
    finally:
        ffi.wasm_byte_vec_delete(ctypes.byref(vec))


def _root_cause(message: str) -> str:
    cause = message.rpartition("Caused by:\n")[2]
    # "    0: memory fault at ...\n    1: wasm trap: out of bounds memory access\n"
    lines = [re.sub(r"^\s+(?:\d+: )?", "", line) for line in cause.splitlines()]
    return for_people("; ".join(line.removeprefix("wasm trap: ") for line in lines if line))


def _take_frames(vec: Any) -> list[call_pb2.Frame]:
    try:
        return [_frame(vec.data[i]) for i in range(min(vec.size, MAX_FRAMES))]
    finally:
        ffi.wasm_frame_vec_delete(ctypes.byref(vec))


def _frame(frame: Any) -> call_pb2.Frame:
    name = ""
    vec = ffi.wasmtime_frame_func_name(frame)
    if vec and vec.contents.size:
        raw = ctypes.string_at(vec.contents.data, min(vec.contents.size, _MAX_NAME_BYTES_READ))
        name = raw.decode("utf-8", "ignore")[:MAX_FUNCTION_NAME_CHARS].translate(_CONTROLS)
    return call_pb2.Frame(
        function_index=ffi.wasm_frame_func_index(frame),
        function_name=name,
        module_offset_bytes=_offset(ffi.wasm_frame_module_offset(frame)),
        function_offset_bytes=_offset(ffi.wasm_frame_func_offset(frame)),
    )


def _offset(offset: int) -> int:
    return 0 if offset == _UNKNOWN_OFFSET else offset
