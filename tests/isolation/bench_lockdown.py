"""`make bench-lockdown`: what the lock-down of one runner costs beside a bare fork and exit.

A process like the zygote (engine preloaded, namespaces and empty root entered, capabilities given
up) forks children in turn: one that ends at once, one that locks itself down first. Both are timed
from before the fork to after the reaping, planning included, in one run. Prints the ratio first.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from sandboxd.runner import engine, preload
from sandboxd.runner.isolation import credentials, libffi, lockdown, memfd, namespaces

_MIB = 1 << 20
_SLOTS = 73
_WARM_UP = 10


class Sample(NamedTuple):
    wall_us: float
    cpu_us: float
    faults: float


def fork(planned: Callable[[], Callable[[], object]]) -> Sample:
    """Plan, fork, do it in the child, reap."""
    start = time.perf_counter()
    child = planned()
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    assert status == 0, f"the child ended with {status}"
    return _sample(wall, usage)


def _sample(wall_s: float, usage: resource.struct_rusage) -> Sample:
    return Sample(wall_s * 1e6, (usage.ru_utime + usage.ru_stime) * 1e6, usage.ru_minflt)


class Forker:
    """Plans children as the zygote does: each with the next user id, as root."""

    def __init__(self) -> None:
        self._planner = lockdown.Planner()
        self._count = 0
        self._socket, self._pipe = os.pipe()

    def bare(self) -> Callable[[], object]:
        return lambda: None

    def locked(self) -> Callable[[], object]:
        self._count += 1
        slot = 1_900_000_001 + self._count % _SLOTS
        policy = lockdown.ChildPolicy(
            profile="runner",
            keep_fds=frozenset(),
            moved_fds=(self._socket, self._pipe),
            uid=slot if os.geteuid() == 0 else 0,
            data_bytes=1024 * _MIB,
            cpu_seconds=100,
            file_size_bytes=0,
            processes=1 << 20,
            parent_pid=os.getpid(),
        )
        plan = self._planner.plan(policy)
        return lambda: lockdown.lock_down(policy, plan)


def measure(rounds: int) -> None:
    forker = Forker()
    for _ in range(_WARM_UP + _SLOTS):
        fork(forker.locked)
    bare: list[Sample] = []
    locked: list[Sample] = []
    for _ in range(rounds):
        bare.append(fork(forker.bare))
        locked.append(fork(forker.locked))
    report(bare, locked)


def report(bare: list[Sample], locked: list[Sample]) -> None:
    # The ratio of each pair, taken in the same few milliseconds: other load falls on both.
    pairs = zip(bare, locked, strict=True)
    ratio = statistics.median(two.wall_us / one.wall_us for one, two in pairs)
    print(f"{ratio:.2f}x  lock-down of one runner: fork, lock down, exit against fork, exit")
    for name, samples in (("bare", bare), ("locked down", locked)):
        wall, cpu, faults = (statistics.median(column) for column in zip(*samples, strict=True))
        print(
            f"{name:12} {wall:6.0f} us wall  {cpu:6.0f} us CPU  {faults:4.0f} page faults, median"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    layer = namespaces.unshare(required=False)
    if layer.active and (first := os.fork()):
        os.waitpid(first, 0)
        return
    preload.preload()
    engine.build_engines()
    libffi.find_writable_code()
    if layer.active:
        memfd.refuse_executable(required=False)
        namespaces.enter_empty_root(required=True)
    credentials.limit_zygote(required=True)
    gc.collect()
    gc.freeze()
    measure(rounds)


if __name__ == "__main__":
    main()
