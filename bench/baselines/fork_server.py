"""A process like the zygote, preloaded and in namespaces of its own, that forks children that end.

Each line on standard input is a number of seconds; the answer is a line with the children per
second that it forked, saw end, and reaped, one after the other.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from sandboxd.runner import engine, preload
from sandboxd.runner.isolation import credentials, libffi, memfd, namespaces

READY = "ready"


def main() -> None:
    """Serve until end of file."""
    layer = namespaces.unshare(required=False)
    if layer.active and (inner := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
    preload.preload()
    engine.build_engines()
    libffi.find_writable_code()
    if layer.active:
        memfd.refuse_executable(required=False)
        namespaces.enter_empty_root(required=True)
    credentials.limit_zygote(required=True)
    gc.collect()
    gc.freeze()
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
