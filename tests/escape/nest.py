"""A zygote for attackers: preloaded like the real one, it forks an attacker per line of input.

Run as a module with "plain" or "namespaced", a user id, and the bait as JSON. With "namespaced" it
enters the real namespaces and the real empty root first. A request is a JSON pair of attack and
column; the answer is one outcome as a JSON string.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import termios
from collections.abc import Iterator
from typing import Final

from tests.escape import attacks, queues, walls
from tests.escape.bait import become, let_anybody_trace
from tests.escape.field import (
    CATALOGUE,
    SECRET,
    SIBLING_MEMORY,
    Attack,
    Bait,
    Field,
    listen_as_sibling,
)
from tests.escape.native import ContainedError, VoidError

from sandboxd.runner import preload
from sandboxd.runner.isolation import cgroups, kernel, libffi, memfd, namespaces, passing, slots
from sandboxd.runner.isolation.layers import IsolationError
from sandboxd.runner.isolation.lockdown import ChildPolicy
from sandboxd.runner.isolation.policy import INTERRUPT_FD, LOOP_FDS, SOCKET_FD

assert attacks.GROUPS  # fills the catalogue

WORKS: Final = "works"
#: Begins an outcome that is no outcome: the test itself failed.
BROKEN: Final = "broken: "
_SLOT_OF_ATTACKER, _SLOT_OF_SIBLING = 1_900_000_001, 1_900_000_002
#: Ends an attack that hangs; the slowest takes half a second, on a processor that is not emulated.
_LIMIT_S: Final = int(os.environ.get("SANDBOXD_ESCAPE_LIMIT_S", "10"))
_TRY_AGAIN: Final = 77
_PR_SET_CHILD_SUBREAPER: Final = 36
_DATA_BYTES, _SHARED_BYTES = 256 << 20, 16 << 20
#: Tasks that a cgroup allows, and cgroups: those of an attacker, a sibling, and their successors
#: while the kernel still clears up.
_THREADS, _SLOTS = 8, 6
#: Processes and threads that an attacker may have beside those that its user has anyway.
_PROCESSES: Final = 16
#: Numbers from here on are no runner's.
_HIGH: Final = 32


class Nest:
    """The zygote. Forks, waits, reaps."""

    def __init__(self, namespaced: bool, bait: Bait, grove: cgroups.Grove | None) -> None:
        self._namespaced = namespaced
        self._slots = None if grove is None else slots.Slots(grove, _THREADS)
        self._bait = bait
        self._pages = libffi.find_writable_code()
        self._processes = _PROCESSES + _tasks_of(os.geteuid())
        self._inherited = self._inherit()
        if self._namespaced:
            memfd.refuse_executable(required=False)
            namespaces.enter_empty_root(required=True)
        gc.freeze()

    def _inherit(self) -> dict[str, int]:
        """What a careless zygote leaves open, and a controlling terminal."""
        directory = self._bait.directory
        opened = {
            "file": os.open(f"{directory}/secret", os.O_RDWR),
            "directory": os.open(directory, os.O_RDONLY | os.O_DIRECTORY),
        }
        inherited = {name: fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for name, fd in opened.items()}
        for fd in opened.values():
            os.close(fd)
        with contextlib.suppress(OSError):
            master, slave = os.openpty()
            # What was typed at the terminal arrives at its reader, not at the one who typed.
            os.set_inheritable(master, False)
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            inherited["terminal"] = slave
        return inherited

    def answer(self, name: str, column: str) -> str:
        """Have one attack made from behind one column's walls."""
        attack = CATALOGUE[name]
        with self._cgroup(column) as cgroup, self._sibling(attack, column) as sibling:
            status, word = _TRY_AGAIN, ""
            while status == _TRY_AGAIN:
                status, word = self._fork_attacker(attack, column, sibling, cgroup)
        _reap_all()
        return _outcome(status, word)

    @contextlib.contextmanager
    def _cgroup(self, column: str) -> Iterator[slots.Slot | str]:
        if self._slots is None or column not in {"C", walls.ALL}:
            yield "not for this attacker"
            return
        cgroup = self._slots.take(_DATA_BYTES + _SHARED_BYTES)
        try:
            yield cgroup
        finally:
            _reap_all()
            self._slots.give_back(cgroup, 0)

    @contextlib.contextmanager
    def _sibling(self, attack: Attack, column: str) -> Iterator[int]:
        """Another runner behind the same walls, if the attack goes for one."""
        if not attack.sibling:
            yield 0
            return
        with self._cgroup(column) as cgroup:
            pid, life = self._hatch_sibling(column, cgroup)
            try:
                yield pid
            finally:
                os.close(life)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _policy(self, keep: frozenset[int], uid: int, cgroup: slots.Slot | str) -> ChildPolicy:
        return ChildPolicy(
            profile="runner",
            keep_fds=keep,
            uid=uid if os.geteuid() == 0 else 0,
            data_bytes=_DATA_BYTES,
            cpu_seconds=30,
            file_size_bytes=0,
            processes=self._processes,
            parent_pid=os.getppid(),
            writable_code=self._pages,
            cgroup=cgroup,
        )

    def _hatch_sibling(self, column: str, cgroup: slots.Slot | str) -> tuple[int, int]:
        """Fork another runner behind the same walls; it holds the secret until its end."""
        ready, tell_ready = os.pipe()
        wait, life = os.pipe()
        pid = os.fork()
        if pid == 0:
            with _ending():
                os.close(life)
                ctypes.memmove(SIBLING_MEMORY, SECRET, len(SECRET))
                listener = listen_as_sibling()
                os.dup2(tell_ready, SOCKET_FD)
                os.dup2(wait, INTERRUPT_FD)
                keep = frozenset({SOCKET_FD, INTERRUPT_FD, listener.fileno()})
                walls.put_up(column, self._policy(keep, _SLOT_OF_SIBLING, cgroup))
                os.write(SOCKET_FD, b"x")
                os.read(INTERRUPT_FD, 1)
        os.close(wait)
        os.close(tell_ready)
        os.read(ready, 1)
        os.close(ready)
        return pid, life

    def _fork_attacker(
        self, attack: Attack, column: str, sibling: int, cgroup: slots.Slot | str
    ) -> tuple[int, str]:
        # As a runner has one to the supervisor: a socket, not a pipe.
        ours, theirs = socket.socketpair()
        if walls.refuses_descriptors(column):
            passing.refuse_descriptors(ours)
        pid = os.fork()
        if pid == 0:
            with _ending():
                self._attack(attack, column, sibling, cgroup, theirs)
        theirs.close()
        _, status = os.waitpid(pid, 0)
        word = _last_words(ours)
        ours.close()
        queues.remove_of(pid)
        if os.WIFSIGNALED(status) and os.WCOREDUMP(status):
            word = "core"
        return os.waitstatus_to_exitcode(status), word

    def _attack(
        self,
        attack: Attack,
        column: str,
        sibling: int,
        cgroup: slots.Slot | str,
        theirs: socket.socket,
    ) -> None:
        if os.getpid() == self._bait.pid:
            # In a PID namespace numbers come round: this one would meet itself.
            os._exit(_TRY_AGAIN)
        signal.alarm(_LIMIT_S)
        channel = _take_places(theirs)
        place = Field(self._bait, sibling, self._inherited, self._pages, self._processes, channel)
        policy = self._policy(frozenset({SOCKET_FD, INTERRUPT_FD}), _SLOT_OF_ATTACKER, cgroup)
        try:
            attack.run(place, lambda: walls.put_up(column, policy))
            word = WORKS
        except OSError as error:
            word = errno.errorcode.get(error.errno or 0, str(error))
        except ContainedError:
            word = "contained"
        except VoidError as error:
            word = f"void: {error}"
        except IsolationError as error:
            word = f"{BROKEN}{error}"
        os.write(SOCKET_FD, word.encode())
        os._exit(0)


