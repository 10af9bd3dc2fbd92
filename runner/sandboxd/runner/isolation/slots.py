"""The zygote's cgroup slots: one for each child, used again when the child is gone.

A slot was made by the launcher (see cgroups.py). Taking one costs no mkdir: the limits are written
if they differ from those of the child before, and the child joins by itself. Joining costs 25 to
50 us a hierarchy on v1, where a single thread can move itself. On v2 the kernel first waits for
all processors (synchronize_rcu) unless somebody did so a moment ago: 30 us in a burst, 8 to 14 ms
on an idle machine, asleep. The pool forks ahead of need, so that calls do not wait for it; mounting
cgroup v2 with favordynmods makes it cheap. CLONE_INTO_CGROUP would wait for nobody, but where the
hierarchy is mounted with nsdelegate, as systemd does, the kernel refuses it: the zygote's cgroup
namespace begins at its own leaf, and the slots lie beside that. A cgroup.procs that was opened
before the namespace was entered is judged as of then.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Final

from sandboxd.runner.isolation.cgroups import Grove, Tree
from sandboxd.runner.isolation.layers import NotInForceError

#: Beside what a child may commit and what its memory files may hold: the interpreter's and the
#: engine's own pages as far as they are charged to it, page tables, kernel memory.
MEMORY_SLACK_BYTES: Final = 64 << 20
_READ_BYTES: Final = 64 * 1024
#: v1 lets one thread move itself without stopping the forks of the whole machine; v2 does not.
_MEMBERS: Final = {1: "tasks", 2: "cgroup.procs"}
_KILLED_FOR_MEMORY: Final = {1: "memory.oom_control", 2: "memory.events"}


@dataclass(slots=True, eq=False)
class Slot:
    """One slot in every hierarchy. The zygote makes it; the child joins it."""

    number: int
    trees: tuple[Tree, ...]
    missing: str
    limits: tuple[int, int] = (0, 0)
    kills: int = 0

    def join(self) -> None:
        """Move this process, which has one thread, into the slot."""
        for tree in self.trees:
            if tree.joining:
                os.write(tree.joining[self.number], b"0")
                continue
            members = self._open(tree, _MEMBERS[tree.version], os.O_WRONLY)
            try:
                os.write(members, b"0")
            finally:
                os.close(members)

    def verify_joined(self) -> str:
        """Check that this process is in the slot, alone; return what was checked."""
        for tree in self.trees:
            members = self.members(tree)
            if members != [os.getpid()]:
                raise NotInForceError(f"the processes {members} are in the cgroup")
        covered = sorted(frozenset[str]().union(*(tree.controllers for tree in self.trees)))
        text = f"alone in a cgroup with {', '.join(covered)}"
        if self.missing:
            raise NotInForceError(f"{text}, but {self.missing}")
        memory, processes = self.limits
        return f"{text}: {memory >> 20} MiB, {processes} tasks"

    def set_limits(self, memory_bytes: int, processes: int) -> None:
        """Set what the next child may use, if it differs from the one before."""
        if self.limits == (memory_bytes, processes):
            return
        for tree in self.trees:
            if "memory" in tree.controllers:
                self._limit_memory(tree, memory_bytes)
            if "pids" in tree.controllers:
                self._write(tree, "pids.max", processes)
        self.limits = (memory_bytes, processes)

    def _limit_memory(self, tree: Tree, memory_bytes: int) -> None:
        if tree.version == 2:
            self._write(tree, "memory.max", memory_bytes)
            return
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        # Never may the limit without swap be above the one with it.
        if memory_bytes > self.limits[0] > 0:
            names.reverse()
        for name in names:
            try:
                self._write(tree, name, memory_bytes)
            except FileNotFoundError:
                continue  # this kernel does not account for swap

    def members(self, tree: Tree) -> list[int]:
        """The processes in the slot, as this process's PID namespace sees them."""
        return [int(word) for word in self._read(tree, _MEMBERS[tree.version]).split()]

    def empty(self) -> bool:
        """Kill whatever is left in the slot; return True if nothing is."""
        left = False
        for tree in self.trees:
            members = self.members(tree)
            left = left or bool(members)
            if members and tree.version == 2:
                self._write(tree, "cgroup.kill", 1)
                continue
            for pid in members:
                # 0: a process outside this PID namespace, which cannot be named.
                if pid > 0:
                    _kill(pid)
        return not left

    def count_kills(self) -> int:
        """How many processes the kernel has killed here for lack of memory since the last look."""
        for tree in self.trees:
            if "memory" not in tree.controllers:
                continue
            words = self._read(tree, _KILLED_FOR_MEMORY[tree.version]).split()
            kills = int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words else 0
            new, self.kills = kills - self.kills, kills
            return new
        return 0

    def _open(self, tree: Tree, name: str, flags: int) -> int:
        return os.open(f"{self.number}/{name}", flags | os.O_CLOEXEC, dir_fd=tree.descriptor)

    def _read(self, tree: Tree, name: str) -> bytes:
        descriptor = self._open(tree, name, os.O_RDONLY)
        try:
            return os.read(descriptor, _READ_BYTES)
        finally:
            os.close(descriptor)

    def _write(self, tree: Tree, name: str, value: int) -> None:
        descriptor = self._open(tree, name, os.O_WRONLY)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)


class Slots:
    """All slots of a zygote. `threads` is how many tasks a child may have."""

    def __init__(self, grove: Grove, threads: int) -> None:
        self._threads = threads
        self._free = [Slot(number, grove.trees, grove.missing) for number in range(grove.slots)]
        # Those of an earlier zygote may have something left in them.
        self._draining: list[Slot] = []

    def take(self, memory_bytes: int) -> Slot:
        """Return an empty slot with its limits set: memory, and some slack for the rest of a
        process. Raises OSError if there is none."""
        self._recover()
        while self._free:
            slot = self._free.pop()
            if slot.empty():
                if slot.limits == (0, 0):
                    slot.count_kills()  # an earlier zygote's
                slot.set_limits(memory_bytes + MEMORY_SLACK_BYTES, self._threads)
                return slot
            self._draining.append(slot)
        raise OSError(0, "every cgroup slot is in use")

    def give_back(self, slot: Slot, status: int) -> bool:
        """Take back the slot of a child that was reaped; True if it was killed for its memory."""
        killed = status == -signal.SIGKILL and slot.count_kills() > 0
        (self._free if slot.empty() else self._draining).append(slot)
        return killed

    def _recover(self) -> None:
        """Look again at slots that were not empty."""
        if not self._draining:
            return
        waiting, self._draining = self._draining, []
        for slot in waiting:
            (self._free if slot.empty() else self._draining).append(slot)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
