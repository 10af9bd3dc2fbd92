"""Resource limits of a child, as data."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from sandboxd.runner.isolation.policy import RESERVED_BYTES, ChildPolicy
from sandboxd.runner.isolation.program import SCRATCH, Check, Work, call, pointer

#: Descriptors that are opened beside those kept: the artifact, then an epoll, its duplicate and an
#: eventfd of the WASI event loop; and some that nobody knows of.
_ROOM_FOR_DESCRIPTORS: Final = 16


@dataclass(frozen=True, slots=True)
class Limit:
    """One resource limit: its setrlimit number, soft and hard value, and why."""

    name: str
    resource: int
    soft: Callable[[ChildPolicy], int]
    reason: str
    #: The hard limit is above the soft one by this much.
    hard_margin: int = 0


LIMITS: Final = (
    Limit(
        "DATA",
        resource.RLIMIT_DATA,
        lambda policy: policy.data_bytes,
        "private writable memory: guest memory, the compiler's heap, thread stacks",
    ),
    Limit(
        "AS",
        resource.RLIMIT_AS,
        lambda policy: policy.data_bytes + RESERVED_BYTES,
        "page tables, which no other limit counts: they grow with the addresses in use",
    ),
    Limit(
        "CPU",
        resource.RLIMIT_CPU,
        lambda policy: policy.cpu_seconds,
        "processor time if the supervisor's clock fails; SIGXCPU first, SIGKILL a second later",
        hard_margin=1,
    ),
    Limit(
        "FSIZE",
        resource.RLIMIT_FSIZE,
        lambda policy: policy.file_size_bytes,
        "memory files, which RLIMIT_DATA does not count: a compiler's artifact, nothing else",
    ),
    Limit(
        "NPROC",
        resource.RLIMIT_NPROC,
        lambda policy: policy.processes,
        "threads: the interrupt thread and the engine's event loop, and no thread bomb",
    ),
    Limit(
        "NOFILE",
        resource.RLIMIT_NOFILE,
        lambda policy: max(policy.open_fds, default=2) + 1 + _ROOM_FOR_DESCRIPTORS,
        "descriptors: those kept and a few for the engine",
    ),
    Limit("CORE", resource.RLIMIT_CORE, lambda _: 0, "a core file would hold a tenant's data"),
    Limit("MEMLOCK", resource.RLIMIT_MEMLOCK, lambda _: 0, "nothing needs locked pages"),
    Limit("MSGQUEUE", resource.RLIMIT_MSGQUEUE, lambda _: 0, "kernel memory that is never used"),
    Limit("SIGPENDING", resource.RLIMIT_SIGPENDING, lambda _: 64, "queued signals, kernel memory"),
    Limit("NICE", resource.RLIMIT_NICE, lambda _: 0, "no negative nice value"),
    Limit("RTPRIO", resource.RLIMIT_RTPRIO, lambda _: 0, "no real-time scheduling"),
    Limit(
        "STACK",
        resource.RLIMIT_STACK,
        lambda _: 8 << 20,
        "native recursion of the main thread; a guest's own stack is bounded by the engine",
    ),
)


def _wanted(limit: Limit, policy: ChildPolicy) -> tuple[int, int]:
    soft = limit.soft(policy)
    hard = soft + limit.hard_margin
    _, ceiling = resource.getrlimit(limit.resource)
    # A host that already allows less is never asked for more: that needs a capability. The child
    # inherits the limits of the process that describes this.
    if ceiling != resource.RLIM_INFINITY:
        hard = min(hard, ceiling)
    return min(soft, hard), hard


_pair: Final = struct.Struct("=QQ")
_answers, _ANSWERS = SCRATCH.take(_pair.size * len(LIMITS))


def set_limits(policy: ChildPolicy) -> Work:
    """Set every limit of the table, soft and hard."""
    values = b"".join(_pair.pack(*_wanted(limit, policy)) for limit in LIMITS)
    address, held = pointer(values)
    calls = (
        call("prlimit64", 0, limit.resource, address + at * _pair.size)
        for at, limit in enumerate(LIMITS)
    )
    return Work(tuple(calls), held=(held,))


def verify_limits(policy: ChildPolicy) -> Work:
    """Read every limit back."""
    calls = (
        call("prlimit64", 0, limit.resource, 0, _answers + at * _pair.size)
        for at, limit in enumerate(LIMITS)
    )
    checks = (
        Check(
            _ANSWERS[at * _pair.size : (at + 1) * _pair.size],
            _pair.pack(*_wanted(limit, policy)),
            partial(_say, limit.name),
        )
        for at, limit in enumerate(LIMITS)
    )
    return Work(tuple(calls), tuple(checks), f"{len(LIMITS)} limits read back")


def _say(name: str, answer: bytes) -> str:
    soft, hard = _pair.unpack(answer)
    return f"RLIMIT_{name} reads {soft}, {hard}"
