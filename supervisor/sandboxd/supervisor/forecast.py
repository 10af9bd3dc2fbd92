"""Which modules will be wanted next in a process that has run nothing.

A call that asks for a process of its own cannot use one that has served before; one that traps, or
is stopped, leaves none for the next call. And to load a module takes longer than most calls do. So
runners are bound ahead of need to modules whose calls use processes up again and again. Each such
call makes up for the runner that it took, so that there are as many ahead as calls come in one
burst, up to a limit of all modules together. Modules to which it happens once are none of it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.keys import Key

# A module is expected again if its last two calls were no further apart.
WINDOW_S = 10.0
# How many modules are remembered to have been called once.
MAX_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Expected:
    """A call that is likely to come: of which module, with which limits.

    `export` is the function of a bytes call; empty for other calls.
    """

    key: Key
    artifact: Artifact
    memory_bytes: int
    table_elements: int
    export: str = ""


class Forecast:
    """Calls that are expected and have no runner ahead yet, in the order in which they are due."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._called_at: OrderedDict[Key, float] = OrderedDict()
        self._due: deque[Expected] = deque()

    def __len__(self) -> int:
        return len(self._due)

    def recurs(self, key: Key, now: float) -> bool:
        """Take note that a call used a process up at `now`, in seconds; True if it is a habit.

        Always False with a limit of 0.
        """
        if not self._limit:
            return False
        before = self._called_at.pop(key, None)
        self._called_at[key] = now
        if len(self._called_at) > MAX_REMEMBERED:
            self._called_at.popitem(last=False)
        return before is not None and now - before <= WINDOW_S

    def add(self, call: Expected) -> None:
        """Expect a call like this one."""
        self._due.append(call)

    def next(self) -> Expected:
        """Give the call that has been due for longest. Raises IndexError if there is none."""
        return self._due.popleft()

    def clear(self) -> None:
        """Expect nothing."""
        self._due.clear()
