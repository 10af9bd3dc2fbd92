"""SandboxService: Execute, ExecuteBatch."""

from __future__ import annotations

from typing import Any

import grpc
from grpc import aio

from sandboxd.supervisor.batch_execution import BatchExecutor
from sandboxd.supervisor.call import Received, decode
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.keys import DEFAULT_TENANT
from sandboxd.supervisor.services.hardening import HardenedServer
from sandboxd.v1 import sandbox_pb2

SERVICE = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name


class SandboxService:
    """Runs calls."""

    def __init__(self, executor: Executor, batches: BatchExecutor) -> None:
        self._executor = executor
        self._batches = batches

    def add_to(self, server: HardenedServer) -> None:
        """Register its methods.

        Generated code would encode responses, and forget the bytes of requests: see call.py.
        """
        execute: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self.Execute, request_deserializer=decode, response_serializer=None
        )
        execute_batch: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
            self.ExecuteBatch, request_deserializer=None, response_serializer=None
        )
        server.add_registered_method_handlers(
            SERVICE, {"Execute": execute, "ExecuteBatch": execute_batch}
        )

    async def Execute(self, received: Received, context: aio.ServicerContext[Any, Any]) -> bytes:
        """See sandbox.proto."""
        return await self._executor.execute(DEFAULT_TENANT, received, context.time_remaining())

    async def ExecuteBatch(self, raw: bytes, context: aio.ServicerContext[Any, Any]) -> None:
        """See sandbox.proto."""
        try:
            await self._batches.execute(
                DEFAULT_TENANT, raw, context.write, context.time_remaining()
            )
        except aio.InternalError:
            # A write failed: the client is gone, and nobody is there to be told.
            return
