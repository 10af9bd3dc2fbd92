"""Compilers that were killed: by chance once or twice, by their module if it goes on.

A compiler that ends by SIGKILL without a word may have been killed by anybody: an administrator,
the kernel for want of memory, or itself, if its module took it over. The first is worth a retry and
the last is not, and nothing tells them apart but how often it happens to the same module.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from sandboxd.supervisor import faults
from sandboxd.supervisor.compile_verdicts import too_complex
from sandboxd.supervisor.keys import Key

MAX_LOSSES = 3
# Losses that are older do not count, and for so long after the last one nothing is tried.
WINDOW_S = 300.0
# Modules that are remembered; beyond this those that lost a compiler longest ago are forgotten.
MAX_MODULES = 1024


class Losses:
    """Counts them, by module and variant."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[Key, deque[float]] = OrderedDict()

    def add(self, key: Key) -> None:
        """Count one. Raises `faults.ModuleTooComplex` if it is one too many."""
        times = self._times.setdefault(key, deque(maxlen=MAX_LOSSES))
        times.append(self._clock())
        self._times.move_to_end(key)
        if len(self._times) > MAX_MODULES:
            self._times.popitem(last=False)
        self.check(key)

    def check(self, key: Key) -> None:
        """Raise `faults.ModuleTooComplex` if compilers of this module were killed too often."""
        times = self._times.get(key)
        if times is None:
            return
        now = self._clock()
        if now - times[-1] > WINDOW_S:
            del self._times[key]
        elif len(times) == MAX_LOSSES and times[-1] - times[0] <= WINDOW_S:
            raise _too_often(WINDOW_S - (now - times[-1]))


def _too_often(left_s: float) -> faults.ModuleTooComplex:
    return too_complex(
        "crash",
        f"{MAX_LOSSES} compilers of this module were killed, one after the other; it is not tried "
        f"again for {max(1, round(left_s))} s",
    )
