"""The daemon: builds the parts, keeps a zygote alive, serves, drains."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from sandboxd.supervisor import endpoints, host, isolation, privileges, uid_range
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.artifacts import ArtifactCache
from sandboxd.supervisor.compilation import CompileConfig, CompileService
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.gate import Gate, shutting_down
from sandboxd.supervisor.launcher import Launcher, LauncherLost
from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.outbox import LOG_OVERHEAD_BYTES
from sandboxd.supervisor.pool import Pool, PoolConfig
from sandboxd.supervisor.sdnotify import Notifier
from sandboxd.supervisor.services.admin import AdminService, count_states, describe_runner
from sandboxd.supervisor.services.hardening import HardenedServer
from sandboxd.supervisor.services.modules import ModuleService
from sandboxd.supervisor.services.sandbox import SandboxService
from sandboxd.supervisor.settings import MIB, Settings
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.uid_range import UidRange, UidRangeUnavailable
from sandboxd.supervisor.zygote import ChildLimits, Zygote, ZygoteFailed
from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    module_pb2,
    module_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)
from sandboxd.wire.v1 import control_pb2

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
# What the interpreter and the engine need beside a guest's memory.
RUNNER_OVERHEAD_BYTES = 192 * MIB
# Threads of one runner: main, interrupt, and those that WASI input and output start.
RUNNER_THREADS = 16
FIRST_RUNNER_TIMEOUT_S = 20.0
ZYGOTE_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do."""