def _keep_places() -> None:
    """Let nothing of the zygote's take the numbers that a runner's descriptors have."""
    reading, writing = os.pipe()
    moved = fcntl.fcntl(reading, fcntl.F_DUPFD, _HIGH)
    os.close(writing)
    os.close(reading)
    for number in (SOCKET_FD, INTERRUPT_FD, *LOOP_FDS):
        os.dup2(moved, number)
    os.close(moved)


def _take_places(theirs: socket.socket) -> socket.socket:
    """Number an attacker's descriptors as a runner's are; what it opens next may be read."""
    os.dup2(theirs.fileno(), SOCKET_FD)
    for number in LOOP_FDS:
        os.close(number)
    return socket.socket(fileno=SOCKET_FD)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Whatever happens in a forked child, it never returns into the zygote's code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the driver reports it
        os.write(2, f"escape: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    finally:
        os._exit(0)


def _outcome(status: int, word: str) -> str:
    """Put a wait status and the attacker's last word into one outcome."""
    if word == "core":
        return WORKS  # the attack was to have one written
    if status < 0:
        return signal.Signals(-status).name
    if status == attacks.EXIT_OF_FOREIGN_PROGRAM:
        return WORKS
    return word or f"{BROKEN}the attacker ended with status {status}"


def _last_words(ours: socket.socket) -> str:
    """All that the attacker has sent; a descriptor in between ends a single receipt."""
    words = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while received := ours.recv(4096, socket.MSG_DONTWAIT):
            words += received
    return words.decode().strip()


def _reap_all() -> None:
    """Collect what attackers left behind."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _tasks_of(uid: int) -> int:
    """Processes and threads of a user, which RLIMIT_NPROC counts."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _make_cgroups(uid: int) -> tuple[cgroups.Grove | None, str]:
    """Cgroups for the attackers, or why there are none."""
    if uid != os.geteuid():
        return None, "an ordinary user has none unless systemd gives it one"
    try:
        return cgroups.make(_SLOTS, 0, os.getpid()), ""
    except cgroups.NoCgroupsError as error:
        return None, str(error)


def _serve(namespaced: bool, bait: Bait, grove: cgroups.Grove | None) -> None:
    nest = Nest(namespaced, bait, grove)
    trees = () if grove is None else grove.trees
    controllers = sorted({name for tree in trees for name in tree.controllers})
    print(json.dumps({"controllers": controllers}), flush=True)
    for line in sys.stdin:
        name, column = json.loads(line)
        print(json.dumps(nest.answer(name, column)), flush=True)


def _serve_in_namespaces(bait: Bait, grove: cgroups.Grove | None) -> None:
    try:
        namespaces.unshare(required=True)
    except IsolationError as error:
        print(json.dumps({"refused": error.cause}), flush=True)
        return
    pid = os.fork()
    if pid == 0:
        with _ending():
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            _serve(True, bait, grove)
    os.waitpid(pid, 0)


def main() -> None:
    mode, uid, bait = sys.argv[1], int(sys.argv[2]), Bait(**json.loads(sys.argv[3]))
    _keep_places()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    preload.preload()
    grove, absence = _make_cgroups(uid)
    become(uid)
    let_anybody_trace()
    kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    print(json.dumps({"cgroups": absence or (grove.missing if grove else "")}), flush=True)
    try:
        if mode == "plain":
            _serve(False, bait, grove)
        else:
            _serve_in_namespaces(bait, grove)
    finally:
        if grove is not None:
            cgroups.remove(grove)


if __name__ == "__main__":
    main()
