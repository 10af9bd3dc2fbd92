"""A byte to a process that sleeps, and back: what two switches of process cost on this machine.

    python -m bench.profile.ping_pong FD

answers each byte on the socket FD, until its end.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time

from bench.stage import ROOT


def round_trip_s(seconds: float) -> float:
    """Return the median of round trips, one after the other, in seconds."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        answering = subprocess.Popen(
            [sys.executable, "-m", "bench.profile.ping_pong", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
        theirs.close()
        try:
            _exchange(ours.fileno())  # it has started
            times: list[float] = []
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end or not times:
                _exchange(ours.fileno())
                times.append(time.perf_counter() - start)
        finally:
            ours.close()
            answering.wait()
    return statistics.median(times)


def _exchange(fd: int) -> None:
    os.write(fd, b"?")
    if not os.read(fd, 1):
        raise RuntimeError("the other process has ended")


def main() -> None:
    """Answer."""
    fd = int(sys.argv[1])
    while os.read(fd, 1):
        os.write(fd, b"!")


if __name__ == "__main__":
    main()
