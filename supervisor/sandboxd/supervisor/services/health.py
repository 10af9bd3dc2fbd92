"""Health: grpc.health.v1, as grpcio's own service has it, but for one thing.

The library's Watch writes to its client while it holds the lock of the name that is watched. A
client that takes no bytes (a flow-control window of zero is enough) then holds up everybody who
watches that name, and whoever sets its status: the daemon, which would never stop.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Told to those who watch what there is not (yet).
UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # it has no types
    """Tells the status of services by name. Nobody waits for anybody's client."""

    def __init__(self) -> None:
        self._status: dict[str, int] = {}
        self._changed = asyncio.Event()

    def set(self, service: str, status: int) -> None:
        """Set the status of a service, and tell those who watch."""
        self._status[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service; NOT_FOUND for one that there is not."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Write the status of a service now, and whenever it changes."""
        told = None
        while True:
            changed = self._changed
            status = self._status.get(request.service, UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()