class Daemon:
    """One daemon. `run` returns when it was asked to stop and has stopped clean."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._fatal = ""
        self._as_root = os.geteuid() == 0
        # Runners and compilers at once, those that are dying included.
        self._slots = 2 * settings.max_runners + settings.compilers + 8
        self._uids: UidRange | None = None
        self._started_at = self._loop.time()
        self._started_wall = Timestamp()
        self._started_wall.FromNanoseconds(time.time_ns())
        self._stats = Stats()
        self._launcher: Launcher
        self._required = isolation.required_layers(
            settings.isolation, settings.require_layer, settings.namespaces, settings.cgroups
        )
        self._host = host.describe(self._as_root)
        self._gate = Gate()
        self._zygote: Zygote | None = None
        self._zygote_starts = 0
        self._replacing: asyncio.Task[None] | None = None
        self._layers: dict[str, control_pb2.IsolationLayer] = {}
        self._draining = False
        self._notifier = Notifier()
        self._health = health.aio.HealthServicer()
        descriptors = _raise_descriptor_limit()
        self._store = Store(settings.state_dir, settings.max_module)
        self._cache = ArtifactCache(settings.artifact_cache, descriptors // 4)
        self._artifacts = ArtifactStore(
            settings.artifact_disk,
            settings.max_artifact,
            is_stored=lambda tenant, digest: self._store.get(tenant, digest) is not None,
        )
        self._compiles = CompileService(_compile_config(settings), self._cache, self._artifacts)
        self._pool = Pool(_pool_config(settings))
        self._pool.on_layers = self._note_layers
        self._executor = Executor(
            self._pool,
            self._compiles,
            self._store,
            _policy(settings),
            self._stats,
            settings.grace / 1000,
        )

    def request_stop(self) -> None:
        """Begin to stop; a second request ends the drain at once."""
        if self._stop.is_set():
            self._draining = False
        self._stop.set()

    # --- start and stop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until asked to stop.

        Raises `StartError`, `EndpointError` or `StateDirectoryUnusable`.
        """
        try:
            self._store.open()
        except OSError as error:
            raise StartError(
                f"state directory: {error.filename}: {error.strerror}; pass another --state-dir"
            ) from error
        self._launcher = Launcher()
        try:
            # Exec'd first of all: while this process is small, has one thread, and may be root.
            self._launcher.start()
            if self._as_root:
                # The first one may be the daemon's own.
                self._uids = uid_range.take(self._settings.uid_base, 1 + self._slots)
            await self._start_zygote()
            await self._first_runner()
            await self._serve()
            if self._fatal:
                raise StartError(self._fatal)
        except UidRangeUnavailable as error:
            raise StartError(str(error)) from error
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
        server = aio.server(
            options=_server_options(settings),
            # Beyond this, calls are refused by the transport before they cost anything here.
            maximum_concurrent_rpcs=settings.queue_capacity + settings.max_runners + 4096,
        )
        self._add_services(server)
        tls = _tls(settings)
        bound = endpoints.bind(
            server, settings.listen, settings.socket_group, tls, settings.insecure_tcp
        )
        if settings.insecure_tcp:
            log.warning("TCP without TLS: every user of this machine can run guests")
        # The interpreter may be installed where only root can read: import now what would be
        # imported at first use.
        await asyncio.to_thread(importlib.import_module, "concurrent.futures.thread")
        self._open_artifacts()
        self._give_up_root()
        await server.start()
        await self._set_serving(True)
        log.info("sandboxd %s listens on %s", VERSION, ", ".join(bound))
        self._notifier.notify("READY=1", f"STATUS=serving on {', '.join(bound)}")
        watchdog = self._loop.create_task(self._keep_alive())
        try:
            await self._stop.wait()
            await self._drain(server)
        finally:
            watchdog.cancel()
            await server.stop(0)
            endpoints.unlink(bound)

    def _open_artifacts(self) -> None:
        """Before the state directory is handed over: afterwards, who owned what cannot be told."""
        owners = {os.geteuid()}
        try:
            if self._as_root:
                owners.add(self._account().uid)
            self._artifacts.open(self._store.directory_fd, owners)
        except (privileges.PrivilegeError, OSError) as error:
            raise StartError(f"artifacts: {error}") from error

    def _account(self) -> privileges.Account:
        """Who the daemon becomes when started as root. Raises `PrivilegeError`."""
        assert self._uids is not None
        return privileges.account(self._settings.user, self._uids.ids.start)

    def _give_up_root(self) -> None:
        """From here on nothing is root but the launcher and what it forks."""
        if not self._as_root:
            return
        try:
            become = self._account()
            privileges.hand_over(self._settings.state_dir, become)
            privileges.give_up_root(become)
        except (privileges.PrivilegeError, OSError) as error:
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
            self._executor.stopping = True
            await self._pool.close()
            await asyncio.wait({idle}, timeout=1.0)
        idle.cancel()
        await server.stop(0.5)

    async def _set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING
        if not serving:
            state = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, state)

    async def _keep_alive(self) -> None:
        """Tell systemd that the event loop turns."""
        interval_s = self._notifier.watchdog_interval_s
        while interval_s is not None:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _add_services(self, server: aio.Server) -> None:
        hardened: aio.Server = HardenedServer(  # type: ignore[assignment]
            server, self._stats, self._gate, _GATED
        )
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(
            SandboxService(self._executor), hardened
        )
        module_pb2_grpc.add_ModuleServiceServicer_to_server(
            ModuleService(self._store, self._compiles), hardened
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
                self._launcher, settings.namespaces, self._required, _cgroups(settings, self._slots)
            )
        except BaseException:
            await zygote.stop()
            raise
        self._zygote_starts += 1
        self._zygote = zygote
        self._layers.update((layer.name, layer) for layer in zygote.layers)
        self._executor.engine_version = zygote.engine_version
        self._executor.isolation_profile = self._settings.isolation
        self._tell_layers()
        self._compiles.use_zygote(zygote, self._processes(zygote))
        self._pool.use_zygote(zygote, self._processes(zygote))

    def _processes(self, zygote: Zygote) -> int:
        """RLIMIT_NPROC of a child: it counts per user, so it depends on who shares the user."""
        if self._as_root:
            return RUNNER_THREADS  # every child has a user of its own
        if any(layer.name == "namespaces" and layer.active for layer in zygote.layers):
            # All share one user, but one that counts only within their namespace.
            return RUNNER_THREADS * self._slots
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

    def _on_zygote_lost(self) -> None:
        log.error("the zygote is gone and all runners with it; starting another")
        self._pool.use_zygote(None, 0)
        self._compiles.use_zygote(None, 0)
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

    def _note_layers(self, layers: Iterable[control_pb2.IsolationLayer]) -> None:
        for layer in layers:
            if layer.name not in isolation.LAYERS:
                continue
            known = self._layers.get(layer.name)
            # One process where a layer does not hold is enough to say that it does not.
            if known is None or known.active:
                self._layers[layer.name] = layer
        self._tell_layers()

    def _tell_layers(self) -> None:
        self._executor.active_layers = tuple(
            layer.name for layer in self._layers.values() if layer.active
        )

    # --- status -----------------------------------------------------------------------------------

    def snapshot(self) -> admin_pb2.GetStatusResponse:
        """Describe the daemon as it is now."""
        now = self._loop.time()
        runners = self._pool.runners
        latency = self._stats.latency
        status = admin_pb2.GetStatusResponse(
            version=VERSION,
            engine_version=self._executor.engine_version,
            pid=os.getpid(),
            start_time=self._started_wall,
            uptime_ns=int((now - self._started_at) * 1e9),
            pool=self._pool_status(count_states(runners)),
            queue=admin_pb2.QueueStatus(
                depth=self._pool.queue_depth,
                capacity=self._settings.queue_capacity,
                refused_total=self._pool.refused_total,
            ),
            latency=admin_pb2.LatencyQuantiles(
                count=latency.count,
                p50_ns=latency.quantile(0.5),
                p90_ns=latency.quantile(0.9),
                p99_ns=latency.quantile(0.99),
                max_ns=latency.max_ns,
            ),
            # Those not forked yet are counted, but have nothing to describe.
            runners=[describe_runner(runner, now) for runner in runners if runner.child.pid],
            layers=[
                admin_pb2.Layer(
                    name=layer.name,
                    active=layer.active,
                    detail=for_people(layer.detail, 256),
                    required=layer.name in self._required,
                    remedy=layer.remedy,
                    reason=layer.reason,
                )
                for layer in self._layers.values()
            ],
            isolation_profile=self._settings.isolation,
            host=self._host,
            modules=self._store.count(),
            zygote_pid=self._zygote.pid if self._zygote is not None else 0,
            compiling=self._compiles.working,
            artifacts=self._artifact_status(),
        )
        for counts, fault in ((self._stats.outcomes, False), (self._stats.faults, True)):
            for name, count in sorted(counts.items()):
                status.outcomes.add(name=name, count=count, fault=fault)
        return status

    def _artifact_status(self) -> admin_pb2.ArtifactStatus:
        return admin_pb2.ArtifactStatus(
            cached=len(self._cache),
            cache_bytes=self._cache.size_bytes,
            loaded_total=self._artifacts.loaded_total,
            compiled_total=self._compiles.compiled_total,
            rejected_total=self._artifacts.rejected_total,
            stored=len(self._artifacts),
            stored_bytes=self._artifacts.stored_bytes,
        )

    def _pool_status(self, states: Counter[State]) -> admin_pb2.PoolStatus:
        return admin_pb2.PoolStatus(
            starting=states[State.STARTING],
            spare=states[State.SPARE],
            bound=states[State.IDLE],
            busy=states[State.BINDING] + states[State.BUSY] + states[State.STOPPING],
            dying=states[State.DYING],
            capacity=self._settings.max_runners,
            started_total=self._pool.started_total,
            ended_total=self._pool.ended_total,
            zygote_starts_total=self._zygote_starts,
        )


