"""The zygote: theory of operation.

Process 1 of the PID namespace (see launcher.py). It preloads the engine, enters the empty root,
gives up the capabilities that forking does not need, tells the supervisor that it is ready, and
forks children on command. When it dies, for whatever reason, the kernel kills every process of its
namespace.

It stays single-threaded (checked before every fork), never compiles, never does WASI input or
output, and never sees a tenant's byte; the one module that it runs is a constant (rehearsal.py). It
is the only one that can reap: it reports every exit with status and usage. Where the host allows no
namespaces, children are tied to it by the parent-death signal instead.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from sandboxd.runner import children, engine, engine_identity, preload, rehearsal
from sandboxd.runner.isolation import catalogue, credentials, ipc, libffi, memfd, namespaces
from sandboxd.runner.isolation.layers import (
    EMPTY_ROOT,
    MEMFD_NOEXEC,
    NO_IPC,
    IsolationError,
    LayerState,
    NotInForceError,
    errors_of,
    refuse,
    refused,
)
from sandboxd.runner.isolation.lockdown import LAYERS, ChildPolicy, Plan, Planner
from sandboxd.runner.isolation.slots import Slot, Slots
from sandboxd.runner.reaper import Switchboard, forget_signals
from sandboxd.wire.v1 import control_pb2

# RLIMIT_NPROC for "no limit of ours"; the hard limit of the host still holds.
_UNLIMITED_PROCESSES = 1 << 22
EXIT_BROKEN = 5


class Zygote:
    """The inner process. Raises IsolationError, which names all required layers that do not hold.

    `layer` is the state of the namespaces; `slots` are the children's cgroups, or why there are
    none; `missing` is what is known not to hold already.
    """

    def __init__(
        self,
        control_fd: int,
        layer: LayerState,
        required: frozenset[str],
        slots: Slots | str,
        missing: Sequence[IsolationError] = (),
    ) -> None:
        children.name_process("sbx-zygote")
        self._required = required
        self._own_pid = os.getpid()
        self._pids: dict[int, int] = {}
        self._slots = slots
        self._taken: dict[int, Slot] = {}
        preload.preload()
        self._engines = engine.build_engines()
        identity = engine_identity.engine_identity()
        # Before /proc is out of reach.
        self._code_pages = libffi.find_writable_code()
        self._tasks_fd = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._script = rehearsal.compile_script(self._engines)
        rehearsal.warm_up(self._engines, self._script)
        layers = _hold(layer, required, missing)
        self._planner = Planner()
        self._switchboard = Switchboard(control_fd)
        preload.settle()
        ready = control_pb2.ZygoteReady(
            engine_version=identity.version,
            engine_library_sha256=identity.library_sha256,
            engine_fingerprint=identity.fingerprint,
            cpu_features_sha256=identity.cpu_features_sha256,
            layers=children.layer_messages(tuple(layers)),
        )
        self._send(control_pb2.ZygoteEvent(ready=ready))

    def run(self) -> NoReturn:
        """Serve until the supervisor hangs up."""
        for event in self._switchboard.events():
            if len(event) == 3:
                self._report(*event)
            else:
                self._command(*event)
        os._exit(0)

    def _command(self, packet: bytes, fds: list[int]) -> None:
        request = control_pb2.ZygoteCommand.FromString(packet).spawn
        try:
            self._spawn(request, fds)
        except OSError as error:
            failed = control_pb2.SpawnFailed(child_id=request.child_id, message=str(error))
            self._send(control_pb2.ZygoteEvent(spawn_failed=failed))
        finally:
            for fd in fds:
                os.close(fd)

    def _spawn(self, request: control_pb2.SpawnRequest, fds: list[int]) -> None:
        tasks = os.listdir(self._tasks_fd)
        if len(tasks) != 1:
            # A fork would copy locks that other threads hold. Never: end, and be replaced.
            print(f"sandboxd zygote: {len(tasks)} threads", file=sys.stderr, flush=True)
            os._exit(EXIT_BROKEN)
        cgroup = self._take_slot(request.limits)
        policy = self._policy(request, fds, cgroup)
        # Whatever can be worked out here costs the child nothing.
        plan = self._planner.plan(policy)
        pid = self._fork(request, fds, cgroup, policy, plan)
        try:
            self._announce(pid, request.child_id)
        except OSError:
            # The supervisor will take it for never born and give its user id to another one.
            self._take_back(pid)
            raise

    def _fork(
        self,
        request: control_pb2.SpawnRequest,
        fds: list[int],
        cgroup: Slot | str,
        policy: ChildPolicy,
        plan: Plan,
    ) -> int:
        try:
            pid = os.fork()
        except OSError:
            if isinstance(cgroup, Slot):
                self._give_back(cgroup, 0)
            raise
        if pid == 0:
            forget_signals()
            script = b"" if request.awaited else self._script
            children.run_child(
                request.kind, policy, plan, self._required, fds, self._engines, script
            )
        self._pids[pid] = request.child_id
        if isinstance(cgroup, Slot):
            self._taken[pid] = cgroup
        return pid

    def _announce(self, pid: int, child_id: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            spawned = control_pb2.Spawned(child_id=child_id)
            self._send(control_pb2.ZygoteEvent(spawned=spawned), pidfd)
        finally:
            os.close(pidfd)

    def _take_back(self, pid: int) -> None:
        """Kill and reap a child that nobody was told of."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        del self._pids[pid]
        cgroup = self._taken.pop(pid, None)
        if cgroup is not None:
            self._give_back(cgroup, 0)

    def _take_slot(self, limits: control_pb2.ChildLimits) -> Slot | str:
        if isinstance(self._slots, str):
            return self._slots
        return self._slots.take(limits.data_bytes + limits.shared_bytes)

    def _policy(
        self, request: control_pb2.SpawnRequest, fds: list[int], cgroup: Slot | str
    ) -> ChildPolicy:
        compiles = request.kind == control_pb2.CHILD_KIND_COMPILER
        limits = request.limits
        return ChildPolicy(
            profile="compiler" if compiles else "runner",
            keep_fds=frozenset(fds if compiles else ()),
            # The outbox is mapped before the lock-down and needs no descriptor after it.
            moved_fds=() if compiles else tuple(fds[:2]),
            uid=request.uid,
            data_bytes=limits.data_bytes,
            cpu_seconds=limits.cpu_seconds,
            file_size_bytes=limits.file_size_bytes,
            processes=limits.processes or _UNLIMITED_PROCESSES,
            parent_pid=self._own_pid,
            required=self._required & LAYERS,
            writable_code=self._code_pages,
            cgroup=cgroup,
        )

    def _report(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        child_id = self._pids.pop(pid, None)
        if child_id is None:
            return
        code = os.waitstatus_to_exitcode(status)
        cgroup = self._taken.pop(pid, None)
        exited = control_pb2.Exited(
            child_id=child_id,
            status=code,
            out_of_memory=cgroup is not None and self._give_back(cgroup, code),
            cpu_time_ns=int((usage.ru_utime + usage.ru_stime) * 1e9),
            peak_rss_bytes=usage.ru_maxrss * 1024,
        )
        self._send(control_pb2.ZygoteEvent(exited=exited))

    def _give_back(self, cgroup: Slot, status: int) -> bool:
        """Free a child's cgroup; True if it was killed for its memory."""
        assert isinstance(self._slots, Slots)
        return self._slots.give_back(cgroup, status)

    def _send(self, event: control_pb2.ZygoteEvent, fd: int | None = None) -> None:
        self._switchboard.send(event.SerializeToString(), fd)


def _hold(
    layer: LayerState, required: frozenset[str], missing: Sequence[IsolationError]
) -> list[LayerState]:
    """Take every layer of the zygote's own, and have a child rehearse those of a runner.

    One that does not hold keeps no other from being tried, so that all are told of at once. Raises
    IsolationError if any required layer does not hold: nothing may be forked then.
    """
    layers = [layer]
    try:
        layers += _enter(layer)
    except IsolationError as error:
        # Half in another root: nothing more is tried.
        refuse([*missing, *errors_of(layers, required), error])
    layers.append(credentials.limit_zygote(required=False))
    # Last: what changes credentials may change this, too.
    layers.insert(0, credentials.verify_no_dumps(required=False))
    # What the supervisor does to its end of a child's socket is tried out as well.
    layers.append(catalogue.PASSING.probe())
    rehearsed = catalogue.rehearse()
    refuse([*missing, *errors_of([*layers, *rehearsed], required)])
    # What a child takes before it loads, each child tells of itself.
    return [*layers, *(state for state in rehearsed if state.name in children.SEALING)]


def _enter(layer: LayerState) -> list[LayerState]:
    """Take what rests on namespaces of our own; without them it is not active, which is told.

    Raises IsolationError if this process is left between two roots.
    """
    if not layer.active:
        cause = NotInForceError(f"there are no namespaces of our own: {layer.detail}")
        names = (NO_IPC, MEMFD_NOEXEC, EMPTY_ROOT)
        return [refused(name, cause, required=False) for name in names]
    return [
        ipc.forbidden(required=False),
        # A setting of the PID namespace; without one of our own it would be the host's.
        memfd.refuse_executable(required=False),
        namespaces.enter_empty_root(required=False),
    ]
