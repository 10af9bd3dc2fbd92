"""What the supervisor does with a process that it was told of and cannot look after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from sandboxd.supervisor.child import UNKNOWN_EXIT, Child
from sandboxd.supervisor.launcher import LaunchedZygote, Launcher
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.wire.v1 import control_pb2


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_a_child_that_cannot_be_watched_is_killed_and_its_descriptor_closed(
    process: subprocess.Popen[bytes],
) -> None:
    zygote = Zygote((), lambda: None)
    ours, theirs = socket.socketpair()
    child = Child(1, ours, 0)
    zygote._children[1] = child
    event = control_pb2.ZygoteEvent(spawned=control_pb2.Spawned(child_id=1))
    pidfd = os.pidfd_open(process.pid)
    with no_descriptors_left():
        zygote._dispatch(event.SerializeToString(), [pidfd])
    assert not is_open(pidfd)
    assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
    assert child.pidfd == -1
    # The zygote tells of its end, as of any other's.
    exited = control_pb2.Exited(child_id=1, status=-signal.SIGKILL)
    zygote._dispatch(control_pb2.ZygoteEvent(exited=exited).SerializeToString(), [])
    assert (await child.wait_exit()) != UNKNOWN_EXIT
    child.close()
    theirs.close()
    await zygote.stop()


async def test_a_zygote_that_cannot_be_watched_is_killed_and_its_descriptor_closed(
    process: subprocess.Popen[bytes],
) -> None:
    launcher = Launcher()
    launched = launcher._zygotes[1] = LaunchedZygote()
    event = control_pb2.LauncherEvent(launched=control_pb2.Launched(zygote_id=1))
    pidfd = os.pidfd_open(process.pid)
    with no_descriptors_left():
        launcher._dispatch(event.SerializeToString(), [pidfd])
    assert not is_open(pidfd)
    assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL
    assert launched.pidfd == -1
    await launcher.stop()


@contextlib.contextmanager
def descriptors_on_the_way(count: int) -> Iterator[None]:
    """So many descriptors of our user are sent and not received, which the kernel counts."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(0, count, 100):
            socket.send_fds(ours, [b"!"], [ours.fileno()] * 100)
        yield


async def test_a_child_that_nobody_could_be_told_of_is_dead_before_it_is_said_to_have_failed() -> (
    None
):
    launcher = Launcher()
    launcher.start()
    uids = range(2_020_000_000, 2_020_000_002) if os.geteuid() == 0 else ()
    zygote = Zygote(uids, lambda: None)
    await zygote.start(launcher, "off", (), control_pb2.Cgroups(mode="off"))
    (inner,) = psutil.Process(zygote.pid).children()
    limits = resource.prlimit(inner.pid, resource.RLIMIT_NOFILE)
    outbox = Outbox(4096)
    interrupt, hold = os.pipe()
    # A process may have as many on the way as it may have open; those of its user count.
    with descriptors_on_the_way(200):
        resource.prlimit(inner.pid, resource.RLIMIT_NOFILE, (100, limits[1]))
        child = zygote.spawn(
            control_pb2.CHILD_KIND_RUNNER,
            [interrupt, outbox.fd],
            ChildLimits(1 << 30, 100, 1 << 30, 1 << 20, 0),
        )
        await asyncio.wait_for(child.forked, 10)
    assert child.pidfd == -1
    # Its user id is free again, and its socket is still open: it would wait for a command.
    assert not inner.children()
    resource.prlimit(inner.pid, resource.RLIMIT_NOFILE, limits)
    child.close()
    for fd in (interrupt, hold):
        os.close(fd)
    await zygote.stop()
    await launcher.stop()
