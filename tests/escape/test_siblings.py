"""A compromised runner against its siblings and the supervisor: real daemon, and forked twins."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.conftest import DaemonProcess, descriptors
from tests.escape import injection, matrix
from tests.escape.field import CATALOGUE
from tests.escape.matrix import Matrix
from tests.escape.nest import WORKS
from tests.escape.walls import ALL, NONE

pytestmark = pytest.mark.timeout(120)

_AF_UNIX, _AF_INET, _STREAM = 1, 2, 1
_AT_FDCWD = -100
_SIGKILL = 9


@dataclasses.dataclass(frozen=True)
class Target:
    """What a compromised runner of the daemon knows: pids as its namespace counts them."""

    sibling: int
    daemon: DaemonProcess


Injected = Callable[[injection.Compromised, Target], str]


def _runners(daemon: DaemonProcess) -> list[psutil.Process]:
    found = []
    for process in daemon.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "sbx-runner" and _is_ready(process):
                found.append(process)
    return found


def _is_ready(runner: psutil.Process) -> bool:
    """Alive, locked down, and waiting for its module."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _status(runner.pid, "Seccomp") == ["2"] and _status(runner.pid, "State")[0] == "S"
    return False


def _status(pid: int, field: str) -> list[str]:
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
    assert found is not None, text
    return found.group(1).split()


def _number_inside(pid: int) -> int:
    """A process's id in its own PID namespace."""
    return int(_status(pid, "NSpid")[-1])


def _opened(path: Callable[[Target], str]) -> Injected:
    def attack(runner: injection.Compromised, target: Target) -> str:
        address = runner.put(path(target).encode() + b"\0")
        return runner.call(257, _AT_FDCWD, address, os.O_RDWR)

    return attack


#: Attack: what it is, and what the runner gets. Numbers are x86-64's.
INJECTED: dict[str, tuple[Injected, str]] = {
    "kill a sibling": (lambda r, t: r.call(62, t.sibling, _SIGKILL), "SIGSYS"),
    "kill everything": (lambda r, _: r.call(62, -1, _SIGKILL), "SIGSYS"),
    "kill the zygote": (lambda r, _: r.call(62, 1, _SIGKILL), "SIGSYS"),
    "kill a sibling's thread": (
        lambda r, t: r.call(234, t.sibling, t.sibling, _SIGKILL),
        "SIGSYS",
    ),
    "trace a sibling": (lambda r, t: r.call(101, 0x4206, t.sibling, 0, 0), "SIGSYS"),
    "read a sibling": (lambda r, t: r.call(310, t.sibling, 0, 0, 0, 0, 0), "SIGSYS"),
    "hold a sibling by a pidfd": (lambda r, t: r.call(434, t.sibling, 0), "SIGSYS"),
    "find a sibling by its group": (lambda r, t: r.call(121, t.sibling), "SIGSYS"),
    "find a sibling by its clock": (
        lambda r, t: r.call(228, (~t.sibling << 3) | 2, r.put(bytes(16))),
        "EINVAL",
    ),
    "open a sibling's memory": (_opened(lambda t: f"/proc/{t.sibling}/mem"), "EACCES"),
    "open the supervisor's memory": (_opened(lambda t: f"/proc/{t.daemon.pid}/mem"), "EACCES"),
    "open the supervisor's state": (_opened(lambda t: str(t.daemon.state_dir)), "EACCES"),
    "signal the supervisor": (lambda r, t: r.call(62, t.daemon.pid, _SIGKILL), "SIGSYS"),
    "a unix socket to the supervisor": (lambda r, _: r.call(41, _AF_UNIX, _STREAM, 0), "SIGSYS"),
    "a TCP socket to the supervisor": (lambda r, _: r.call(41, _AF_INET, _STREAM, 0), "SIGSYS"),
}


@pytest.fixture
def as_debugger() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can trace a runner: it is not dumpable")
    if platform.machine() != "x86_64":
        pytest.skip("the debugger knows the registers of x86-64 only")


