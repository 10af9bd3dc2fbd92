"""Cgroups: where they may be made, what a child may do in one, and that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import DaemonProcess

from sandboxd.runner.isolation import cgroups
from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.slots import MEMORY_SLACK_BYTES, Slots

StartDaemon = Callable[..., contextlib.AbstractContextManager[DaemonProcess]]
_MIB = 1 << 20


# -- finding, in files that look like the kernel's ---------------------------------------------


class Host:
    """A made-up host: what is mounted where, and where this process is."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._mounts: list[str] = []
        self._own: list[str] = []
        self._patch = patch

    def mount(self, name: str, kind: str, options: str, root: str = "/") -> Path:
        point = self._directory / name
        point.mkdir()
        self._mounts.append(f"1 2 0:3 {root} {point} rw shared:1 - {kind} {kind} rw,{options}")
        return point

    def be_in(self, line: str) -> None:
        self._own.append(line)

    def cgroup(self, directory: Path, controllers: str = "", delegated: bool = True) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            (directory / name).write_text("")
        (directory / "cgroup.controllers").write_text(controllers)
        if delegated and os.geteuid() == 0:
            try:
                os.setxattr(directory, "user.delegate", b"1")
            except OSError:
                pytest.skip("the file system of the test has no extended attributes")
        if not delegated and os.geteuid() != 0:
            directory.chmod(0o500)
        return directory

    def find(self) -> tuple[tuple[cgroups.Place, ...], str]:
        for name, lines in (("_MOUNTS", self._mounts), ("_MEMBERSHIP", self._own)):
            path = self._directory / name
            path.write_text("".join(f"{line}\n" for line in lines))
            self._patch.setattr(cgroups, name, path)
        return cgroups.find_places()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_delegated_cgroup_of_v2_is_found_with_its_controllers(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "nsdelegate")
    host.be_in("0::/system.slice/sandboxd.service")
    own = host.cgroup(unified / "system.slice/sandboxd.service", "cpu io memory pids")
    places, missing = host.find()
    assert places == (cgroups.Place(2, own, frozenset({"cpu", "memory", "pids"})),)
    assert missing == ""


def test_the_leaf_of_an_earlier_start_is_not_divided_again(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "nsdelegate")
    host.be_in("0::/service/supervisor")
    own = host.cgroup(unified / "service", "memory pids")
    host.cgroup(own / "supervisor", "memory pids")
    places, _ = host.find()
    assert [place.directory for place in places] == [own]


def test_a_leaf_that_systemd_made_has_its_parents_controllers(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "nsdelegate")
    host.be_in("0::/service/supervisor")
    own = host.cgroup(unified / "service", "cpu memory pids")
    host.cgroup(own / "supervisor", controllers="")
    places, missing = host.find()
    assert places == (cgroups.Place(2, own, frozenset({"cpu", "memory", "pids"})),)
    assert missing == ""


def test_a_cgroup_that_was_not_delegated_is_left_alone(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "nsdelegate")
    host.be_in("0::/session.scope")
    own = host.cgroup(unified / "session.scope", "memory pids", delegated=False)
    places, missing = host.find()
    assert places == ()
    assert str(own) in missing
    assert "memory, pids" in missing


def test_v1_gives_what_v2_has_not(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "rw")
    memory = host.mount("memory", "cgroup", "memory")
    host.mount("named", "cgroup", "name=systemd")
    for line in ("4:memory:/own", "1:name=systemd:/own", "0::/own"):
        host.be_in(line)
    on_v2 = host.cgroup(unified / "own", "pids")
    on_v1 = host.cgroup(memory / "own")
    places, missing = host.find()
    assert places == (
        cgroups.Place(2, on_v2, frozenset({"pids"})),
        cgroups.Place(1, on_v1, frozenset({"memory"})),
    )
    assert missing == ""


def test_a_part_of_a_hierarchy_is_found_through_its_mount(host: Host) -> None:
    unified = host.mount("unified", "cgroup2", "rw", root="/docker/id")
    host.be_in("0::/docker/id/own")
    own = host.cgroup(unified / "own", "memory pids")
    assert [place.directory for place in host.find()[0]] == [own]


@pytest.mark.parametrize("path", ["/../../other", "/nowhere"])
def test_a_cgroup_out_of_sight_is_not_found(host: Host, path: str) -> None:
    unified = host.mount("unified", "cgroup2", "rw")
    host.cgroup(unified, "memory pids")
    host.be_in(f"0::{path}")
    places, missing = host.find()
    assert places == ()
    assert "no hierarchy has the memory controller" in missing


# -- counting the kernel's kills, in files that look like the kernel's -------------------------


@pytest.mark.parametrize(
    ("version", "name", "text"),
    [
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        (2, "memory.events", "low 0\nmax 9\noom 3\noom_kill {}\noom_group_kill 0\n"),
    ],
)
def test_a_kill_for_lack_of_memory_is_told_from_any_other(
    tmp_path: Path, version: int, name: str, text: str
) -> None:
    slot = tmp_path / "0"
    slot.mkdir()
    for empty in ("tasks", "cgroup.procs", "memory.max", "memory.limit_in_bytes"):
        (slot / empty).write_text("")
    (slot / name).write_text(text.format(5))
    descriptor = os.open(tmp_path, os.O_RDONLY)
    tree = cgroups.Tree(version, frozenset({"memory"}), tmp_path, descriptor, ())
    slots = Slots(cgroups.Grove((tree,), 1, ""), threads=16)
    limit = slot / ("memory.max" if version == 2 else "memory.limit_in_bytes")
    first = slots.take(110 * _MIB)
    assert int(limit.read_text()) == 110 * _MIB + MEMORY_SLACK_BYTES
    assert not slots.give_back(first, -signal.SIGKILL), "killed before, not now"
    (slot / name).write_text(text.format(6))
    second = slots.take(110 * _MIB)
    assert slots.give_back(second, -signal.SIGKILL)
    assert not slots.give_back(slots.take(2), -signal.SIGSEGV)
    os.close(descriptor)


