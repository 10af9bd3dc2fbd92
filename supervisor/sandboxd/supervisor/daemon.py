"""The daemon: starts, serves, drains.

What it is made of is parts.py, where its processes come from is zygote_keeper.py.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from sandboxd.supervisor import (
    configuration,
    endpoints,
    host,
    privileges,
    state_directory,
    status,
)
from sandboxd.supervisor.batch_execution import BatchExecutor
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.gate import Gate, shutting_down
from sandboxd.supervisor.held import HeldResults
from sandboxd.supervisor.parts import Parts
from sandboxd.supervisor.sdnotify import Notifier
from sandboxd.supervisor.services.admin import AdminService
from sandboxd.supervisor.services.hardening import HardenedServer
from sandboxd.supervisor.services.health import HealthService
from sandboxd.supervisor.services.modules import ModuleService
from sandboxd.supervisor.services.sandbox import SandboxService
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.zygote_keeper import ZygoteKeeper
from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
)

log = logging.getLogger(__name__)

VERSION = importlib.metadata.version("sandboxd")
SERVICES = tuple(
    message.DESCRIPTOR.services_by_name[name].full_name
    for message, name in (
        (sandbox_pb2, "SandboxService"),
        (module_pb2, "ModuleService"),
        (admin_pb2, "AdminService"),
    )
)
# Their calls are waited for when the daemon stops; status and health answer to the end.
_GATED = frozenset({"sandboxd.v1.SandboxService", "sandboxd.v1.ModuleService"})


class Daemon:
    """One daemon. `run` returns when it was asked to stop and has stopped clean."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._fatal = ""
        self._as_root = os.geteuid() == 0
        self._started_at = self._loop.time()
        self._started_wall = Timestamp()
        self._started_wall.FromNanoseconds(time.time_ns())
        self._host = host.describe(self._as_root)
        self._gate = Gate()
        self._draining = False
        self._notifier = Notifier()
        self._health = HealthService()
        self._parts = Parts.of(settings)
        self._keeper = ZygoteKeeper(settings, self._as_root, self._parts, self._end)

    def request_stop(self) -> None:
        """Begin to stop; a second request ends the drain at once."""
        if self._stop.is_set():
            self._draining = False
        self._stop.set()

    def _end(self, reason: str) -> None:
        """Stop for a reason of our own, which is the error of `run`."""
        self._fatal = reason
        self.request_stop()

    # --- start and stop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until asked to stop. Raises `StartError`, of whatever kind."""
        privileges.hide_memory()
        try:
            self._use_state(self._parts.store.claim)
            self._keeper.exec_launcher(os.fstat(self._parts.store.directory_fd).st_uid)
            await self._keeper.start()
            self._warn()
            await self._serve()
            if self._fatal:
                raise StartError(self._fatal)
        finally:
            await self._keeper.close()
            self._notifier.close()

    def _warn(self) -> None:
        """Log what an operator should know before the first call."""
        if missing := [row.name for row in self._keeper.rows() if not row.active]:
            log.warning(
                "layers that are not active: %s; see `sandboxctl doctor`", ", ".join(missing)
            )
        for remark in configuration.remarks(self._settings):
            log.warning("%s", remark)

    async def _serve(self) -> None:
        settings = self._settings
        if self._as_root:
            # Before gRPC starts threads, which inherit it.
            privileges.forgo_privileges()
        server = aio.server(
            options=configuration.server_options(settings),
            # Beyond this, calls are refused by the transport before they cost anything here.
            maximum_concurrent_rpcs=settings.queue_capacity + settings.max_runners + 4096,
        )
        self._add_services(server)
        tls = configuration.tls(settings)
        bound = endpoints.bind(
            server, settings.listen, settings.socket_group, tls, settings.insecure_tcp
        )
        watchdog: asyncio.Task[None] | None = None
        try:
            # The interpreter may be installed where only root can read: import now what would be
            # imported at first use.
            await asyncio.to_thread(importlib.import_module, "concurrent.futures.thread")
            self._give_up_root()
            self._use_state(self._load_state)
            await server.start()
            await self._set_serving(True)
            log.info("sandboxd %s listens on %s", VERSION, ", ".join(bound))
            self._notifier.notify("READY=1", f"STATUS=serving on {', '.join(bound)}")
            watchdog = self._loop.create_task(self._keep_alive())
            await self._stop.wait()
            await self._drain(server)
        finally:
            if watchdog is not None:
                watchdog.cancel()
            await server.stop(0)
            endpoints.unlink(bound)

    def _use_state(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else "state"
            raise StartError(
                f"state directory: {where}: {error.strerror}; pass another --state-dir"
            ) from error

    def _load_state(self) -> None:
        """Read what is on disk: never as root, for a former daemon's user may have left it."""
        self._parts.store.load()
        self._parts.artifacts.open(self._parts.store.directory_fd, {os.geteuid()})

    def _give_up_root(self) -> None:
        """From here on nothing is root but the launcher and what it forks."""
        if not self._as_root:
            return
        assert self._keeper.uids is not None
        directory_fd = self._parts.store.directory_fd
        try:
            become = privileges.account(self._settings.user, self._keeper.uids.ids.start)
            state_directory.hand_over(directory_fd, self._settings.state_dir, become)
            privileges.give_up_root(become)
        except OSError as error:
            raise StartError(f"as root: {error}") from error
        self._host.supervisor_uid = os.geteuid()
        log.info("runs as user %d from here on", become.uid)

    async def _drain(self, server: aio.Server) -> None:
        log.info("stopping: running calls get %d ms", self._settings.drain)
        self._notifier.notify("STOPPING=1")
        self._draining = True
        await self._set_serving(False)
        self._gate.close()
        self._parts.pool.fail_waiters(shutting_down())
        deadline_at = self._loop.time() + self._settings.drain / 1000
        idle = asyncio.ensure_future(self._gate.wait_empty())
        while not idle.done() and self._draining and self._loop.time() < deadline_at:
            await asyncio.wait({idle}, timeout=0.1)
        if not idle.done():
            # Their processes go, and each one of them gets a typed answer.
            self._parts.executor.responder.stopping = True
            await self._parts.pool.close()
            await asyncio.wait({idle}, timeout=1.0)
        idle.cancel()
        await server.stop(0.5)

    async def _set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING
        if not serving:
            state = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            self._health.set(name, state)

    async def _keep_alive(self) -> None:
        """Tell systemd that the event loop turns."""
        interval_s = self._notifier.watchdog_interval_s
        while interval_s is not None:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _add_services(self, server: aio.Server) -> None:
        parts = self._parts
        wrapping = HardenedServer(server, parts.stats, self._gate, _GATED)
        settings = self._settings
        batches = BatchExecutor(
            parts.executor,
            self._gate,
            parts.stats,
            # One batch leaves half of the runners to everybody else.
            max(1, settings.max_runners // 2),
            HeldResults(settings.queue_bytes, settings.max_output),
        )
        SandboxService(parts.executor, batches).add_to(wrapping)
        hardened: aio.Server = wrapping  # type: ignore[assignment]
        module_pb2_grpc.add_ModuleServiceServicer_to_server(
            ModuleService(parts.store, parts.compiles, self._settings.push_time / 1000),
            hardened,
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.snapshot), hardened)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, hardened)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        # Not enable_server_reflection: it takes what is no aio.Server for a synchronous one.
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names), hardened
        )

    # --- status -----------------------------------------------------------------------------------

    def snapshot(self) -> admin_pb2.GetStatusResponse:
        """Describe the daemon as it is now."""
        now = self._loop.time()
        # Those not forked yet are counted, but have nothing to describe.
        runners = [runner for runner in self._parts.pool.runners if runner.child.pid]
        return admin_pb2.GetStatusResponse(
            version=VERSION,
            engine_version=self._keeper.engine_version,
            pid=os.getpid(),
            start_time=self._started_wall,
            uptime_ns=int((now - self._started_at) * 1e9),
            pool=status.describe_pool(self._parts.pool, self._keeper.starts),
            queue=status.describe_queue(self._parts.pool),
            outcomes=status.describe_answers(self._parts.stats),
            latency=status.describe_latency(self._parts.stats.latency),
            runners=[status.describe_runner(runner, now) for runner in runners],
            layers=status.describe_layers(self._keeper.rows(), self._keeper.required),
            modules=self._parts.store.count(),
            zygote_pid=self._keeper.pid,
            compiling=self._parts.compiles.working,
            isolation_profile=self._settings.isolation,
            host=self._host,
            artifacts=status.describe_artifacts(self._parts.compiles),
        )
