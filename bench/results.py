"""What a run found, as it is written to JSON.

Version 1 of the format: `Results`, one object. Values are in the figure's unit, one per round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.figure import Figure, Goal, Ratio
from bench.spread import Spread, round_ratios, spread

FORMAT = 1
_DIGITS = 4


class SideResult(msgspec.Struct):
    """One side at one point: a value per round, or why there is none."""

    name: str
    values: list[float]
    missing: str = ""


class PointResult(msgspec.Struct):
    """The sides that were measured against each other."""

    x: float | None
    sides: list[SideResult]

    def side(self, name: str) -> SideResult | None:
        """Return a side by name."""
        return next((side for side in self.sides if side.name == name), None)


class RatioResult(msgspec.Struct):
    """A ratio at one point. `spread` is None if it could not be measured; `missing` says why."""

    says: str
    x: float | None
    spread: Spread | None
    missing: str = ""
    goal: float | None = None
    goal_is_minimum: bool = False

    @property
    def bound(self) -> Goal | None:
        """The goal, if there is one."""
        return None if self.goal is None else Goal(self.goal, self.goal_is_minimum)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None without a goal or a measurement."""
        if self.bound is None or self.spread is None:
            return None
        return self.bound.met(self.spread.median)


class TableResult(msgspec.Struct):
    """A table to be shown as it is."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class FigureResult(msgspec.Struct):
    """All that one figure found."""

    name: str
    title: str
    section: str
    unit: str
    axis: str
    axis_is_binary: bool
    points: list[PointResult] = []
    ratios: list[RatioResult] = []
    tables: list[TableResult] = []
    notes: list[str] = []
    error: str = ""
    seconds: float = 0.0


class Machine(msgspec.Struct):
    """Where it was measured, and with what."""

    processor: str
    processors: int
    memory_mib: int
    kernel: str
    architecture: str
    user: str
    versions: dict[str, str]


class Results(msgspec.Struct):
    """One run."""

    machine: Machine
    commit: str
    quick: bool
    rounds: int
    block_s: float
    started: str
    seconds: float
    load_before: list[float]
    load_after: list[float]
    layers: dict[str, str]
    figures: list[FigureResult]
    format: int = FORMAT


def write(results: Results, path: Path) -> None:
    """Write results as JSON, a figure's values in lines that a diff can show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def read(path: Path) -> Results:
    """Read results. Raises msgspec.ValidationError if they are not, ValueError if of old format."""
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    if results.format != FORMAT:
        raise ValueError(f"{path.name} has format {results.format}, not {FORMAT}: measure again")
    return results


def rounded(value: float) -> float:
    """Keep the digits that mean something."""
    return float(f"{value:.{_DIGITS}g}")


def ratios_of(figure: Figure, points: Sequence[PointResult]) -> list[RatioResult]:
    """Work out a figure's ratios at every point where both sides stand; the goal at one of them."""
    found: list[RatioResult] = []
    for ratio in figure.ratios:
        at = [_ratio_at(ratio, point) for point in points if point.side(ratio.of) is not None]
        if ratio.alone:
            at = [msgspec.structs.replace(entry, x=None) for entry in at if entry.x == ratio.at]
        if not at:
            at = [RatioResult(ratio.says, None, None, "not reached")]
        if ratio.goal is not None:
            held = next((entry for entry in at if entry.x == ratio.at), at[-1])
            held.goal, held.goal_is_minimum = ratio.goal.bound, ratio.goal.at_least
        found += at
    return found


def _ratio_at(ratio: Ratio, point: PointResult) -> RatioResult:
    of = point.side(ratio.of)
    assert of is not None
    to = point.side(ratio.to) if ratio.to else None
    if ratio.to and to is None:
        return RatioResult(ratio.says, point.x, None, f"{ratio.to} was not measured")
    for side in (of, to):
        if side is not None and side.missing:
            return RatioResult(ratio.says, point.x, None, f"{side.name}: {side.missing}")
    values = of.values if to is None else round_ratios(of.values, to.values)
    summary = spread(values)
    return RatioResult(
        ratio.says,
        point.x,
        Spread(rounded(summary.median), rounded(summary.low), rounded(summary.high)),
    )
