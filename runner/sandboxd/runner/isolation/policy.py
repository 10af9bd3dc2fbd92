"""What one child may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sandboxd.runner.isolation.layers import REQUIRED_DEFAULT, UID

#: What a runner holds has fixed numbers, for the second filter knows descriptors by number: its
#: socket, its interrupt pipe, and what the engine's event loop opens after them (an epoll, a
#: duplicate of it, an eventfd).
SOCKET_FD: Final = 3
INTERRUPT_FD: Final = 4
LOOP_FDS: Final = (5, 6, 7)
#: Address space of a child beyond RLIMIT_DATA, which the engine reserves and does not use: 4 GiB
#: and 64 MiB of guards for the memory of an instance (wasmtime's defaults on 64 bits), twice,
#: for the next instance is made before the last one is gone, and as much again for what libraries
#: map. A page of page tables maps 2 MiB, so this is 32 MiB of page tables.
RESERVED_BYTES: Final = 16 << 30

#: Which system calls: of a compiler, or of a runner whose guest computes only (core), does WASI
#: input and output (runner), or has directories as well (files; no runner has any yet).
Profile = Literal["core", "runner", "files", "compiler"]


class Slot(Protocol):
    """A cgroup that was made for the child; see slots.Slot."""

    def join(self) -> None:
        """Move this process into it."""

    def verify_joined(self) -> str:
        """Check that it is there; return what was checked."""


@dataclass(frozen=True, slots=True)
class ChildPolicy:
    """The lock-down of one child.

    profile: which system calls it may make.
    keep_fds: descriptors that stay open under their numbers; every other one is closed. Standard
        streams that are not kept become empty, unwritable memory files, so that no later
        descriptor takes the number of one.
    moved_fds: descriptors that are kept as number 3, 4, ..., in this order.
    uid: user and group id to take; 0 keeps the present one, which is refused for root.
    data_bytes: RLIMIT_DATA; RLIMIT_AS is RESERVED_BYTES more. cpu_seconds: RLIMIT_CPU.
    file_size_bytes: RLIMIT_FSIZE, 0 for whoever writes no file.
    processes: RLIMIT_NPROC, processes and threads of the user id in its user namespace.
    parent_pid: process id of the parent as the child sees it; 1 under a zygote that is PID 1.
    required: names of the layers that must hold, see layers.REQUIRED_DEFAULT and requires().
    writable_code: answer of libffi.find_writable_code(); empty takes the remembered answer.
    cgroup: the slot to join, or why there is none.
    """

    profile: Profile
    keep_fds: frozenset[int]
    uid: int
    data_bytes: int
    cpu_seconds: int
    file_size_bytes: int
    processes: int
    parent_pid: int
    required: frozenset[str] = REQUIRED_DEFAULT
    writable_code: tuple[tuple[int, int], ...] = ()
    cgroup: Slot | str = "no cgroup was made for this child"
    moved_fds: tuple[int, ...] = ()

    def requires(self, layer: str) -> bool:
        """Whether the layer must hold. Under root a user id must always be taken: no child is root.

        To be asked in the parent.
        """
        must_change_ids = self.uid != 0 or os.geteuid() == 0
        return layer in self.required or (layer == UID and must_change_ids)

    @property
    def open_fds(self) -> frozenset[int]:
        """Numbers of the descriptors that are open afterwards, beside the standard streams."""
        return self.keep_fds.union(range(SOCKET_FD, SOCKET_FD + len(self.moved_fds)))
