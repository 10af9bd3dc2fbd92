"""What the daemon says about itself. Times in nanoseconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class RunnerState(StrEnum):
    """A state in a runner's life."""

    STARTING = "STARTING"
    SPARE = "SPARE"
    BINDING = "BINDING"
    IDLE = "IDLE"
    BUSY = "BUSY"
    STOPPING = "STOPPING"
    DYING = "DYING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Runner:
    """One runner process."""

    pid: int
    state: RunnerState
    tenant: str
    """Empty if it is bound to none."""
    module_digest: str
    """Empty if it is bound to none."""
    age_ns: int
    executions: int
    rss_bytes: int
    cpu_time_ns: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Runners, counted by state."""

    starting: int
    spare: int
    bound: int
    busy: int
    dying: int
    capacity: int
    started_total: int
    ended_total: int
    zygote_starts_total: int
    loading: int = 0
    """Loading a module ahead of need."""
    ahead: int = 0
    """Of `bound`, those that were bound ahead of need and have not had a call."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue for runners."""

    depth: int
    capacity: int
    refused_total: int


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """One kind of answer since the daemon started."""

    name: str
    count: int
    fault: bool


@dataclass(frozen=True, slots=True)
class ArtifactStatus:
    """Compiled modules, in memory and on disk."""

    cached: int
    cache_bytes: int
    stored: int
    stored_bytes: int
    loaded_total: int
    """Loaded from disk, after their seal was verified."""
    compiled_total: int
    rejected_total: int
    """Found on disk and not used: damaged, tampered with, or of another engine; removed."""


@dataclass(frozen=True, slots=True)
class LatencyQuantiles:
    """Latency of Execute since the daemon started."""

    count: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of isolation."""

    name: str
    active: bool
    """Applied to every process, and verified."""
    detail: str
    """What was verified, or why it is not active."""
    required: bool
    """The daemon does not start without it."""
    remedy: str
    """What can be done to have it; empty if it is active."""
    reason: str
    """What it is for."""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as isolation depends on it."""

    kernel: str
    machine: str
    cgroup_mode: str
    """"v2", "v1", "hybrid" or "none"."""
    engine_package_version: str
    """Of the Python package; the engine inside it can be older."""
    supervisor_uid: int
    started_as_root: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of the daemon."""

    version: str
    engine_version: str
    pid: int
    zygote_pid: int
    """0 while there is none."""
    start_time: datetime | None
    uptime_ns: int
    pool: PoolStatus
    queue: QueueStatus
    latency: LatencyQuantiles
    outcomes: tuple[OutcomeCount, ...]
    runners: tuple[Runner, ...]
    layers: tuple[Layer, ...]
    isolation_profile: str
    """The preset of required layers that the daemon was started with."""
    host: Host
    artifacts: ArtifactStatus
    modules: int
    compiling: int
