"""The lock-down itself in a forked child: whole, on a faulty kernel, and its libffi page.

Every public function is a scenario; the nursery calls it by name and reports what it returns.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import threading
from functools import partial
from pathlib import Path
from typing import Any

from tests.isolation import child
from tests.isolation.child import Profile, attempt, policy

from sandboxd.runner.isolation import (
    credentials,
    kernel,
    libffi,
    lockdown,
    memfd,
    namespaces,
    program,
    seccomp,
)
from sandboxd.runner.isolation.layers import REQUIRED_DEFAULT, LayerState, NotInForceError


def lock_down(profile: Profile = "runner", seal: bool = False, **changes: Any) -> list[LayerState]:
    states = list(lockdown.lock_down(policy(profile, **changes)))
    if seal:
        states += lockdown.seal_after_load()
    return states


def lock_down_with_thread() -> None:
    stop = threading.Event()
    threading.Thread(target=stop.wait, daemon=True).start()
    try:
        lockdown.lock_down(policy())
    finally:
        stop.set()


def seal_alone() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    lockdown.seal_after_load()


def lock_down_twice() -> None:
    lockdown.lock_down(policy())
    lockdown.lock_down(policy())


def standard_streams(file_size_bytes: int) -> list[str]:
    """What writing to and reading from the standard streams gives after the lock-down."""
    lockdown.lock_down(policy(file_size_bytes=file_size_bytes))
    return [
        *(attempt(partial(os.write, fd, b"x")) for fd in (0, 1, 2)),
        repr(os.read(0, 1)),
    ]


def inject(
    faults: list[tuple[int, seccomp.Rule]],
    required: frozenset[str] = REQUIRED_DEFAULT,
    then_seal: bool = False,
    after: bool = False,
) -> list[LayerState]:
    """Lock down on a kernel that refuses, or lies about, some calls.

    after: the faults begin between lock-down and sealing.
    """
    program = seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW).for_process(os.getpid())
    if not after:
        if os.geteuid() != 0 and not kernel.capabilities()[0]:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.load_filter(program)
    states = list(lockdown.lock_down(policy(required=required)))
    if after:
        kernel.load_filter(program)
    if then_seal:
        states += lockdown.seal_after_load(required | {"seccomp-sealed"})
    return states


def unshare_under_fault(
    faults: list[tuple[int, seccomp.Rule]], required: bool
) -> tuple[LayerState, int]:
    """Unshare on a kernel that refuses; returns the state and the user id that is left."""
    if os.geteuid() != 0:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.load_filter(seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW).for_process(1))
    state = namespaces.unshare(required)
    return state, os.geteuid()


def enter_root_under_fault(
    faults: list[tuple[int, seccomp.Rule]], required: bool
) -> tuple[LayerState, bool]:
    """Unshare, then enter the root on a kernel that refuses; returns the state and whether the
    host's files are still there."""
    namespaces.unshare(required=True)
    pid = os.fork()
    if pid != 0:
        # The child, PID 1 of the new namespace, answers the nursery in this one's place.
        os.waitpid(pid, 0)
        os._exit(0)
    program = seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW)
    kernel.load_filter(program.for_process(os.getpid()))
    state = namespaces.enter_empty_root(required)
    return state, os.path.exists("/proc/self/status")


def try_to_leave_the_root() -> dict[str, str]:
    """Ways out of the empty root that a process with all its capabilities may try."""
    return {
        "user namespace": attempt(lambda: kernel.unshare(0x10000000)),
        "write": attempt(lambda: os.open("/x", os.O_CREAT | os.O_WRONLY)),
        "list": repr(os.listdir("/")),
        "above": repr(os.listdir("/../..")),
        "proc": attempt(lambda: os.open("/proc/self/status", os.O_RDONLY)),
        "pid 1 is the nursery": repr(os.getppid()),
        "interfaces": repr([name for _, name in socket.if_nameindex()]),
    }


def user_maps() -> dict[str, str]:
    """The maps of the user namespace, as the outer process wrote them, are read by the nursery
    before /proc disappears."""
    return child.USER_MAPS


# -- what the zygote takes ------------------------------------------------------------------------

_NOEXEC = Path("/proc/sys/vm/memfd_noexec")


def refuse_executable_memory() -> dict[str, Any]:
    """Refuse them as PID 1 of a new namespace, and see what the old one makes of it."""
    found: dict[str, Any] = {"host before": _NOEXEC.read_text()}
    kernel.unshare(0x20000000)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        answer = {
            "state": memfd.refuse_executable(required=False),
            "executable": attempt(lambda: os.memfd_create("x", 0x10)),
            "plain": attempt(lambda: os.memfd_create("x")),
        }
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found |= pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return found | {"here": _NOEXEC.read_text()}


def refuse_executable_memory_of_host() -> dict[str, Any]:
    before = _NOEXEC.read_text()
    state = memfd.refuse_executable(required=False)
    return {"state": state, "before": before, "after": _NOEXEC.read_text()}


def limit_zygote(faults: list[tuple[int, seccomp.Rule]] | None = None) -> dict[str, Any]:
    if faults is not None:
        program = seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW)
        kernel.load_filter(program.for_process(os.getpid()))
    state = credentials.limit_zygote(required=False)
    return {
        "state": state,
        "capabilities": kernel.capabilities(),
        "bounding": sum(kernel.prctl(kernel.PR_CAPBSET_READ, number) for number in range(41)),
        # To where it is already: if it is allowed after all, the host does not notice.
        "change the root": attempt(lambda: os.chroot("/")),
    }


def lock_down_below_limited_zygote() -> list[LayerState]:
    """As the zygote does: reduced itself, plans, forks a child that locks itself down."""
    credentials.limit_zygote(required=True)
    reading, writing = os.pipe()
    chosen = policy(keep_fds=frozenset({writing}), parent_pid=os.getpid())
    plan = lockdown.Planner().plan(chosen)
    pid = os.fork()
    if pid == 0:
        os.write(writing, pickle.dumps(lockdown.lock_down(chosen, plan)))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        states: list[LayerState] = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return states


# -- libffi --------------------------------------------------------------------------------------


def callback_after_lock_down() -> int:
    lockdown.lock_down(policy())
    return int(child.callback(41))


def new_callback_after_lock_down() -> str:
    lockdown.lock_down(policy())
    ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    return "created"


def write_to_code_page() -> str:
    ranges = libffi.pages(policy())
    lockdown.lock_down(policy())
    if not ranges:
        return "no such page"
    ctypes.memset(ranges[0][0], 0, 1)
    return "written"


def probe_code_page() -> list[str]:
    """Whether the page counts as writable before and after it was locked."""
    if not libffi.pages(policy()):
        return ["still writable", "locked"]

    def probe() -> str:
        try:
            program.run(libffi.verify(policy()))
        except NotInForceError:
            return "still writable"
        return "locked"

    answers = [probe()]
    program.run(libffi.lock(policy()))
    return [*answers, probe()]


def forget_code_pages() -> None:
    libffi._found = None
    lockdown.lock_down(policy())
