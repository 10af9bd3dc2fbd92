"""Attacks from a locked-down child: by all walls together, and by one wall alone."""

from __future__ import annotations

import os

import pytest
from tests.isolation import attacks
from tests.isolation.nursery_client import Nursery

#: Attacks that do not end the process: what a runner, a sealed runner and a compiler get.
SURVIVED = {
    "open a file": ("EACCES", "EACCES", "EACCES"),
    "create a file": ("EACCES", "EACCES", "EACCES"),
    "stat a file": ("EACCES", "EACCES", "EACCES"),
    "list the root": ("EACCES", "EACCES", "EACCES"),
    "path only": ("EACCES", "EACCES", "EACCES"),
    "clone3": ("ENOSYS", "ENOSYS", "SIGSYS"),
    "map droppable": ("EINVAL", "EINVAL", "EINVAL"),
    "name a mapping": ("EINVAL", "EINVAL", "EINVAL"),
    "terminal request": ("ENOTTY", "ENOTTY", "ENOTTY"),
    "another process's clock": ("EINVAL", "EINVAL", "EINVAL"),
    # What a runner needs until it is sealed, and what a compiler needs.
    "protect executable": ("done", "SIGSYS", "done"),
    "receive a message": ("ENOTSOCK", "SIGSYS", "SIGSYS"),
    "stack a filter": ("EFAULT", "SIGSYS", "SIGSYS"),
}
#: Attacks that only one architecture knows.
X86_ONLY = {"x32 getpid", "i386 getpid"}

#: Attack, the only layers applied, what it must get; rows that only root can try.
ONE_WALL = [
    ("read host file", {"landlock"}, "EACCES"),
    ("write file", {"landlock"}, "EACCES"),
    ("connect tcp", {"landlock"}, "EACCES"),
    ("abstract socket", {"landlock"}, "EPERM"),
    ("signal sibling", {"landlock"}, "EPERM"),
    ("ptrace child", {"landlock"}, "EPERM"),
    ("private memory", {"rlimits"}, "ENOMEM"),
    ("grow memory file", {"rlimits"}, "EFBIG"),
    ("many descriptors", {"rlimits"}, "EMFILE"),
    ("inherited descriptor", {"descriptors"}, "EBADF"),
    ("connect tcp", {"seccomp"}, "SIGSYS"),
    ("read host file", {"seccomp"}, "EACCES"),
    ("abstract socket", {"seccomp"}, "SIGSYS"),
    ("ptrace child", {"seccomp"}, "SIGSYS"),
]
ONE_WALL_AGAINST_ROOT = [
    ("mount", {"landlock"}, "EPERM"),
    ("signal sibling", {"uid"}, "EPERM"),
    ("ptrace child", {"uid"}, "EPERM"),
    ("mount", {"uid"}, "EPERM"),
    ("setuid 0", {"uid"}, "EPERM"),
    ("real time", {"uid"}, "EPERM"),
    ("chroot", {"uid"}, "EPERM"),
    ("read parents memory", {"uid"}, "EACCES"),
    ("ptrace child", {"capabilities"}, "EPERM"),
    ("mount", {"capabilities"}, "EPERM"),
    ("real time", {"capabilities"}, "EPERM"),
    ("chroot", {"capabilities"}, "EPERM"),
    ("raise limit", {"capabilities"}, "EPERM"),
    ("lock memory", {"uid", "rlimits"}, "EPERM"),
    ("mount", {"seccomp"}, "SIGSYS"),
    ("setuid 0", {"seccomp"}, "SIGSYS"),
]


@pytest.mark.parametrize("kind", ["runner", "sealed runner", "compiler"])
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_no_attack_gets_through_the_whole_lock_down(nursery: Nursery, name: str, kind: str) -> None:
    if name in X86_ONLY and os.uname().machine != "x86_64":
        pytest.skip("this architecture has no such call")
    column = ["runner", "sealed runner", "compiler"].index(kind)
    expected = SURVIVED.get(name, ("SIGSYS",) * 3)[column]
    profile = "compiler" if kind == "compiler" else "runner"
    outcome = nursery.run("attack", name=name, profile=profile, seal=kind == "sealed runner")
    assert (outcome.killed_by if outcome.status else outcome.value) == expected


@pytest.mark.parametrize("name", ["protect executable", "map executable", "receive a message"])
def test_the_seal_binds_threads_that_were_there_before_it(nursery: Nursery, name: str) -> None:
    assert nursery.run("attack_from_older_thread", name=name).killed_by == "SIGSYS"


@pytest.mark.parametrize(("name", "layers", "expected"), ONE_WALL)
def test_one_wall_alone_stops_the_attack(
    plain: Nursery, name: str, layers: set[str], expected: str
) -> None:
    _check_one_wall(plain, name, layers, expected)


@pytest.mark.parametrize(("name", "layers", "expected"), ONE_WALL_AGAINST_ROOT)
def test_one_wall_alone_stops_root(
    plain: Nursery, name: str, layers: set[str], expected: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    _check_one_wall(plain, name, layers, expected)


def _check_one_wall(plain: Nursery, name: str, layers: set[str], expected: str) -> None:
    without = plain.run("attack_one_wall", name=name, layers=frozenset())
    if without.report != ("returned", "done"):
        pytest.skip(f"void: without any wall the attack gets {without.report}")
    # Landlock and seccomp need it; it stops none of these attacks by itself.
    chosen = frozenset(layers | {"no-new-privs"})
    outcome = plain.run("attack_one_wall", name=name, layers=chosen)
    assert (outcome.killed_by if outcome.status else outcome.value) == expected
