"""The zygote: theory of operation.

Two processes. The outer one is exec'd by the supervisor; it enters the namespaces, forks the inner
one and only waits for it. The inner one is process 1 of the PID namespace: it preloads
the engine, enters the empty root, tells the supervisor that it is ready, and forks children on
command. When it dies, for whatever reason, the kernel kills every process of its namespace.

It stays single-threaded (checked before every fork), never compiles, never does WASI input or
output, and never sees a tenant's byte. It is the only one that can reap: it reports every exit with
status and usage. Where the host allows no namespaces, children are tied to it by the parent-death
signal instead.

It ends when the supervisor does: parent-death signal from supervisor to outer, from outer to inner,
and EOF on the control socket.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from sandboxd.runner.isolation import kernel, namespaces
from sandboxd.runner.isolation.layers import NAMESPACES, IsolationError, LayerState

_MAX_PACKET_BYTES = 64 * 1024
# Descriptors of a SpawnRequest, at most.
_MAX_FDS = 3
# RLIMIT_NPROC for "no limit of ours"; the hard limit of the host still holds.
_UNLIMITED_PROCESSES = 1 << 22

EXIT_REFUSED = 3
EXIT_ORPHANED = 4


def main() -> None:
    """Be the outer process, which becomes two."""
    arguments = _arguments()
    _die_with(arguments.parent_pid)
    try:
        layer = _enter_namespaces(arguments.namespaces)
    except IsolationError as error:
        print(f"sandboxd zygote: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_REFUSED)
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    inner = os.fork()
    if inner:
        os.close(alive_read)
        os.close(arguments.control_fd)
        _wait_for(inner)
    os.close(alive_write)
    _die_with_outer(alive_read)
    try:
        _Zygote(arguments.control_fd, layer, arguments.namespaces == "require").run()
    except IsolationError as error:
        print(f"sandboxd zygote: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_REFUSED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Started by sandboxd; not for people.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--namespaces", choices=["require", "auto", "off"], required=True)
    return parser.parse_args()


def _enter_namespaces(mode: str) -> LayerState:
    if mode == "off":
        return LayerState(NAMESPACES, active=False, detail="switched off by --namespaces=off")
    return namespaces.unshare(required=mode == "require")


def _die_with(parent_pid: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the signal was armed
        os._exit(EXIT_ORPHANED)


def _die_with_outer(alive_fd: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Process ids do not reach across namespaces, but the end of a pipe does.
    if select.select([alive_fd], [], [], 0)[0]:
        os._exit(EXIT_ORPHANED)


def _wait_for(inner: int) -> NoReturn:
    _, status = os.waitpid(inner, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


class _Zygote:
    """The inner process."""

    def __init__(self, control_fd: int, namespaces_layer: LayerState, required: bool) -> None:
        # Imported here, after the fork: the outer process needs none of it.
        from sandboxd.runner import children, engine, preload
        from sandboxd.runner.isolation import libffi, lockdown
        from sandboxd.wire.v1 import control_pb2

        self._pb = control_pb2
        self._children = children
        self._policy = lockdown.ChildPolicy
        self._control = socket.socket(fileno=control_fd)
        self._own_pid = os.getpid()
        self._pids: dict[int, int] = {}
        children.name_process("sbx-zygote")
        preload.preload()
        self._engines = engine.build_engines()
        version = engine.engine_version()
        # Before /proc is out of reach.
        self._code_pages = libffi.find_writable_code()
        self._tasks_fd = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        layers = [namespaces_layer]
        if namespaces_layer.active:
            layers.append(namespaces.enter_empty_root(required=required))
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.collect()
        # What exists now is shared with every child: keep the collector from touching it.
        gc.freeze()
        ready = control_pb2.ZygoteReady(
            engine_version=version, layers=children.layer_messages(tuple(layers))
        )
        self._send(control_pb2.ZygoteEvent(ready=ready))

    def run(self) -> NoReturn:
        """Serve until the supervisor hangs up."""
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in ready:
                self._command()

    def _command(self) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._control, _MAX_PACKET_BYTES, _MAX_FDS)
        except ConnectionResetError:  # it died with events unread
            packet = b""
        if not packet:
            os._exit(0)
        request = self._pb.ZygoteCommand.FromString(packet).spawn
        try:
            self._spawn(request, fds)
        except OSError as error:
            failed = self._pb.SpawnFailed(child_id=request.child_id, message=str(error))
            self._send(self._pb.ZygoteEvent(spawn_failed=failed))
        finally:
            for fd in fds:
                os.close(fd)

    def _spawn(self, request: object, fds: list[int]) -> None:
        assert isinstance(request, self._pb.SpawnRequest)
        tasks = os.listdir(self._tasks_fd)
        if len(tasks) != 1:
            # A fork would copy locks that other threads hold. Never: end, and be replaced.
            print(f"sandboxd zygote: {len(tasks)} threads", file=sys.stderr, flush=True)
            os._exit(EXIT_REFUSED)
        pid = os.fork()
        if pid == 0:
            self._become_child(request, fds)
        self._pids[pid] = request.child_id
        pidfd = os.pidfd_open(pid)
        try:
            spawned = self._pb.Spawned(child_id=request.child_id)
            self._send(self._pb.ZygoteEvent(spawned=spawned), pidfd)
        finally:
            os.close(pidfd)

    def _become_child(self, request: object, fds: list[int]) -> NoReturn:
        assert isinstance(request, self._pb.SpawnRequest)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        compiles = request.kind == self._pb.CHILD_KIND_COMPILER
        limits = request.limits
        policy = self._policy(
            profile="compiler" if compiles else "runner",
            # The outbox is mapped before the lock-down and needs no descriptor after it.
            keep_fds=frozenset(fds if compiles else fds[:2]),
            uid=request.uid,
            data_bytes=limits.data_bytes,
            cpu_seconds=limits.cpu_seconds,
            file_size_bytes=limits.file_size_bytes,
            processes=limits.processes or _UNLIMITED_PROCESSES,
            parent_pid=self._own_pid,
            writable_code=self._code_pages,
        )
        self._children.run_child(request.kind, policy, fds, self._engines)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child_id = self._pids.pop(pid, None)
            if child_id is None:
                continue
            exited = self._pb.Exited(
                child_id=child_id,
                status=os.waitstatus_to_exitcode(status),
                cpu_time_ns=int((usage.ru_utime + usage.ru_stime) * 1e9),
                peak_rss_bytes=usage.ru_maxrss * 1024,
            )
            self._send(self._pb.ZygoteEvent(exited=exited))

    def _send(self, event: object, fd: int | None = None) -> None:
        assert isinstance(event, self._pb.ZygoteEvent)
        packet = event.SerializeToString()
        try:
            if fd is None:
                self._control.send(packet)
            else:
                socket.send_fds(self._control, [packet], [fd])
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


if __name__ == "__main__":
    main()
