"""Client of a nursery: what tests use to run a scenario in a forked, locked-down child."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
#: User and group id that a nursery takes when root asks for an ordinary user.
ORDINARY_USER = 65533
_length = struct.Struct("=I")


@dataclass(frozen=True)
class Outcome:
    """How a child ended: minus a signal or an exit code, and what it reported, if anything."""

    status: int
    report: tuple[Any, ...] | None

    @property
    def value(self) -> Any:
        assert self.status == 0, self
        assert self.report is not None, self
        assert self.report[0] == "returned", self
        return self.report[1]

    @property
    def killed_by(self) -> str:
        assert self.status < 0, self
        return signal.Signals(-self.status).name

    @property
    def failed_layer(self) -> str:
        assert self.report is not None, self
        assert self.report[:2] == ("raised", "IsolationError"), self
        return str(self.report[2])


class Nursery:
    """Client of one nursery process."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        self._channel = ours
        environment = os.environ | {"TOKIO_WORKER_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.isolation.nursery", mode, str(theirs.fileno())],
            cwd=_ROOT,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        self.greeting: tuple[str, Any] = self._receive()

    def run(self, scenario: str, /, **arguments: Any) -> Outcome:
        body = pickle.dumps((scenario, arguments))
        self._channel.sendall(_length.pack(len(body)) + body)
        return Outcome(*self._receive())

    def close(self) -> None:
        self._channel.close()
        self._process.wait(10)

    def _receive(self) -> Any:
        header = self._channel.recv(_length.size, socket.MSG_WAITALL)
        assert len(header) == _length.size, "the nursery has died"
        (size,) = _length.unpack(header)
        return pickle.loads(self._channel.recv(size, socket.MSG_WAITALL))
