"""Keeps a zygote alive: the first one is proven by a runner, a lost one is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sandboxd.supervisor import configuration, isolation, uid_range
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.launcher import Launcher, LauncherLost
from sandboxd.supervisor.layers import no_rows
from sandboxd.supervisor.parts import Parts
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.uid_range import UidRange
from sandboxd.supervisor.zygote import Zygote, ZygoteFailed
from sandboxd.wire.v1 import control_pb2

log = logging.getLogger(__name__)

FIRST_RUNNER_TIMEOUT_S = 20.0
ZYGOTE_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)


class ZygoteKeeper:
    """Launcher, zygote and the children's user ids of one daemon; its parts fork from the zygote.

    `on_fatal(reason)` is called when there can be no zygote any more.
    """

    def __init__(
        self, settings: Settings, as_root: bool, parts: Parts, on_fatal: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._as_root = as_root
        self._parts = parts
        self._on_fatal = on_fatal
        self._slots = configuration.children_at_once(settings)
        self.required = isolation.required_layers(
            settings.isolation,
            settings.require_layer,
            settings.namespaces,
            settings.cgroups,
            as_root,
        )
        """Names of the layers that must hold."""
        self.uids: UidRange | None = None
        """As root: the range that is the daemon's own; the first one may be the daemon's."""
        self.starts = 0
        self.engine_version = ""
        self._launcher: Launcher | None = None
        self._zygote: Zygote | None = None
        self._replacing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id of the zygote's outer process; 0 when there is none."""
        return self._zygote.pid if self._zygote is not None else 0

    def rows(self) -> list[control_pb2.IsolationLayer]:
        """Every layer, as the zygote of now and its children told."""
        return self._zygote.layers.rows() if self._zygote is not None else no_rows()

    def exec_launcher(self, former_owner: int | None) -> None:
        """Exec the launcher, and as root take user ids; `former_owner` is the state directory's.

        To be called first of all: while this process is small, has one thread, and may be root.
        Raises `StartError`.
        """
        self._launcher = Launcher()
        self._launcher.start()
        if self._as_root:
            self.uids = uid_range.take(
                self._settings.uid_base, 1 + self._slots, before=former_owner
            )

    async def start(self) -> None:
        """Have the first zygote started, and a runner by it. Raises `StartError`."""
        await self._start_zygote()
        await self._first_runner()

    async def _start_zygote(self) -> None:
        assert self._launcher is not None
        settings = self._settings
        zygote = Zygote(self.uids.ids[1:] if self.uids is not None else (), self._on_zygote_lost)
        try:
            await zygote.start(
                self._launcher,
                settings.namespaces,
                self.required,
                configuration.cgroups(settings, self._slots),
            )
        except BaseException:
            await zygote.stop()
            raise
        self.starts += 1
        self._zygote = zygote
        self.engine_version = zygote.engine_version
        parts = self._parts
        parts.executor.layers = zygote.layers
        parts.executor.responder.describe_daemon(zygote.engine_version, settings.isolation)
        parts.compiles.use_zygote(zygote, self._processes(zygote))
        parts.pool.use_zygote(zygote, self._processes(zygote))

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
                breach = await self._parts.pool.prove()
        except TimeoutError:
            breach = f"no answer within {FIRST_RUNNER_TIMEOUT_S:.0f} s"
        if breach:
            raise StartError(f"no runner can be started: {breach}")

    # --- replacing it -----------------------------------------------------------------------------

    def _on_zygote_lost(self) -> None:
        log.error("the zygote is gone and all runners with it; starting another")
        self._parts.pool.use_zygote(None, 0)
        self._parts.compiles.use_zygote(None, 0)
        self._parts.executor.layers = None
        self._replacing = asyncio.get_running_loop().create_task(self._replace_zygote())

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
                self._on_fatal("the launcher is gone, and with root given up there is no other")
                return
            except (ZygoteFailed, OSError) as error:
                log.error("the zygote cannot be started, trying again: %s", error)
                attempt += 1
            else:
                log.info("another zygote was started")
                return

    async def _ensure_launcher(self) -> None:
        assert self._launcher is not None
        if self._launcher.alive:
            return
        await self._launcher.stop()
        if self._as_root:
            raise LauncherLost
        self._launcher = Launcher()
        self._launcher.start()

    # --- the end ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all processes and close the parts; idempotent."""
        parts = self._parts
        if self._replacing is not None:
            self._replacing.cancel()
        await parts.pool.close()
        await parts.executor.close()
        if self._zygote is not None:
            await self._zygote.stop()
        if self._launcher is not None:
            await self._launcher.stop()
        await parts.compiles.close()
        parts.cache.clear()
        parts.artifacts.close()
        parts.store.close()
        # Last: until then no other daemon takes them.
        if self.uids is not None:
            self.uids.close()
