"""The daemon: builds the parts, keeps a zygote alive, serves, drains."""

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
    isolation,
    privileges,
    state_directory,
    status,
    uid_range,
)
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.artifacts import ArtifactCache
from sandboxd.supervisor.batch_execution import BatchExecutor
from sandboxd.supervisor.compilation import CompileService
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.gate import Gate, shutting_down
from sandboxd.supervisor.launcher import Launcher, LauncherLost
from sandboxd.supervisor.layers import no_rows
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.sdnotify import Notifier
from sandboxd.supervisor.services.admin import AdminService
from sandboxd.supervisor.services.hardening import HardenedServer
from sandboxd.supervisor.services.health import HealthService
from sandboxd.supervisor.services.modules import ModuleService
from sandboxd.supervisor.services.sandbox import SandboxService
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.uid_range import UidRange
from sandboxd.supervisor.zygote import Zygote, ZygoteFailed
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
FIRST_RUNNER_TIMEOUT_S = 20.0
ZYGOTE_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)


class Daemon:
    """One daemon. `run` returns when it was asked to stop and has stopped clean."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._fatal = ""
        self._as_root = os.geteuid() == 0
        self._slots = configuration.children_at_once(settings)
        self._uids: UidRange | None = None
        self._started_at = self._loop.time()
        self._started_wall = Timestamp()
        self._started_wall.FromNanoseconds(time.time_ns())
        self._stats = Stats()
        self._launcher: Launcher
        self._required = isolation.required_layers(
            settings.isolation,
            settings.require_layer,
            settings.namespaces,
            settings.cgroups,
            self._as_root,
        )
        self._host = host.describe(self._as_root)
        self._gate = Gate()
        self._zygote: Zygote | None = None
        self._zygote_starts = 0
        self._replacing: asyncio.Task[None] | None = None
        self._draining = False
        self._engine_version = ""
        self._notifier = Notifier()
        self._health = HealthService()
        descriptors = configuration.raise_descriptor_limit()
        self._store = configuration.store(settings)
        self._cache = ArtifactCache(settings.artifact_cache, descriptors // 4)
        self._artifacts = ArtifactStore(
            settings.artifact_disk,
            settings.max_artifact,
            is_stored=lambda tenant, digest: self._store.get(tenant, digest) is not None,
        )
        self._compiles = CompileService(
            configuration.compile_config(settings), self._cache, self._artifacts
        )
        self._pool = Pool(configuration.pool_config(settings))
        self._executor = Executor(
            self._pool,
            self._compiles,
            self._store,
            configuration.limit_policy(settings),
            self._stats,
            settings.grace / 1000,
            settings.queue_bytes,
        )

    def request_stop(self) -> None:
        """Begin to stop; a second request ends the drain at once."""
        if self._stop.is_set():
            self._draining = False
        self._stop.set()

    # --- start and stop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until asked to stop. Raises `StartError`, of whatever kind."""
        privileges.hide_memory()
        self._launcher = Launcher()
        try:
            self._use_state(self._store.claim)
            # Exec'd first of all: while this process is small, has one thread, and may be root.
            self._launcher.start()
            if self._as_root:
                # The first one may be the daemon's own.
                self._uids = uid_range.take(
                    self._settings.uid_base,
                    1 + self._slots,
                    before=os.fstat(self._store.directory_fd).st_uid,
                )
            await self._start_zygote()
            await self._first_runner()
            await self._serve()
            if self._fatal:
                raise StartError(self._fatal)
        finally:
            if self._replacing is not None:
                self._replacing.cancel()
            await self._pool.close()
            await self._executor.close()
            if self._zygote is not None:
                await self._zygote.stop()
            await self._launcher.stop()
            await self._compiles.close()
            self._cache.clear()
            self._artifacts.close()
            self._store.close()
            self._notifier.close()
            if self._uids is not None:
                self._uids.close()

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
            if settings.insecure_tcp:
                log.warning("TCP without TLS: every user of this machine can run guests")
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
        self._store.load()
        self._artifacts.open(self._store.directory_fd, {os.geteuid()})

    def _give_up_root(self) -> None:
        """From here on nothing is root but the launcher and what it forks."""
        if not self._as_root:
            return
        assert self._uids is not None
        try:
            become = privileges.account(self._settings.user, self._uids.ids.start)
            state_directory.hand_over(self._store.directory_fd, self._settings.state_dir, become)
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
        self._pool.fail_waiters(shutting_down())
        deadline_at = self._loop.time() + self._settings.drain / 1000
        idle = asyncio.ensure_future(self._gate.wait_empty())
        while not idle.done() and self._draining and self._loop.time() < deadline_at:
            await asyncio.wait({idle}, timeout=0.1)
        if not idle.done():
            # Their processes go, and each one of them gets a typed answer.
            self._executor.responder.stopping = True
            await self._pool.close()
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
        wrapping = HardenedServer(server, self._stats, self._gate, _GATED)
        batches = BatchExecutor(self._executor, self._gate, self._stats, self._settings.max_runners)
        SandboxService(self._executor, batches).add_to(wrapping)
        hardened: aio.Server = wrapping  # type: ignore[assignment]
        module_pb2_grpc.add_ModuleServiceServicer_to_server(
            ModuleService(self._store, self._compiles, self._settings.push_time / 1000), hardened
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.snapshot), hardened)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, hardened)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        # Not enable_server_reflection: it takes what is no aio.Server for a synchronous one.
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names), hardened
        )

    # --- the zygote ------------------------------------------------------------------------------

    async def _start_zygote(self) -> None:
        settings = self._settings
        uids = self._uids.ids[1:] if self._uids is not None else ()
        zygote = Zygote(uids, self._on_zygote_lost)
        try:
            await zygote.start(
                self._launcher,
                settings.namespaces,
                self._required,
                configuration.cgroups(settings, self._slots),
            )
        except BaseException:
            await zygote.stop()
            raise
        self._zygote_starts += 1
        self._zygote = zygote
        self._engine_version = zygote.engine_version
        self._executor.layers = zygote.layers
        self._executor.responder.describe_daemon(zygote.engine_version, self._settings.isolation)
        self._compiles.use_zygote(zygote, self._processes(zygote))
        self._pool.use_zygote(zygote, self._processes(zygote))

    def _processes(self, zygote: Zygote) -> int:
        """RLIMIT_NPROC of a child: it counts per user, so it depends on who shares the user."""
        if self._as_root:
            return configuration.RUNNER_THREADS  # every child has a user of its own
        if zygote.layers.is_active("namespaces"):
            # All share one user, but one that counts only within their namespace.
            return configuration.RUNNER_THREADS * self._slots
        return 0  # the user's other processes count, too: no number is right

    async def _first_runner(self) -> None:
        """Prove before READY that a process can be locked down here: fail closed, and say why."""
        try:
            async with asyncio.timeout(FIRST_RUNNER_TIMEOUT_S):
                breach = await self._pool.prove()
        except TimeoutError:
            breach = f"no answer within {FIRST_RUNNER_TIMEOUT_S:.0f} s"
        if breach:
            raise StartError(f"no runner can be started: {breach}")
        assert self._zygote is not None
        if missing := [row.name for row in self._zygote.layers.rows() if not row.active]:
            log.warning(
                "layers that are not active: %s; see `sandboxctl doctor`", ", ".join(missing)
            )

    def _on_zygote_lost(self) -> None:
        log.error("the zygote is gone and all runners with it; starting another")
        self._pool.use_zygote(None, 0)
        self._compiles.use_zygote(None, 0)
        self._executor.layers = None
        self._replacing = self._loop.create_task(self._replace_zygote())

    async def _replace_zygote(self) -> None:
        lost, self._zygote = self._zygote, None
        if lost is not None:
            await lost.reap()
        attempt = 0
        while True:
            await asyncio.sleep(ZYGOTE_PAUSES_S[min(attempt, len(ZYGOTE_PAUSES_S) - 1)])
            try:
                await self._ensure_launcher()
                await self._start_zygote()
            except LauncherLost:
                self._fatal = "the launcher is gone, and with root given up there is no other"
                self.request_stop()
                return
            except (ZygoteFailed, OSError) as error:
                log.error("the zygote cannot be started, trying again: %s", error)
                attempt += 1
            else:
                log.info("another zygote was started")
                return

    async def _ensure_launcher(self) -> None:
        if self._launcher.alive:
            return
        await self._launcher.stop()
        if self._as_root:
            raise LauncherLost
        self._launcher = Launcher()
        self._launcher.start()

    # --- status -----------------------------------------------------------------------------------

    def snapshot(self) -> admin_pb2.GetStatusResponse:
        """Describe the daemon as it is now."""
        now = self._loop.time()
        # Those not forked yet are counted, but have nothing to describe.
        runners = [runner for runner in self._pool.runners if runner.child.pid]
        layers = self._zygote.layers.rows() if self._zygote is not None else no_rows()
        return admin_pb2.GetStatusResponse(
            version=VERSION,
            engine_version=self._engine_version,
            pid=os.getpid(),
            start_time=self._started_wall,
            uptime_ns=int((now - self._started_at) * 1e9),
            pool=status.describe_pool(self._pool, self._zygote_starts),
            queue=status.describe_queue(self._pool),
            outcomes=status.describe_answers(self._stats),
            latency=status.describe_latency(self._stats.latency),
            runners=[status.describe_runner(runner, now) for runner in runners],
            layers=status.describe_layers(layers, self._required),
            modules=self._store.count(),
            zygote_pid=self._zygote.pid if self._zygote is not None else 0,
            compiling=self._compiles.working,
            isolation_profile=self._settings.isolation,
            host=self._host,
            artifacts=status.describe_artifacts(self._compiles),
        )
