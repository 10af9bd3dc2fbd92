"""AdminService: GetStatus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpc import aio

from sandboxd.v1 import admin_pb2, admin_pb2_grpc


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Tells what the daemon is doing. `snapshot` builds the answer from the daemon's parts."""

    def __init__(self, snapshot: Callable[[], admin_pb2.GetStatusResponse]) -> None:
        self._snapshot = snapshot

    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetStatusResponse:
        """See admin.proto."""
        return self._snapshot()
