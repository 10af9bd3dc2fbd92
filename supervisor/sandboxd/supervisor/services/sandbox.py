"""SandboxService: Execute."""

from __future__ import annotations

from typing import Any

from grpc import aio

from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.keys import DEFAULT_TENANT
from sandboxd.v1 import sandbox_pb2, sandbox_pb2_grpc


class SandboxService(sandbox_pb2_grpc.SandboxServiceServicer):
    """Runs calls."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def Execute(
        self,
        request: sandbox_pb2.ExecuteRequest,
        context: aio.ServicerContext[Any, Any],
    ) -> sandbox_pb2.ExecuteResponse:
        """See sandbox.proto."""
        return await self._executor.execute(DEFAULT_TENANT, request, context.time_remaining())
