"""The supervisor's side of the zygote: start it, ask it for children, notice its death.

The zygote is forked by the launcher, speaks protobuf packets over a SOCK_SEQPACKET pair, and is the
only process that can reap children. When its control socket reads EOF it is gone, and in its PID
namespace the kernel has killed every child with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults
from sandboxd.supervisor.child import UNKNOWN_EXIT, Child, ExitStatus
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.keys import EngineIdentity
from sandboxd.supervisor.launcher import LaunchedZygote, Launcher, kill_unwatched
from sandboxd.supervisor.layers import LayerMissing, Layers
from sandboxd.supervisor.packets import PacketSocket, close_all
from sandboxd.wire.v1 import control_pb2

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
# Forking takes milliseconds. A zygote that has not forked for this long is stopped or broken.
SPAWN_TIMEOUT_S = 3.0
REAP_TIMEOUT_S = 5.0
# asm-generic/socket.h, since Linux 6.16: whether a unix socket takes descriptors.
SO_PASSRIGHTS = 83


class ZygoteFailed(StartError):  # noqa: N818 - a state of the world
    """The zygote could not be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """Resource limits of a child, taken in its lock-down; see `control.proto` for the units."""

    data_bytes: int
    cpu_seconds: int
    file_size_bytes: int
    shared_bytes: int
    processes: int


