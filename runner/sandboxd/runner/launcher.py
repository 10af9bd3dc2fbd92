"""The launcher: theory of operation.

The supervisor execs it once, before it speaks gRPC and, started as root, before it gives root up.
It is the only process that keeps the privilege to make a zygote, and does nothing else: on command
it forks one, and it reports when that one has ended. It parses the supervisor's packets only.

A zygote is two processes. The outer one, forked here, enters the namespaces, forks the inner one,
and only waits for it: its end is the zygote's. It ends when the launcher does, and the launcher
when the supervisor does: by the parent-death signal, and by EOF on the socket.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from sandboxd.runner.isolation import cgroups, kernel, namespaces
from sandboxd.runner.isolation.layers import (
    CGROUP,
    NAMESPACES,
    IsolationError,
    LayerState,
    NotInForceError,
    refused,
)
from sandboxd.runner.reaper import Switchboard, forget_signals
from sandboxd.wire.v1 import control_pb2

EXIT_REFUSED = 3
EXIT_ORPHANED = 4
_CPU_REMEDY = (
    "give the daemon a cgroup of its own with the cpu controller (Delegate=memory pids cpu and "
    "ProtectControlGroups=no in the unit), do not pass --cgroups=off, or pass "
    "--runner-cpu-percent=0"
)


class _Launched(NamedTuple):
    zygote_id: int
    alive_fd: int


def main() -> None:
    """Serve until the supervisor hangs up."""
    with contextlib.suppress(OSError):
        # Inherited by what is forked; whether it holds, the zygote tells.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    parser = argparse.ArgumentParser(description="Started by sandboxd; not for people.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != arguments.parent_pid:  # it died before the signal was armed
        os._exit(EXIT_ORPHANED)
    zygotes: dict[int, _Launched] = {}
    garden = _Garden(arguments.parent_pid)
    _serve(Switchboard(arguments.control_fd), zygotes, garden)
    _end(zygotes, garden)
    os._exit(0)


class _Garden:
    """The cgroups of all children, made at the first request, or why there are none."""

    def __init__(self, daemon_pid: int) -> None:
        self._daemon_pid = daemon_pid
        self.grove: cgroups.Grove | None = None
        self.absence = ""

    def plant(self, wanted: control_pb2.Cgroups) -> None:
        """Make them, unless that was tried before."""
        if self.grove is not None or self.absence:
            return
        if wanted.mode == "off":
            self.absence = "switched off by --cgroups=off"
            return
        try:
            self.grove = cgroups.make(wanted.slots, wanted.cpu_percent, self._daemon_pid)
        except cgroups.NoCgroupsError as error:
            self.absence = str(error)

    def missing(self, required: bool, cpu_percent: int) -> list[IsolationError]:
        """Why a child would not be bounded as it must be: one error for each reason."""
        found = []
        cause = self.absence if self.grove is None else self.grove.missing
        if required and cause:
            found.append(IsolationError(CGROUP, cause))
        trees = self.grove.trees if self.grove is not None else ()
        if cpu_percent and not any("cpu" in tree.controllers for tree in trees):
            cause = self.absence or "no cgroup with the cpu controller was delegated"
            cause = f"--runner-cpu-percent needs it: {cause}"
            found.append(IsolationError(CGROUP, cause, _CPU_REMEDY))
        return found


def _serve(switchboard: Switchboard, zygotes: dict[int, _Launched], garden: _Garden) -> None:
    for event in switchboard.events():
        if len(event) == 3:
            pid, status, _ = event
            ended = zygotes.pop(pid)
            os.close(ended.alive_fd)
            exited = control_pb2.ZygoteExited(
                zygote_id=ended.zygote_id, status=os.waitstatus_to_exitcode(status)
            )
            switchboard.send(control_pb2.LauncherEvent(exited=exited).SerializeToString())
            continue
        packet, fds = event
        request = control_pb2.LaunchRequest.FromString(packet)
        garden.plant(request.cgroups)
        alive_fds = [zygote.alive_fd for zygote in zygotes.values()]
        pid, alive_fd = _launch(switchboard, request, fds, alive_fds, garden)
        zygotes[pid] = _Launched(request.zygote_id, alive_fd)
        pidfd = os.pidfd_open(pid)
        launched = control_pb2.Launched(zygote_id=request.zygote_id)
        switchboard.send(control_pb2.LauncherEvent(launched=launched).SerializeToString(), pidfd)
        os.close(pidfd)


def _end(zygotes: dict[int, _Launched], garden: _Garden) -> None:
    """End the zygotes and remove their cgroups."""
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if garden.grove is not None:
        cgroups.remove(garden.grove)


def _launch(
    switchboard: Switchboard,
    request: control_pb2.LaunchRequest,
    fds: list[int],
    alive_fds: list[int],
    garden: _Garden,
) -> tuple[int, int]:
    """Fork a zygote; return its pid, and the end of a pipe that tells it that we still live."""
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        for fd in (alive_read, *fds):
            os.close(fd)
        return pid, alive_write
    try:
        forget_signals()
        switchboard.control.close()
        for fd in (alive_write, *alive_fds):
            os.close(fd)
        _be_outer(request, fds[0], alive_read, garden)
    except IsolationError as error:
        _refuse(error)
    finally:
        os._exit(EXIT_REFUSED)


def _be_outer(
    request: control_pb2.LaunchRequest, control_fd: int, alive_fd: int, garden: _Garden
) -> NoReturn:
    _die_with_parent(alive_fd)
    required = frozenset(request.required_layers)
    # What does not hold is told at the end, by the inner process, together with what it finds.
    missing = garden.missing(CGROUP in required, request.cgroups.cpu_percent)
    if request.namespaces == "off":
        cause = NotInForceError("switched off by --namespaces=off")
        layer = refused(NAMESPACES, cause, required=False)
    else:
        layer = namespaces.unshare(required=False)
    inner_read, inner_write = os.pipe2(os.O_CLOEXEC)
    inner = os.fork()
    if inner == 0:
        os.close(inner_write)
        _die_with_parent(inner_read)
        _be_inner(control_fd, layer, required, garden, request.cgroups.threads, missing)
    os.close(inner_read)
    os.close(control_fd)
    _, status = os.waitpid(inner, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _be_inner(
    control_fd: int,
    layer: LayerState,
    required: frozenset[str],
    garden: _Garden,
    threads: int,
    missing: Sequence[IsolationError],
) -> NoReturn:
    # Imported here: the launcher and the outer process need none of it.
    from sandboxd.runner.isolation.slots import Slots
    from sandboxd.runner.zygote import Zygote

    slots = garden.absence if garden.grove is None else Slots(garden.grove, threads)
    try:
        Zygote(control_fd, layer, required, slots, missing).run()
    except IsolationError as error:
        _refuse(error)


def _die_with_parent(alive_fd: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Process ids do not reach across namespaces, but the end of a pipe does.
    if select.select([alive_fd], [], [], 0)[0]:
        os._exit(EXIT_ORPHANED)
    os.close(alive_fd)


def _refuse(error: IsolationError) -> NoReturn:
    print(f"sandboxd: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
