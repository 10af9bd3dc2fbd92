"""The field of an attack: what there is to take, and how an attack is written down.

An attack is a function that raises OSError if it fails and returns if it had its effect on the
thing it went for; where a call may succeed on something else, it raises ContainedError. A generator
prepares, before any wall stands, what comes before its `yield`.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

#: What the attacks look for, wherever it lies.
SECRET: Final = b"sandboxd-escape-canary"
#: Signal that a process ignores unless it asks for it: harmless to send.
SIGURG: Final = 23

#: Filled in a victim only, after the fork: the same address in all children of one zygote.
SIBLING_MEMORY: Final = ctypes.create_string_buffer(64)


def sibling_address(pid: int) -> str:
    """Abstract address on which a sibling listens; each runner's own, so a guess finds it."""
    return f"\0sandboxd-escape-sibling-{pid}"


def listen_as_sibling() -> socket.socket:
    """A listener of the calling process, which takes connections without being asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sibling_address(os.getpid()))
    listener.listen()
    return listener


@dataclass(frozen=True)
class Bait:
    """A process like the supervisor, under the user id that started the zygote, and its things."""

    pid: int
    #: Address in its memory, and number of a descriptor, of the secret.
    memory: int
    fd: int
    #: A directory that anybody may write to; in it a file, a directory and a socket of mode 0600.
    directory: str
    uid: int
    tcp4: int
    tcp6: int
    udp: int
    udp6: int
    abstract: str
    shm_key: int
    queue: str
    key_serial: int
    interfaces: list[str]
    hostname: str
    #: Inode of its UTS namespace.
    uts: int
    #: Whether a program of the host takes the core files of processes.
    piped_cores: bool
    #: File handle of the file, as hex; empty where the file system has none.
    handle: str

    @property
    def file(self) -> str:
        """Holds the secret, mode 0600."""
        return f"{self.directory}/secret"

    @property
    def socket(self) -> str:
        """A unix socket of mode 0600 that says the secret."""
        return f"{self.directory}/socket"


@dataclass
class Field:
    """What one attacker knows: the bait, a sibling runner if the attack has one, its zygote."""

    bait: Bait
    sibling: int
    inherited: dict[str, int]
    code_pages: tuple[tuple[int, int], ...]
    #: Processes and threads that RLIMIT_NPROC leaves to the attacker's user id.
    processes: int
    #: The attacker's own end of a socket to the zygote, as a runner has one to the supervisor.
    channel: socket.socket


Strike = Callable[[Field], Iterator[None] | None]


@dataclass(frozen=True)
class Attack:
    """One attack and the single walls that must stop it, each with its one right reason.

    Expectations are by letter of a wall (see walls.py); the reasons are errno and signal names, or
    "contained". A wall that is not listed must let the attack through.
    """

    name: str
    group: str
    strike: Strike
    root: dict[str, frozenset[str]]
    user: dict[str, frozenset[str]]
    #: Landlock ABI from which the listed reason of L holds.
    landlock_abi: int = 1
    sibling: bool = False

    def expected(self, identity: str) -> dict[str, frozenset[str]]:
        """The walls that must stop it, for "root" or "user"."""
        return self.root if identity == "root" else self.user

    def run(self, field_: Field, lock: Callable[[], Any]) -> None:
        """Prepare, have the walls put up, and strike."""
        if not inspect.isgeneratorfunction(self.strike):
            lock()
            self.strike(field_)
            return
        steps = self.strike(field_)
        assert steps is not None
        next(steps)
        lock()
        next(steps, None)


CATALOGUE: Final[dict[str, Attack]] = {}


def _parsed(text: str) -> dict[str, frozenset[str]]:
    pairs = (item.split(":") for item in text.split())
    return {letter: frozenset(reasons.split("|")) for letter, reasons in pairs}


def attack(
    name: str,
    root: str,
    user: str | None = None,
    *,
    landlock_abi: int = 1,
    sibling: bool = False,
) -> Callable[[Strike], Strike]:
    """Enter a function into the catalogue.

    `root` and `user` are expectations like "U:EACCES N:ENOENT S:SIGSYS|EACCES". An ordinary user
    has no other user id to change to: without `user`, what holds for root holds but for U.
    """

    def enter(strike: Strike) -> Strike:
        assert name not in CATALOGUE, name
        expected = _parsed(root)
        ordinary = (
            {k: v for k, v in expected.items() if k not in {"U", "U+R"}}
            if user is None
            else _parsed(user)
        )
        group = strike.__module__.rpartition(".")[2].removeprefix("attacks_")
        CATALOGUE[name] = Attack(*(name, group, strike, expected, ordinary, landlock_abi, sibling))
        return strike

    return enter