class Zygote:
    """One zygote process and its children. Ends once; `on_lost()` is called when it did.

    `uids` are the user ids that children take, one each; empty when not started as root.
    """

    def __init__(self, uids: Sequence[int], on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._free_uids = deque(uids)
        self._slots = bool(uids)
        self._children: dict[int, Child] = {}
        self._next_id = 1
        self._process: LaunchedZygote | None = None
        self._control = PacketSocket(self._dispatch, self._hung_up)
        self._ready: asyncio.Future[control_pb2.ZygoteReady] = self._loop.create_future()
        self.engine_version = ""
        self.engine = EngineIdentity("", "", "", "")
        self.layers = Layers((), ())

    @property
    def pid(self) -> int:
        """Process id of the zygote's outer process; 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """True from a successful `start` until it is lost or stopped."""
        return bool(self.engine_version) and self._control.is_open

    @property
    def _refuses_descriptors(self) -> bool:
        """Whether the kernel can keep a child from sending descriptors."""
        return self.layers.is_active("no-passed-descriptors")

    @property
    def has_slot(self) -> bool:
        """True if another child can be forked now."""
        return self.alive and (not self._slots or bool(self._free_uids))

    async def start(
        self,
        launcher: Launcher,
        namespaces: str,
        required: Sequence[str],
        cgroups: control_pb2.Cgroups,
    ) -> None:
        """Have it forked and wait until it is preloaded.

        Raises `ZygoteFailed`, also if it lacks a required layer, and `LauncherLost`.
        """
        with self._control.theirs as theirs:
            self._process = launcher.launch(theirs, namespaces, required, cgroups)
        try:
            ready = await asyncio.wait_for(asyncio.shield(self._ready), START_TIMEOUT_S)
        except TimeoutError:
            await self.stop()
            raise ZygoteFailed(f"the zygote was not ready within {START_TIMEOUT_S:.0f} s") from None
        except ZygoteFailed:
            status = await self.reap()
            self._kill()  # in case that it has hung up and does not end
            raise ZygoteFailed(
                f"the zygote ended with status {status}; standard error has its message"
            ) from None
        try:
            self.layers = Layers(ready.layers, required)
        except LayerMissing as missing:
            await self.stop()
            raise ZygoteFailed(str(missing)) from missing
        self.engine_version = ready.engine_version
        self.engine = EngineIdentity(
            ready.engine_version,
            ready.engine_library_sha256,
            ready.engine_fingerprint,
            ready.cpu_features_sha256,
        )

    # --- children -------------------------------------------------------------------------------

    def spawn(
        self,
        kind: control_pb2.ChildKind.ValueType,
        passed: Sequence[int],
        limits: ChildLimits,
        *,
        awaited: bool = False,
    ) -> Child:
        """Ask for a child and return it at once; `Child.forked` tells when it exists.

        `passed` are the descriptors after the socket (see SpawnRequest); they stay the caller's to
        close once this returns. `awaited`: a call waits for the child already. Raises
        `faults.ZygoteLost` if there is no zygote or no uid slot, and OSError, with nothing taken,
        if there are no descriptors left.
        """
        if not self.has_slot:
            raise faults.ZygoteLost("no process can be started now; retry", retry_after_s=0.5)
        ours, fds = _open_pair(passed, self._refuses_descriptors)
        # Nothing below fails: what was taken is given back when the child ends.
        uid = self._free_uids.popleft() if self._slots else 0
        child = Child(self._next_id, ours, uid)
        self._next_id += 1
        self._children[child.child_id] = child
        request = control_pb2.SpawnRequest(
            child_id=child.child_id,
            kind=kind,
            uid=uid,
            limits=control_pb2.ChildLimits(
                data_bytes=limits.data_bytes,
                cpu_seconds=limits.cpu_seconds,
                file_size_bytes=limits.file_size_bytes,
                shared_bytes=limits.shared_bytes,
                processes=limits.processes,
            ),
            awaited=awaited,
        )
        self._control.send(control_pb2.ZygoteCommand(spawn=request).SerializeToString(), fds)
        self._loop.call_later(SPAWN_TIMEOUT_S, self._check_forked, child)
        return child

    def _check_forked(self, child: Child) -> None:
        if self.alive and not child.forked.done():
            log.error("the zygote did not fork for %.0f s; replacing it", SPAWN_TIMEOUT_S)
            self._kill()

    # --- events ---------------------------------------------------------------------------------

    def _dispatch(self, packet: bytes, fds: list[int]) -> None:
        try:
            event = control_pb2.ZygoteEvent.FromString(packet)
        except DecodeError:
            log.error("the zygote sent a packet that is not an event; replacing it")
            close_all(fds)
            self._kill()
            return
        match event.WhichOneof("event"):
            case "ready" if not self._ready.done():
                self._ready.set_result(event.ready)
            case "spawned" if event.spawned.child_id in self._children and len(fds) == 1:
                _adopt(self._children[event.spawned.child_id], fds.pop())
            case "spawn_failed":
                log.error("a process could not be started: %s", event.spawn_failed.message)
                self._end(event.spawn_failed.child_id, UNKNOWN_EXIT)
            case "exited":
                exited = event.exited
                exit_status = ExitStatus(
                    exited.status,
                    exited.cpu_time_ns,
                    exited.peak_rss_bytes,
                    out_of_memory=exited.out_of_memory,
                )
                self._end(exited.child_id, exit_status)
        close_all(fds)

    def _end(self, child_id: int, exit_status: ExitStatus) -> None:
        child = self._children.pop(child_id, None)
        if child is None:
            return
        if self._slots:
            self._free_uids.append(child.uid)
        child.set_exit(exit_status)

    # --- its own end ----------------------------------------------------------------------------

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _hung_up(self) -> None:
        if self._ready.done():
            self._lost()
        else:
            # It refuses to start. Killed at once it would not tell with which status.
            self._fail()

    def _fail(self) -> None:
        self._ready.set_exception(ZygoteFailed("the zygote ended"))
        self._ready.exception()  # nobody may be waiting for it any more

    def _lost(self) -> None:
        """Clean up after the zygote's end: every child is dead or about to be."""
        self._kill()
        for child_id in list(self._children):
            # Without a PID namespace the parent-death signal does this; be sure in either case.
            self._children[child_id].kill()
            self._end(child_id, UNKNOWN_EXIT)
        if not self._ready.done():
            self._fail()
            return
        self._on_lost()

    async def stop(self) -> None:
        """Kill the zygote and, with it, all children; wait for its end. Idempotent."""
        self._on_lost = _nothing
        if self._control.is_open:
            self._control.close()
            self._control.theirs.close()
            self._lost()
        if self._process is not None:
            await self.reap()

    async def reap(self) -> int:
        """Wait for the end of a lost zygote and return its status."""
        assert self._process is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._process.exited), REAP_TIMEOUT_S)
        except TimeoutError:
            return -signal.SIGKILL


def _open_pair(passed: Sequence[int], refuse_descriptors: bool) -> tuple[socket.socket, list[int]]:
    """Return our end of a child's socket, and what goes to the child: its end and copies."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    fds = [theirs.detach()]
    try:
        ours.setblocking(False)
        if refuse_descriptors:
            _refuse_descriptors(ours)
        for fd in passed:
            fds.append(os.dup(fd))
    except OSError:
        ours.close()
        close_all(fds)
        raise
    return ours, fds


def _refuse_descriptors(ours: socket.socket) -> None:
    """Have the kernel refuse a descriptor that a child sends us. Raises OSError."""
    ours.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    if ours.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS) != 0:
        raise OSError(errno.ENOPROTOOPT, "SO_PASSRIGHTS does not read 0")


def _adopt(child: Child, pidfd: int) -> None:
    try:
        child.set_pidfd(pidfd)
    except OSError as error:
        # It could be neither measured nor watched. The zygote tells of its end.
        log.error("a process cannot be looked after and is killed: %s", error.strerror)
        kill_unwatched(pidfd)


def _nothing() -> None:
    pass
