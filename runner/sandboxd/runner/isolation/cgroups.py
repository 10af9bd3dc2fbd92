"""Finding a place for the children's cgroups, and making them ahead of need.

Done by the launcher, once, while /sys/fs/cgroup is reachable. A controller is taken from cgroup v2
where that has it, otherwise from its v1 hierarchy. A cgroup is used only if it was given to the
daemon: the root of a hierarchy, where nobody manages us; one that systemd marks as delegated; one
that an ordinary user owns. Root could write to any other as well, but that is somebody else's.

The layout, in each hierarchy::

    <the daemon's own cgroup>/
        supervisor/            the daemon and the launcher; v2 only, where processes live in leaves
        sandboxd-<pid>-<n>/    locked (flock) while the launcher or a zygote lives
            0/ 1/ 2/ ...       a slot for one child at a time
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_LEAF: Final = "supervisor"
_TREE: Final = "sandboxd-"
#: Extended attributes by which systemd marks what it has delegated.
_MARKS: Final = ("user.delegate", "trusted.delegate")
#: Without these two a child is not bounded.
_NEEDED: Final = frozenset({"memory", "pids"})
_REMOVAL_TIMEOUT_S: Final = 2.0
_CPU_PERIOD_US: Final = 100_000
_ATTEMPTS: Final = 5


class NoCgroupsError(Exception):
    """There is no place for cgroups; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Place:
    """The daemon's own cgroup in a hierarchy of version 1 or 2, and what to use there."""

    version: int
    directory: Path
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Tree:
    """The slots in one hierarchy.

    `descriptor` is the directory that holds them, `joining` the opened cgroup.procs of each slot
    on v2: it may not be opened later, from inside another cgroup namespace. Empty on v1.
    """

    version: int
    controllers: frozenset[str]
    directory: Path
    descriptor: int
    joining: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Grove:
    """All hierarchies in use, how many slots each has, and what is missing, for people."""

    trees: tuple[Tree, ...]
    slots: int
    missing: str


# -- finding -------------------------------------------------------------------------------------


def find_places() -> tuple[tuple[Place, ...], str]:
    """Find where cgroups may be made, and say what is missing for every child to be bounded."""
    places: list[Place] = []
    problems: list[str] = []
    left = _NEEDED | {"cpu"}
    own = _own_paths()
    for version, controllers, directory in sorted(_mounted(own), key=lambda found: -found[0]):
        useful = controllers & left
        if not useful:
            continue
        if (problem := _problem(directory)) is not None:
            if useful & _NEEDED:
                problems.append(f"{', '.join(sorted(useful & _NEEDED))}: {problem}")
            continue
        places.append(Place(version, directory, useful))
        left -= useful
    for controller in sorted(left & _NEEDED):
        if not any(controller in problem for problem in problems):
            problems.append(f"no hierarchy has the {controller} controller")
    return tuple(places), "; ".join(problems) if left & _NEEDED else ""


def _own_paths() -> dict[str, str]:
    """The cgroup of this process by controller; that of v2 under the empty name."""
    paths = {}
    for line in _MEMBERSHIP.read_text("utf-8").splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounted(own: dict[str, str]) -> Iterator[tuple[int, frozenset[str], Path]]:
    for line in _MOUNTS.read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        root, mount_point = before.split()[3:5]
        kind, _source, options = after.split(" ", 2)
        if kind == "cgroup2" and "" in own:
            directory = _below(mount_point, root, own[""])
            if directory is not None:
                base = _base(directory)
                yield 2, frozenset(_words(base / "cgroup.controllers")), base
        elif kind == "cgroup":
            controllers = frozenset(options.split(",")) & own.keys()
            for controller in controllers:
                directory = _below(mount_point, root, own[controller])
                if directory is not None:
                    yield 1, controllers, directory
                    break


def _below(mount_point: str, root: str, path: str) -> Path | None:
    """Where a cgroup is seen through a mount of the hierarchy's part below root, if it is."""
    if not Path(path).is_relative_to(root) or ".." in Path(path).parts:
        return None
    directory = Path(mount_point, Path(path).relative_to(root))
    return directory if directory.is_dir() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except OSError:
        return []


def _base(directory: Path) -> Path:
    """The cgroup of v2 to divide, of whose controllers a leaf has none until it is divided."""
    # Another launcher of this daemon, or systemd's DelegateSubgroup=, was here before.
    return directory.parent if directory.name == _LEAF else directory


def _problem(directory: Path) -> str | None:
    """Why a cgroup is not ours to divide, if it is not."""
    for path in (directory, directory / "cgroup.procs"):
        if not os.access(path, os.W_OK):
            return f"{path} is not writable"
    if os.geteuid() == 0 and not _is_root(directory) and not _is_marked(directory):
        return f"{directory} is not delegated"
    return None


def _is_root(directory: Path) -> bool:
    """True for the root of a hierarchy, or what looks like one in this cgroup namespace."""
    return os.path.ismount(directory)


def _is_marked(directory: Path) -> bool:
    for mark in _MARKS:
        try:
            if os.getxattr(directory, mark) == b"1":
                return True
        except OSError:
            continue
    return False


# -- making --------------------------------------------------------------------------------------


