"""AdminService: GetStatus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
from grpc import aio

from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.runner import Runner
from sandboxd.v1 import admin_pb2, admin_pb2_grpc

STATES = {
    State.STARTING: admin_pb2.RUNNER_STATE_STARTING,
    State.SPARE: admin_pb2.RUNNER_STATE_SPARE,
    State.BINDING: admin_pb2.RUNNER_STATE_BINDING,
    State.IDLE: admin_pb2.RUNNER_STATE_IDLE,
    State.BUSY: admin_pb2.RUNNER_STATE_BUSY,
    State.STOPPING: admin_pb2.RUNNER_STATE_STOPPING,
    State.DYING: admin_pb2.RUNNER_STATE_DYING,
    State.DEAD: admin_pb2.RUNNER_STATE_DYING,
}


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Tells what the daemon is doing. `snapshot` builds the answer from the daemon's parts."""

    def __init__(self, snapshot: Callable[[], admin_pb2.GetStatusResponse]) -> None:
        self._snapshot = snapshot

    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetStatusResponse:
        """See admin.proto."""
        return self._snapshot()


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


def count_states(runners: list[Runner]) -> Counter[State]:
    """Count runners by state."""
    return Counter(runner.state for runner in runners)
