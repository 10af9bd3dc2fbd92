"""A long-lived Python process that does a claim's work when told to.

    python peer.py WORK VARIANT INPUT [serve]

VARIANT is `plain` or `builtin`. Lines in and out are those of guests/claim.h. Imports are few: the
start of a process is timed as well.
"""

from __future__ import annotations

import importlib
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def serve(work: Callable[[bytes], bytes], data: bytes) -> None:
    """Answer each line of standard input with one of standard output."""
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "run":
            print(timed(work, data, int(arguments[0])), flush=True)
        else:
            print(work(data).hex(), flush=True)


def timed(work: Callable[[bytes], bytes], data: bytes, times: int) -> int:
    """Do the work so many times; return how many nanoseconds that took."""
    start = time.perf_counter_ns()
    for _ in range(times):
        work(data)
    return time.perf_counter_ns() - start


def main() -> None:
    """Read the arguments and either serve, or answer once."""
    name, variant, path, *mode = sys.argv[1:]
    work = getattr(importlib.import_module(name), variant)  # from the folder of this file
    with open(path, "rb") as file:
        data = file.read()
    if mode:
        serve(work, data)
    else:
        print(work(data).hex())


if __name__ == "__main__":
    main()