@pytest.fixture
def pair(daemon: DaemonProcess) -> tuple[psutil.Process, psutil.Process]:
    """Two spare runners of one daemon."""
    daemon.wait_status(lambda _: len(_runners(daemon)) >= 2)
    first, second = _runners(daemon)[:2]
    return first, second


@pytest.mark.usefixtures("as_debugger")
@pytest.mark.parametrize("name", INJECTED)
def test_a_compromised_runner_of_the_daemon_reaches_nobody(
    daemon: DaemonProcess, pair: tuple[psutil.Process, psutil.Process], name: str
) -> None:
    attack, expected = INJECTED[name]
    attacker, sibling = pair
    with injection.compromised(attacker.pid) as runner:
        outcome = attack(runner, Target(_number_inside(sibling.pid), daemon))
    assert outcome == expected
    assert sibling.is_running()
    assert daemon.process is not None
    assert daemon.process.poll() is None
    # It notices the dead one and has another in its place.
    daemon.wait_status(lambda _: len(_runners(daemon)) >= 2)


@pytest.mark.usefixtures("as_debugger")
def test_the_injected_call_is_made_by_the_runner(
    pair: tuple[psutil.Process, psutil.Process],
) -> None:
    """Without this the attacks above could fail for want of a working debugger."""
    with injection.compromised(pair[0].pid) as runner:
        assert runner.call(39) == WORKS  # getpid
        assert runner.call(3, 99) == "EBADF"  # close
    assert pair[0].is_running()


@pytest.mark.usefixtures("as_debugger")
def test_a_runner_of_the_daemon_holds_its_socket_and_its_pipe_only(
    pair: tuple[psutil.Process, psutil.Process],
) -> None:
    for runner in pair:
        links = [os.readlink(entry) for entry in Path(f"/proc/{runner.pid}/fd").iterdir()]
        kinds = sorted(re.split(r"[:[(]", link.removeprefix("/memfd:"))[0] for link in links)
        assert kinds == ["closed ", "closed ", "closed ", "pipe", "socket"], links
        assert descriptors(runner.pid) == len(kinds)


def test_an_ordinary_user_cannot_trace_its_own_runners(
    pair: tuple[psutil.Process, psutil.Process],
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can")
    with pytest.raises(OSError, match="ptrace") as failed:
        injection.attach(pair[0].pid)
    assert failed.value.errno == errno.EPERM


def test_runners_of_the_daemon_stand_behind_their_walls(
    daemon: DaemonProcess, pair: tuple[psutil.Process, psutil.Process]
) -> None:
    for runner in pair:
        assert _status(runner.pid, "Seccomp") == ["2"]
        assert _status(runner.pid, "NoNewPrivs") == ["1"]
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(_status(runner.pid, kind)[0], 16) == 0
        assert len(_status(runner.pid, "NSpid")) == len(_status(daemon.pid, "NSpid")) + 1
    users = {tuple(_status(runner.pid, "Uid")) for runner in pair}
    supervisor = tuple(_status(daemon.pid, "Uid"))
    if os.geteuid() == 0:
        assert len(users) == 2
        assert not users & {supervisor, ("0",) * 4}


@pytest.fixture(scope="module", params=["root", "user"])
def twins(request: pytest.FixtureRequest) -> Matrix:
    """Two children of one zygote, and what one can do to the other and to the supervisor."""
    if request.param not in matrix.identities():
        pytest.skip("needs root")
    names = [name for name, entry in CATALOGUE.items() if entry.group in {"siblings", "processes"}]
    result = matrix.run(request.param, names, (NONE, ALL))
    if result.no_namespaces:
        pytest.skip(f"the host lets nobody in: {result.no_namespaces}")
    return result


def test_siblings_reach_each_other_where_there_is_no_wall(twins: Matrix) -> None:
    void = [name for name in twins.void() if CATALOGUE[name].group == "siblings"]
    assert void == []


def test_no_sibling_and_no_supervisor_is_reached_behind_all_walls(twins: Matrix) -> None:
    assert {name: row[ALL] for name, row in twins.valid().items() if row[ALL] == WORKS} == {}
    assert matrix.surprises(twins) == []
