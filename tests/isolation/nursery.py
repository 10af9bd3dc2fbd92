"""A small zygote for tests: preloads the engine, takes its place, and forks a child per request.

Run as a module with a mode and the number of an inherited socket. Requests and answers are
pickles with a 4-byte length. Modes:

root    namespaces and empty root, entered as root; children take a user id of their own
user    the same as an ordinary user, in a user namespace
plain   neither namespaces nor an empty root; whoever runs the tests
ordinary  the same as an ordinary user
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.isolation import attacks, child, holdings, rows, scenarios, work
from tests.isolation.nursery_client import ORDINARY_USER

from sandboxd.runner.isolation import kernel, libffi, namespaces
from sandboxd.runner.isolation.layers import IsolationError
from sandboxd.runner.isolation.policy import INTERRUPT_FD, SOCKET_FD

_length = struct.Struct("=I")


def send(channel: socket.socket, message: object) -> None:
    body = pickle.dumps(message)
    channel.sendall(_length.pack(len(body)) + body)


def receive(channel: socket.socket) -> object:
    header = channel.recv(_length.size, socket.MSG_WAITALL)
    if len(header) < _length.size:
        raise EOFError
    (size,) = _length.unpack(header)
    return pickle.loads(channel.recv(size, socket.MSG_WAITALL))


def become_ordinary_user() -> None:
    os.setgroups(())
    os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    # As the launcher is. Changing ids does it, too, on most hosts.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def scenario(name: str) -> Callable[..., object]:
    for module in (attacks, holdings, rows, scenarios, work):
        if name in vars(module):
            found: Callable[..., object] = vars(module)[name]
            return found
    raise LookupError(name)


def run_child(name: str, arguments: dict[str, object], result_fd: int) -> None:
    """The child: runs a scenario and reports what it returned or raised."""
    try:
        try:
            answer: tuple[object, ...] = ("returned", scenario(name)(**arguments))
        except IsolationError as error:
            answer = ("raised", "IsolationError", error.layer, error.cause)
        except Exception as error:  # noqa: BLE001 - reported to the test
            answer = ("raised", type(error).__name__, str(error), traceback.format_exc())
        os.write(result_fd, pickle.dumps(answer))
    finally:
        os._exit(0)


def answer_request(name: str, arguments: dict[str, object]) -> tuple[int, object]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        # Where a runner has its socket: a sealed child can write nowhere else.
        os.dup2(writing, SOCKET_FD)
        os.dup2(writing, INTERRUPT_FD)
        child.RESULT_FD = SOCKET_FD
        run_child(name, arguments, SOCKET_FD)
    os.close(writing)
    with open(reading, "rb") as result:
        body = result.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), pickle.loads(body) if body else None


def serve(channel: socket.socket) -> None:
    while True:
        try:
            request = receive(channel)
        except EOFError:
            return
        assert isinstance(request, tuple)
        send(channel, answer_request(*request))


def main() -> None:
    mode, number = sys.argv[1], int(sys.argv[2])
    channel = socket.socket(fileno=number)
    child.MODE = mode
    child.preload()
    if mode == "root":
        os.setgroups((1, 2))
    if mode in {"user", "ordinary"} and os.geteuid() == 0:
        become_ordinary_user()
    if mode in {"plain", "ordinary"}:
        libffi.find_writable_code()
        send(channel, ("ready", []))
        serve(channel)
        return
    try:
        states = [namespaces.unshare(required=True)]
    except IsolationError as error:
        send(channel, ("refused", str(error)))
        return
    pid = os.fork()
    if pid == 0:
        # The outer process is all that the tests can reach: end with it.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        libffi.find_writable_code()
        for name in ("uid_map", "gid_map", "setgroups"):
            child.USER_MAPS[name] = Path("/proc/self", name).read_text("utf-8")
        child.USER_MAPS["user"] = str(os.geteuid())
        states.append(namespaces.enter_empty_root(required=True))
        send(channel, ("ready", states))
        serve(channel)
        os._exit(0)
    channel.close()
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
