"""A zygote whose children are hostile programs: it speaks the zygote's protocol, they do not.

Started by `stage.Stage` in place of the real one. It forks on command and reports pidfds and
exits, as the real one does. A child then runs a script, Python source that came

- from the file named on the command line, before it says anything (none: it says that it is ready);
- in the input of each call, once it has read that call;
- for a compiler, in the module, behind its first eight bytes.

Nothing is locked down here: the children are the tests' own.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import control_pb2, runner_pb2

MAX_PACKET_BYTES = 64 * 1024


class Villain:
    """A child's helpers; its scripts see them by name."""

    def __init__(self, kind: int, fds: list[int]) -> None:
        self.sock = socket.socket(fileno=fds[0])
        self.fds = fds
        self._bound = False
        self._buffer = b""
        is_runner = kind == control_pb2.CHILD_KIND_RUNNER
        self.reply: Any = runner_pb2.RunnerReply if is_runner else runner_pb2.CompilerReply
        self.names: dict[str, Any] = {
            name: getattr(self, name) for name in dir(type(self)) if not name.startswith("_")
        }
        self.names.update(
            os=os, time=time, signal=signal, socket=socket, struct=struct, sock=self.sock,
            fds=fds, call_pb2=call_pb2, runner_pb2=runner_pb2, control_pb2=control_pb2,
        )  # fmt: skip

    def run(self, script: str) -> None:
        exec(script, self.names)

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def frame(self, payload: bytes) -> None:
        self.raw(struct.pack("<I", len(payload)) + payload)

    def say(self, **reply: Any) -> None:
        self.frame(self.reply(**reply).SerializeToString())

    def ready(self) -> None:
        self.say(ready=runner_pb2.Ready())

    def bound(self, **fields: Any) -> None:
        self._bound = True
        self.say(bound=runner_pb2.Bound(**fields))

    def result(self, **fields: Any) -> None:
        if not self._bound:
            self.bound()
        self.say(result=runner_pb2.Result(**fields))

    def answer(self, output: bytes) -> None:
        self.result(completed=call_pb2.Completed(output=output))

    def compiled(self, size: int = 1, **fields: Any) -> None:
        """What an honest compiler says of a module with one function of the bytes convention."""
        i32, i64 = call_pb2.VALUE_TYPE_I32, call_pb2.VALUE_TYPE_I64
        function, memory = call_pb2.EXTERN_KIND_FUNCTION, call_pb2.EXTERN_KIND_MEMORY
        exports = [
            call_pb2.Extern(name="memory", kind=memory),
            call_pb2.Extern(name="alloc", kind=function, params=[i32], results=[i32]),
            call_pb2.Extern(name="f", kind=function, params=[i32, i32], results=[i64]),
        ]
        os.write(self.fds[2], b"x")
        self.say(
            compiled=runner_pb2.Compiled(
                **{"artifact_size_bytes": size, "exports": exports, **fields}
            )
        )

    def pass_descriptors(self, count: int, data: bytes) -> None:
        many = array.array("i", [self.fds[0]] * count)
        self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])

    def outbox(self, lengths: tuple[int, int, int], at: int = 4096, data: bytes = b"") -> None:
        os.pwrite(self.fds[2], data, at)
        os.pwrite(self.fds[2], struct.pack("<QQQ", *lengths), 0)

    def hang(self) -> None:
        while True:
            signal.pause()

    def read_frame(self) -> bytes:
        size = struct.unpack("<I", self._read(4))[0]
        return self._read(size)

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self.sock.recv(1 << 20)
            if not data:
                os._exit(0)
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def be_runner(villain: Villain, at_start: str) -> NoReturn:
    villain.run(at_start)
    villain.read_frame()
    while True:
        command = runner_pb2.RunnerCommand.FromString(villain.read_frame())
        villain.run(command.execute.request.bytes.input.decode())


def be_compiler(villain: Villain) -> NoReturn:
    script = os.pread(villain.fds[1], 1 << 20, 8).decode()
    if not script.startswith("#raw"):
        villain.ready()
        villain.read_frame()
    villain.run(script.partition("\0")[0])
    os._exit(0)


def be_child(request: control_pb2.SpawnRequest, fds: list[int], at_start: str) -> NoReturn:
    try:
        villain = Villain(request.kind, fds)
        if request.kind == control_pb2.CHILD_KIND_RUNNER:
            be_runner(villain, at_start)
        be_compiler(villain)
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        os._exit(0)


def serve(control: socket.socket, script: Path) -> None:
    children: dict[int, tuple[int, int]] = {}  # pidfd: (child id, pid)

    def send(event: control_pb2.ZygoteEvent, fds: list[int]) -> None:
        socket.send_fds(control, [event.SerializeToString()], fds)

    ready = control_pb2.ZygoteReady(engine_version="0.0.0-malicious")
    send(control_pb2.ZygoteEvent(ready=ready), [])
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != control.fileno():
                child_id, pid = children.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                exited = control_pb2.Exited(
                    child_id=child_id, status=os.waitstatus_to_exitcode(status)
                )
                send(control_pb2.ZygoteEvent(exited=exited), [])
                continue
            packet, fds, _, _ = socket.recv_fds(control, MAX_PACKET_BYTES, 8)
            if not packet:
                return
            request = control_pb2.ZygoteCommand.FromString(packet).spawn
            at_start = script.read_text() or "ready()"
            pid = os.fork()
            if pid == 0:
                control.close()
                be_child(request, fds, at_start)
            for passed in fds:
                os.close(passed)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (request.child_id, pid)
            poll.register(pidfd, select.POLLIN)
            spawned = control_pb2.Spawned(child_id=request.child_id)
            send(control_pb2.ZygoteEvent(spawned=spawned), [pidfd])


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(control, Path(sys.argv[2]))
    finally:
        # Children that hang are in this process's group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
