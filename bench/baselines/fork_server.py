"""A process like the zygote, preloaded and in namespaces of its own, that forks children that end.

Each line on standard input is a number of seconds; the answer is a line with the children per
second that it forked, saw end, and reaped, one after the other.
"""

from __future__ import annotations

import os
import sys
import time

from bench.baselines import zygote_like

READY = "ready"


def main() -> None:
    """Serve until end of file."""
    zygote_like.become(lambda _: None)
    print(READY, flush=True)
    for line in sys.stdin:
        print(forks_per_second(float(line)), flush=True)


def forks_per_second(seconds: float) -> float:
    """Fork, end, reap, for so long."""
    start = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        count += 1
    return count / elapsed


if __name__ == "__main__":
    main()
