"""Marks of time at the boundaries of functions of the product, made from outside it.

A running process's functions are replaced by wrappers that note when they begin and end. A mark is
one integer in a ring: the time of the system's monotonic clock in ns, shifted, and the number of
its name. That clock is the same in every process: marks of a client can be set beside these.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_NAME_BITS = 8
_KEPT = 1 << 20


class Gone(Exception):  # noqa: N818 - a state of the code
    """The product has no such function any more: bench/profile/points.py has to follow it."""


class Point(NamedTuple):
    """A function of the product, as "Class.method" or "function" of a module.

    `begin` and `end` name the marks; "" makes none.
    """

    module: str
    path: str
    begin: str
    end: str = ""


class Marks:
    """The marks of this process."""

    def __init__(self, names: Sequence[str]) -> None:
        assert len(names) < 1 << _NAME_BITS
        self._numbers = {name: number for number, name in enumerate(names)}
        self._ring: deque[int] = deque(maxlen=_KEPT)

    def marker(self, name: str) -> Callable[[], None]:
        """Return a function that makes a mark of this name."""
        number = self._numbers[name]
        append, now = self._ring.append, time.perf_counter_ns

        def mark() -> None:
            append(now() << _NAME_BITS | number)

        return mark

    def wrap(self, point: Point) -> None:
        """Put a wrapper in the function's place. Raises Gone if there is no such function."""
        owner, name = resolve(point)
        begin = self.marker(point.begin) if point.begin else _nothing
        end = self.marker(point.end) if point.end else _nothing
        setattr(owner, name, wrapped(getattr(owner, name), begin, end))

    def taken(self) -> list[tuple[str, int]]:
        """Return the marks in the order of time: name, and ns of the monotonic clock."""
        names = list(self._numbers)
        low = (1 << _NAME_BITS) - 1
        return [(names[mark & low], mark >> _NAME_BITS) for mark in self._ring]


def resolve(point: Point) -> tuple[Any, str]:
    """Return what holds the function, and its name there. Raises Gone."""
    owner: Any = importlib.import_module(point.module)
    *classes, name = point.path.split(".")
    for part in classes:
        owner = getattr(owner, part, None)
    if not callable(getattr(owner, name, None)):
        raise Gone(
            f"{point.module} has no function {point.path} any more: the profile marks its "
            "boundaries, and has to be told of what came in its place (bench/profile)"
        )
    return owner, name


def wrapped(
    function: Callable[..., Any], begin: Callable[[], None], end: Callable[[], None]
) -> Callable[..., Any]:
    """Return the function with marks around it; one that raises makes its `end` as well."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            begin()
            try:
                return await function(*args, **kwargs)
            finally:
                end()

        return later

    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        begin()
        try:
            return function(*args, **kwargs)
        finally:
            end()

    return around


def cost_ns() -> float:
    """Measure what one wrapper with two marks adds to a call of a method, in ns."""
    marks = Marks(["begin", "end"])

    class Bare:
        def method(self, argument: int) -> int:
            return argument

    bare = Bare()
    marked = wrapped(bare.method, marks.marker("begin"), marks.marker("end"))
    return _loop_ns(marked) - _loop_ns(bare.method)


def _loop_ns(function: Callable[[int], int], count: int = 20_000, rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(count):
            function(1)
        times.append((time.perf_counter_ns() - start) / count)
    return statistics.median(times)


def _nothing() -> None:
    """Make no mark."""
