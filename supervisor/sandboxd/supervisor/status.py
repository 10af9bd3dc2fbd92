"""The daemon's parts, as the status shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import psutil

from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.runner import Runner
from sandboxd.supervisor.stats import Histogram, Stats
from sandboxd.supervisor.text import for_people
from sandboxd.v1 import admin_pb2
from sandboxd.wire.v1 import control_pb2

STATES = {
    State.STARTING: admin_pb2.RUNNER_STATE_STARTING,
    State.SPARE: admin_pb2.RUNNER_STATE_SPARE,
    State.LOADING: admin_pb2.RUNNER_STATE_BINDING,
    State.BINDING: admin_pb2.RUNNER_STATE_BINDING,
    State.IDLE: admin_pb2.RUNNER_STATE_IDLE,
    State.BUSY: admin_pb2.RUNNER_STATE_BUSY,
    State.STOPPING: admin_pb2.RUNNER_STATE_STOPPING,
    State.DYING: admin_pb2.RUNNER_STATE_DYING,
    State.DEAD: admin_pb2.RUNNER_STATE_DYING,
}


def describe_runner(runner: Runner, now: float) -> admin_pb2.Runner:
    """Describe one runner; RSS and CPU are 0 for one that is gone."""
    pid = runner.child.pid
    rss = 0
    if pid:
        try:
            rss = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            rss = 0
    key = runner.key
    return admin_pb2.Runner(
        pid=pid,
        state=STATES[runner.state],
        tenant=key.tenant if key else "",
        module_digest=key.digest if key else "",
        age_ns=int((now - runner.child.started_at) * 1e9),
        executions=runner.executions,
        rss_bytes=rss,
        cpu_time_ns=runner.child.cpu_time_ns(),
    )


def describe_pool(pool: Pool, zygote_starts: int) -> admin_pb2.PoolStatus:
    """Count the runners by state."""
    states = Counter(runner.state for runner in pool.runners)
    return admin_pb2.PoolStatus(
        starting=states[State.STARTING],
        spare=states[State.SPARE],
        bound=states[State.IDLE],
        busy=states[State.BINDING] + states[State.BUSY] + states[State.STOPPING],
        dying=states[State.DYING],
        capacity=pool.config.capacity,
        started_total=pool.started_total,
        ended_total=pool.ended_total,
        zygote_starts_total=zygote_starts,
        loading=states[State.LOADING],
        ahead=pool.ahead,
    )


def describe_queue(pool: Pool) -> admin_pb2.QueueStatus:
    """Describe the queue for runners."""
    return admin_pb2.QueueStatus(
        depth=pool.queue_depth,
        capacity=pool.config.queue_capacity,
        refused_total=pool.refused_total,
    )


def describe_latency(latency: Histogram) -> admin_pb2.LatencyQuantiles:
    """Describe the latency of Execute."""
    return admin_pb2.LatencyQuantiles(
        count=latency.count,
        p50_ns=latency.quantile(0.5),
        p90_ns=latency.quantile(0.9),
        p99_ns=latency.quantile(0.99),
        max_ns=latency.max_ns,
    )


def describe_artifacts(compiles: CompileService) -> admin_pb2.ArtifactStatus:
    """Count compiled modules in memory and on disk."""
    cache, disk = compiles.cache, compiles.disk
    return admin_pb2.ArtifactStatus(
        cached=len(cache),
        cache_bytes=cache.size_bytes,
        loaded_total=disk.loaded_total,
        compiled_total=compiles.compiled_total,
        rejected_total=disk.rejected_total,
        stored=len(disk),
        stored_bytes=disk.stored_bytes,
    )


def describe_layers(
    layers: Iterable[control_pb2.IsolationLayer], required: Collection[str]
) -> list[admin_pb2.Layer]:
    """Describe layers of isolation as processes reported them."""
    return [
        admin_pb2.Layer(
            name=layer.name,
            active=layer.active,
            detail=for_people(layer.detail, 256),
            required=layer.name in required,
            remedy=layer.remedy,
            reason=layer.reason,
        )
        for layer in layers
    ]


def describe_answers(stats: Stats) -> list[admin_pb2.OutcomeCount]:
    """Count the answers by kind, outcomes first."""
    return [
        admin_pb2.OutcomeCount(name=name, count=count, fault=fault)
        for counts, fault in ((stats.outcomes, False), (stats.faults, True))
        for name, count in sorted(counts.items())
    ]