def _raise_descriptor_limit() -> int:
    """Allow as many descriptors as the hard limit does, and return how many that is.

    Connections and compiled modules hold one each, runners five; the soft limit of 1,024 that is
    usual is for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# --- from settings to the parts' configurations ---------------------------------------------------


def _server_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message),
        # Answers are bounded by the output limit; this leaves room for what is beside it.
        ("grpc.max_send_message_length", settings.max_output + 16 * MIB),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        # Per connection. Without it, a stream-reset flood costs a core (measured); a client with
        # more calls than this waits, or opens another connection.
        ("grpc.max_concurrent_streams", 256),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", 15 * 60_000),
        # A second daemon on the same port must fail, not share it.
        ("grpc.so_reuseport", 0),
    ]


def _tls(settings: Settings) -> endpoints.Tls | None:
    given = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if not any(given):
        return None
    if not all(given):
        raise StartError("TLS needs all of --tls-cert, --tls-key and --tls-client-ca")
    return endpoints.Tls(*given)


def _policy(settings: Settings) -> LimitPolicy:
    for name in ("wall_time", "cpu_time", "memory", "table_elements", "output"):
        if getattr(settings, f"default_{name}") > getattr(settings, f"max_{name}"):
            flag = name.replace("_", "-")
            raise StartError(f"--default-{flag} is above --max-{flag}; raise or lower one of them")
    default = CallLimits(
        settings.default_wall_time,
        settings.default_cpu_time,
        settings.default_memory,
        settings.default_table_elements,
        settings.default_output,
    )
    maximum = CallLimits(
        settings.max_wall_time,
        settings.max_cpu_time,
        settings.max_memory,
        settings.max_table_elements,
        settings.max_output,
    )
    return LimitPolicy(default, maximum)


def _cgroups(settings: Settings, slots: int) -> control_pb2.Cgroups:
    return control_pb2.Cgroups(
        mode=settings.cgroups,
        slots=slots,
        threads=RUNNER_THREADS,
        cpu_percent=settings.runner_cpu_percent,
    )


def _pool_config(settings: Settings) -> PoolConfig:
    lifetime_s = (settings.runner_max_age + settings.max_cpu_time) / 1000
    return PoolConfig(
        capacity=settings.max_runners,
        spares=min(settings.spare_runners, settings.max_runners),
        queue_capacity=settings.queue_capacity,
        max_executions=settings.runner_max_executions,
        max_age_s=settings.runner_max_age / 1000,
        idle_timeout_s=settings.runner_idle_timeout / 1000,
        max_output_bytes=settings.max_output,
        limits=ChildLimits(
            data_bytes=settings.max_memory + settings.max_artifact + RUNNER_OVERHEAD_BYTES,
            # A backstop only: the supervisor's clock is the limit. It must never fire first.
            cpu_seconds=int(lifetime_s * RUNNER_THREADS) + 60,
            # The engine's copy-on-write image of initial memory is a memory file.
            file_size_bytes=max(
                settings.max_memory, 4 * (settings.max_output + LOG_OVERHEAD_BYTES) + 64 * 1024
            ),
            processes=0,
        ),
    )


def _compile_config(settings: Settings) -> CompileConfig:
    return CompileConfig(
        concurrency=settings.compilers,
        queue_capacity=settings.compile_queue,
        wall_time_s=settings.compile_wall_time / 1000,
        max_artifact_bytes=settings.max_artifact,
        limits=ChildLimits(
            data_bytes=settings.compile_memory,
            cpu_seconds=max(1, settings.compile_cpu_time // 1000),
            file_size_bytes=settings.max_artifact,
            processes=0,
        ),
    )
