"""Resource limits of a child, as data."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.policy import ChildPolicy

#: Descriptors that the engine may open beside those kept: one memory file per module image, an
#: epoll, its duplicate and an eventfd of the WASI event loop.
_ROOM_FOR_DESCRIPTORS: Final = 64


@dataclass(frozen=True, slots=True)
class Limit:
    """One resource limit: its setrlimit number, soft and hard value, and why."""

    name: str
    resource: int
    soft: Callable[[ChildPolicy], int]
    reason: str
    #: The hard limit is above the soft one by this much.
    hard_margin: int = 0


#: RLIMIT_AS is missing on purpose: the engine reserves more than 4 GiB of address space for a
#: memory and commits it page by page, so a limit on addresses breaks every instantiation.
LIMITS: Final = (
    Limit(
        "DATA",
        resource.RLIMIT_DATA,
        lambda policy: policy.data_bytes,
        "private writable memory: guest memory, the compiler's heap, thread stacks",
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
        "memory files, which RLIMIT_DATA does not count: module images and the outbox",
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
        lambda policy: max(policy.keep_fds, default=2) + 1 + _ROOM_FOR_DESCRIPTORS,
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
    # A host that already allows less is never asked for more: that needs a capability.
    if ceiling != resource.RLIM_INFINITY:
        hard = min(hard, ceiling)
    return min(soft, hard), hard


def set_limits(policy: ChildPolicy) -> None:
    """Set every limit of the table, soft and hard."""
    for limit in LIMITS:
        resource.setrlimit(limit.resource, _wanted(limit, policy))


def verify_limits(policy: ChildPolicy) -> str:
    """Read every limit back; return what was checked."""
    for limit in LIMITS:
        soft = limit.soft(policy)
        read_soft, read_hard = resource.getrlimit(limit.resource)
        if not 0 <= read_soft <= soft or not 0 <= read_hard <= soft + limit.hard_margin:
            raise NotInForceError(f"RLIMIT_{limit.name} reads {read_soft}, {read_hard}")
    return f"{len(LIMITS)} limits read back"