def make(slots: int, cpu_percent: int, daemon_pid: int) -> Grove:
    """Make slots for children, and put daemon and launcher into a leaf of their own if need be.

    cpu_percent is the share of one processor that a child may use; 0: no limit. Removes what an
    earlier daemon left behind. Raises NoCgroupsError if no hierarchy at all can be used.
    """
    try:
        places, missing = find_places()
    except (OSError, ValueError) as error:
        raise NoCgroupsError(f"the cgroups of this process cannot be found: {error}") from error
    if not cpu_percent:
        places = _without_cpu(places)
    trees = []
    problems = [missing] if missing else []
    for place in places:
        try:
            trees.append(_plant(place, slots, cpu_percent, daemon_pid))
        except OSError as error:
            problems.append(f"{', '.join(sorted(place.controllers))}: {error}")
    covered = frozenset[str]().union(*(tree.controllers for tree in trees))
    if not covered & _NEEDED:
        raise NoCgroupsError("; ".join(problems))
    return Grove(tuple(trees), slots, "; ".join(problems) if _NEEDED - covered else "")


def _without_cpu(places: tuple[Place, ...]) -> tuple[Place, ...]:
    kept = (Place(place.version, place.directory, place.controllers - {"cpu"}) for place in places)
    return tuple(place for place in kept if place.controllers)


def _plant(place: Place, slots: int, cpu_percent: int, daemon_pid: int) -> Tree:
    sweep(place.directory)
    if place.version == 2:
        _move_to_leaf(place.directory, daemon_pid)
        _enable(place.directory, place.controllers)
    directory, descriptor = _make_tree(place.directory)
    if place.version == 2:
        _enable(directory, place.controllers)
    joining = []
    for number in range(slots):
        slot = directory / str(number)
        slot.mkdir(mode=0o700)
        _set_fixed_limits(slot, place, cpu_percent)
        if place.version == 2:
            joining.append(os.open(slot / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    return Tree(place.version, place.controllers, directory, descriptor, tuple(joining))


def _make_tree(base: Path) -> tuple[Path, int]:
    """Make and lock the directory of all slots; the lock is held by whoever has the descriptor."""
    for attempt in range(_ATTEMPTS):
        directory = base / f"{_TREE}{os.getpid()}-{attempt}"
        directory.mkdir(mode=0o700)
        descriptor = -1
        # Another daemon that starts may take it for one that was left behind.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if directory.exists():
                return directory, descriptor
        if descriptor >= 0:
            os.close(descriptor)
    raise OSError(0, f"{base}: others sweep away what is made there")


def _move_to_leaf(directory: Path, daemon_pid: int) -> None:
    """Make room for controllers: on v2 a cgroup that has them for others has no processes."""
    if _is_root(directory) and not (directory / "cgroup.type").exists():
        return  # the real root is exempt
    leaf = directory / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (daemon_pid, os.getpid()):
        (leaf / "cgroup.procs").write_text(str(pid), "ascii")


def _enable(directory: Path, controllers: frozenset[str]) -> None:
    text = " ".join(f"+{controller}" for controller in sorted(controllers))
    (directory / "cgroup.subtree_control").write_text(text, "ascii")


def _set_fixed_limits(slot: Path, place: Place, cpu_percent: int) -> None:
    """Set what is the same for every child. Files that the kernel lacks are left out: swap is
    accounted for only if it was so configured. But not those of the processor's share: that was
    asked for."""
    quota = _CPU_PERIOD_US * cpu_percent // 100
    fixed: dict[str, str] = {}
    if place.version == 2:
        fixed |= {"memory.swap.max": "0", "memory.oom.group": "1"}
        fixed |= {"cpu.max": f"{quota} {_CPU_PERIOD_US}"} if cpu_percent else {}
    else:
        fixed |= {"memory.swappiness": "0"}
        fixed |= {"cpu.cfs_period_us": str(_CPU_PERIOD_US)} if cpu_percent else {}
        fixed |= {"cpu.cfs_quota_us": str(quota)} if cpu_percent else {}
    for name, value in fixed.items():
        controller = name.split(".")[0]
        if controller in place.controllers and (controller == "cpu" or (slot / name).exists()):
            (slot / name).write_text(value, "ascii")


# -- removing ------------------------------------------------------------------------------------


def sweep(directory: Path) -> None:
    """Remove the trees of daemons that are gone; those of others are locked, and stay."""
    for tree in directory.glob(f"{_TREE}*"):
        descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(tree, time.monotonic())
        except OSError:
            continue
        finally:
            os.close(descriptor)


def remove(grove: Grove) -> None:
    """Remove the trees. Every child must be dead or dying; what does not die in time stays."""
    deadline = time.monotonic() + _REMOVAL_TIMEOUT_S
    for tree in grove.trees:
        try:
            _remove(tree.directory, deadline)
        except OSError:
            continue  # the next daemon sweeps it


def _remove(tree: Path, deadline: float) -> None:
    for slot in tree.iterdir():
        if slot.is_dir():
            _remove_directory(slot, deadline)
    _remove_directory(tree, deadline)


def _remove_directory(directory: Path, deadline: float) -> None:
    while True:
        try:
            directory.rmdir()
        except OSError:
            # Busy for as long as a process is in it, and for a moment after its end.
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return