# -- the kernel's own --------------------------------------------------------------------------


@pytest.fixture
def slots() -> Iterator[Slots]:
    """Two slots in whatever hierarchies this host lets a root without a manager divide."""
    places, _ = cgroups.find_places()
    if not places or any(place.version == 2 for place in places):
        pytest.skip("needs root at the root of a v1 hierarchy; v2 would move the tests themselves")
    grove = cgroups.make(2, 0, os.getpid())
    yield Slots(grove, threads=5)
    cgroups.remove(grove)
    for tree in grove.trees:
        assert not tree.directory.exists()
        os.close(tree.descriptor)


def _in_child(body: Callable[[], object]) -> int:
    """Run it in a forked child; returns the number it returns, or 99 if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = int(str(body()))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_joins_and_is_alone(slots: Slots) -> None:
    slot = slots.take(64 * _MIB)

    def body() -> int:
        slot.join()
        return int(all(slot.members(tree) == [os.getpid()] for tree in slot.trees))

    assert _in_child(body) == 1
    assert not slots.give_back(slot, 0)


def test_a_child_that_has_not_joined_is_noticed(slots: Slots) -> None:
    slot = slots.take(64 * _MIB)

    def body() -> int:
        try:
            slot.verify_joined()
        except NotInForceError as error:
            return int("processes [] are in the cgroup" in str(error))
        return 0

    assert _in_child(body) == 1


def test_a_fork_bomb_ends_at_the_limit_and_is_swept_away(slots: Slots) -> None:
    slot = slots.take(64 * _MIB)
    if not any("pids" in tree.controllers for tree in slot.trees):
        pytest.skip("no pids controller here")

    def body() -> int:
        slot.join()
        for born in range(100):
            try:
                if os.fork() == 0:
                    signal.pause()
            except BlockingIOError:
                return born
        return 98

    assert _in_child(body) == 4, "five tasks, itself among them"
    # Its children live on, as orphans of nobody that counts.
    slots.give_back(slot, 0)
    deadline = time.monotonic() + 5
    while not slot.empty():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slots_are_used_again_and_no_more_than_there_are(slots: Slots) -> None:
    one, two = slots.take(2), slots.take(2)
    assert one is not two
    with pytest.raises(OSError, match="every cgroup slot is in use"):
        slots.take(2)
    slots.give_back(one, 0)
    assert slots.take(2) is one


_KILLED = """
import os, signal
from sandboxd.runner.isolation import cgroups
grove = cgroups.make(2, 0, os.getpid())
print(grove.trees[0].directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_daemon_left_is_swept_by_the_next(slots: Slots) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False, timeout=30
    )
    left = Path(ran.stdout.strip())
    assert left.is_dir()
    cgroups.sweep(left.parent)
    assert not left.exists()
    # The tree of this test's own slots is locked, and stays.
    assert slots.take(2) is not None


# -- the daemon --------------------------------------------------------------------------------


def _state(daemon: DaemonProcess) -> tuple[bool, str]:
    layer = next(layer for layer in daemon.status().layers if layer.name == "cgroup")
    return layer.active, layer.detail


def _trees(daemon: DaemonProcess) -> set[Path]:
    """Those of this daemon's launcher: others may run on this machine."""
    places, _ = cgroups.find_places()
    launchers = [process.pid for process in daemon.descendants() if process.ppid() == daemon.pid]
    return {
        tree
        for place in places
        for pid in launchers
        for tree in place.directory.glob(f"sandboxd-{pid}-*")
    }


def _assert_gone(trees: set[Path]) -> None:
    assert trees
    assert not [tree for tree in trees if tree.exists()]


def test_every_runner_is_in_a_slot_and_none_is_left_after_the_end(
    start_daemon: StartDaemon,
) -> None:
    if not cgroups.find_places()[0]:
        pytest.skip("this host lets nobody of us divide a cgroup")
    with start_daemon("--spare-runners=2") as daemon:
        daemon.wait_status(lambda status: status.pool.spare == 2)
        active, detail = _state(daemon)
        assert "alone in a cgroup with" in detail
        assert active == (cgroups.find_places()[1] == "")
        trees = _trees(daemon)
        tree = min(trees)
        members = [slot / "cgroup.procs" for slot in tree.iterdir() if slot.is_dir()]
        pids = [int(pid) for path in members for pid in path.read_text().split()]
        assert len(pids) == 2
        assert set(pids) <= {process.pid for process in daemon.descendants()}
    _assert_gone(trees)


def test_a_daemon_that_was_killed_leaves_nothing_to_its_successor(
    start_daemon: StartDaemon,
) -> None:
    if not cgroups.find_places()[0]:
        pytest.skip("this host lets nobody of us divide a cgroup")
    with start_daemon("--spare-runners=1") as daemon:
        first = _trees(daemon)
        below = daemon.descendants()
        daemon.kill()
        deadline = time.monotonic() + 10
        while any(process.is_running() for process in below):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        daemon.restart()
        second = _trees(daemon)
        _assert_gone(first)
    _assert_gone(second)


def test_cgroups_can_be_switched_off(start_daemon: StartDaemon) -> None:
    with start_daemon("--cgroups=off", "--spare-runners=1") as daemon:
        daemon.wait_status(lambda status: status.pool.spare == 1)
        assert _state(daemon) == (False, "switched off by --cgroups=off")
        assert not _trees(daemon)
