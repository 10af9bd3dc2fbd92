"""Idle runners: by key, and by how long nobody has used them. All operations take constant time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.runner import Runner


class Shelf:
    """Runners that are bound to a module and have no call.

    Of one key, those that have served calls are kept apart from those that have run nothing.
    """

    def __init__(self) -> None:
        self._used: dict[Key, list[Runner]] = {}
        self._unused: dict[Key, list[Runner]] = {}
        self._order: OrderedDict[Runner, None] = OrderedDict()
        self._unused_order: OrderedDict[Runner, None] = OrderedDict()

    @property
    def unused(self) -> int:
        """How many have run nothing."""
        return len(self._unused_order)

    def __iter__(self) -> Iterator[Runner]:
        """Iterate over all, the one that was put here first coming first."""
        return iter(self._order)

    def __contains__(self, runner: Runner) -> bool:
        return runner in self._order

    def put(self, runner: Runner, key: Key) -> None:
        """Take a runner that is bound to `key`."""
        if runner.executions:
            side = self._used
        else:
            side = self._unused
            self._unused_order[runner] = None
        side.setdefault(key, []).append(runner)
        self._order[runner] = None

    def take(self, key: Key, fresh: bool) -> Runner | None:
        """Give the runner of `key` that was used last, None if there is none.

        If `fresh`, only one that has run nothing; such a one goes last to calls that do not care.
        """
        bound = None if fresh else self._used.get(key)
        if bound:
            side = self._used
        else:
            side = self._unused
            bound = side.get(key)
            if not bound:
                return None
            del self._unused_order[bound[-1]]
        runner = bound.pop()
        if not bound:
            del side[key]
        del self._order[runner]
        return runner

    def remove(self, runner: Runner) -> None:
        """Take a runner out that is here."""
        assert runner.key is not None
        side = self._used
        if runner in self._unused_order:
            side = self._unused
            del self._unused_order[runner]
        bound = side[runner.key]
        bound.remove(runner)
        if not bound:
            del side[runner.key]
        del self._order[runner]

    def oldest(self) -> Runner | None:
        """Return the runner that nobody has used for longest."""
        return next(iter(self._order), None)

    def oldest_unused(self) -> Runner | None:
        """Return the one that has run nothing for longest."""
        return next(iter(self._unused_order), None)
