"""What is measured: figures, their sides, and the ratios that they are about.

A figure compares sides. A side measures itself in blocks: one call of `block` runs for about
`Settings.block_s` and returns one number in the figure's unit. The runner (run.py) takes the sides'
blocks in turn, several rounds of them, and makes a ratio of the two blocks of each round, so that
whatever else the machine does falls on both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.stage import Stage


@dataclass(frozen=True, slots=True)
class Settings:
    """How thorough a run is."""

    quick: bool
    rounds: int
    """Blocks that each side of a figure is measured in."""
    block_s: float
    """Seconds that one block should take; a block of slow calls makes at least a few."""


FULL = Settings(quick=False, rounds=10, block_s=0.4)
QUICK = Settings(quick=True, rounds=3, block_s=0.1)


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a ratio, or on a value."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Return True if the value is on the right side of the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


def at_least(bound: float) -> Goal:
    """Goal for what should be high."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """Goal for what should be low."""
    return Goal(bound, at_least=False)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that a figure compares.

    `block` measures once and returns a number in the figure's unit. A side that this host cannot
    measure has none, and says in `missing` why: it is reported so, never left out or made up.
    """

    name: str
    block: Callable[[], Awaitable[float]] | None
    missing: str = ""


def absent(name: str, why: str) -> Side:
    """Return a side that cannot be measured here."""
    return Side(name, None, why)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One side's value over another's, and what it should be.

    Without `to` it is the value itself. On a curve the goal holds at `at`, or at the last point.
    `says` is what the table calls it. One that is `alone` is told at `at` only, and says so itself.
    """

    says: str
    of: str
    to: str = ""
    goal: Goal | None = None
    at: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """The x of a curve. `binary` is for bytes: ticks at powers of two, with KiB and MiB."""

    label: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """Sides to be measured against each other; `x` is where on the curve, if it is one."""

    sides: Sequence[Side]
    x: float | None = None
    rounds: int | None = None
    """Rounds, if not those of the settings: for blocks that cannot be short."""


@dataclass(frozen=True, slots=True)
class Table:
    """Findings that are no comparison, such as what memory consists of."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that belongs beside the figure: what was refused, what was left out and why."""

    text: str


Part = Point | Table | Note


@dataclass(frozen=True, slots=True)
class Figure:
    """A question with numbers as its answer.

    `parts` is an asynchronous generator function: it sets up what the figure needs (below `stage`),
    yields points, which are measured before it goes on, and tears down. `unit` is "s" (shown as us,
    ms or s), "/s", "MiB/s" or "MiB". `section` groups figures in the report.
    """

    name: str
    title: str
    section: str
    unit: str
    parts: Callable[[Stage], AsyncGenerator[Part, None]]
    ratios: Sequence[Ratio] = ()
    axis: Axis | None = None
