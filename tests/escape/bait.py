"""The bait: a process of its own that stands for the supervisor and for the rest of the host.

Run as a module with a directory and a user id. It prints what it holds as JSON, then serves until
its standard input ends: every listener says the secret to whoever reaches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Final

from tests.escape import native
from tests.escape.field import SECRET, Bait

from sandboxd.runner.isolation import kernel

_MEMORY: Final = ctypes.create_string_buffer(SECRET)
_HEARTBEAT_S: Final = 0.01
_PR_SET_PTRACER: Final = 0x59616D61
_PR_SET_PTRACER_ANY: Final = 0xFFFFFFFFFFFFFFFF
_USER_KEYRING: Final = 0xFFFFFFFC  # KEY_SPEC_USER_KEYRING, -4
_IPC_CREAT: Final = 0o1000
_IPC_RMID: Final = 0
_KEYCTL_UNLINK: Final = 9
_NO_KEY: Final = 0


def become(uid: int) -> None:
    """Be this user from now on, as if started by it; 0 or the present one changes nothing."""
    if uid != os.geteuid():
        os.setgroups(())
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # Changing ids hides /proc/self from its own new owner.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


def let_anybody_trace() -> None:
    """Take Yama, a wall of some hosts that is none of ours, out of the way."""
    with contextlib.suppress(OSError):
        kernel.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY)


def _unless_refused(name: str, *arguments: int) -> int:
    try:
        return native.call(name, *arguments)
    except OSError:
        return _NO_KEY


def _take_back(bait: Bait) -> None:
    """Remove what would outlive this process."""
    key = bait.shm_key
    native.call("shmctl", native.call("shmget", key, 0, 0), _IPC_RMID, 0)
    native.call("semctl", native.call("semget", key, 0, 0), 0, _IPC_RMID, 0)
    native.call("msgctl", native.call("msgget", key, 0), _IPC_RMID, 0)
    name, keep = native.text(bait.queue.encode())
    _unless_refused("mq_unlink", name)
    del keep
    if bait.key_serial != _NO_KEY:
        _unless_refused("keyctl", _KEYCTL_UNLINK, bait.key_serial, _USER_KEYRING)


def _leave_ipc(key: int, queue: str) -> int:
    """Leave the secret in shared memory, a message queue, and the user's keyring."""
    segment = native.call("shmget", key, native.PAGE, _IPC_CREAT | 0o600)
    address = native.call("shmat", segment, 0, 0)
    ctypes.memmove(address, SECRET, len(SECRET))
    native.call("semget", key, 1, _IPC_CREAT | 0o600)
    messages = native.call("msgget", key, _IPC_CREAT | 0o600)
    message = ctypes.create_string_buffer((1).to_bytes(8, "little") + SECRET)
    for _ in range(64):
        native.call("msgsnd", messages, ctypes.addressof(message), len(SECRET), 0)
    name, keep_name = native.text(queue.encode())
    _unless_refused("mq_open", name, os.O_RDWR | os.O_CREAT, 0o600, 0)
    kind, keep_kind = native.text(b"user")
    label, keep_label = native.text(b"sandboxd-escape")
    payload, keep_payload = native.text(SECRET)
    serial = _unless_refused("add_key", kind, label, payload, len(SECRET), _USER_KEYRING)
    del keep_name, keep_kind, keep_label, keep_payload
    return serial


def _handle(path: str) -> str:
    """The file handle of a path, as hex, or nothing where the file system has none."""
    buffer = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132), 136)
    mount = ctypes.c_int(0)
    name, keep = native.text(path.encode())
    at_fdcwd = (1 << 64) - 100
    try:
        native.call(
            *("name_to_handle_at", at_fdcwd, name),
            *(ctypes.addressof(buffer), ctypes.addressof(mount), 0),
        )
    except OSError:
        return ""
    del keep
    return buffer.raw.hex()


class _Host:
    """Everything that listens."""

    def __init__(self, directory: str) -> None:
        self.ended = False
        self.selector = selectors.DefaultSelector()
        self.udp = self._answer_datagrams(socket.AF_INET, ("127.0.0.1", 0))
        self._answer_datagrams(socket.AF_UNIX, f"{directory}/datagrams")
        os.chmod(f"{directory}/datagrams", 0o600)
        self._answer_datagrams(socket.AF_UNIX, f"\0sandboxd-escape-{os.getpid()}-datagrams")
        self.tcp4 = self._listen(socket.create_server(("127.0.0.1", 0)))
        self.tcp6 = self.udp6 = 0
        with contextlib.suppress(OSError):
            self.tcp6 = self._listen(socket.create_server(("::1", 0), family=socket.AF_INET6))
            self.udp6 = self._answer_datagrams(socket.AF_INET6, ("::1", 0)).getsockname()[1]
        self.abstract = f"sandboxd-escape-{os.getpid()}"
        for address in (f"{directory}/socket", f"\0{self.abstract}"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(address)
            server.listen(64)
            self._listen(server)
        os.chmod(f"{directory}/socket", 0o600)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._end)

    def _listen(self, server: socket.socket) -> int:
        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.send(SECRET)

        self.selector.register(server, selectors.EVENT_READ, answer)
        return 0 if server.family == socket.AF_UNIX else int(server.getsockname()[1])

    def _end(self) -> None:
        self.ended = True

    def _answer_datagrams(self, family: int, address: str | tuple[str, int]) -> socket.socket:
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind(address)

        def answer() -> None:
            with contextlib.suppress(OSError):
                _, sender = server.recvfrom(64)
                if sender and sender != server.getsockname():
                    server.sendto(SECRET, sender)

        self.selector.register(server, selectors.EVENT_READ, answer)
        return server

    def serve(self) -> None:
        while not self.ended:
            for key, _ in self.selector.select(_HEARTBEAT_S):
                key.data()
            # For those who listen in on the loopback interface.
            self.udp.sendto(SECRET, self.udp.getsockname())


def _lay_out(directory: str) -> tuple[_Host, Bait]:
    secret = f"{directory}/secret"
    fd = os.open(secret, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, SECRET)
    os.mkdir(f"{directory}/private", 0o700)
    host = _Host(directory)
    handle = _handle(secret)
    queue, key = f"sandboxd-escape-{os.getpid()}", 0x5D000000 | os.getpid() & 0xFFFFFF
    bait = Bait(
        pid=os.getpid(),
        memory=ctypes.addressof(_MEMORY),
        fd=fd,
        directory=directory,
        uid=os.geteuid(),
        tcp4=host.tcp4,
        tcp6=host.tcp6,
        udp=host.udp.getsockname()[1],
        udp6=host.udp6,
        abstract=host.abstract,
        shm_key=key,
        queue=queue,
        key_serial=_leave_ipc(key, queue),
        interfaces=sorted(name for _, name in socket.if_nameindex()),
        hostname=os.uname().nodename,
        uts=os.stat("/proc/self/ns/uts").st_ino,
        piped_cores=Path("/proc/sys/kernel/core_pattern").read_text("utf-8").startswith("|"),
        handle=handle,
    )
    return host, bait


def main() -> None:
    directory, uid = sys.argv[1], int(sys.argv[2])
    become(uid)
    let_anybody_trace()
    host, bait = _lay_out(directory)
    try:
        print(json.dumps(dataclasses.asdict(bait)), flush=True)
        host.serve()
    finally:
        _take_back(bait)


if __name__ == "__main__":
    main()
