"""Numbers and findings for people, in the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from bench.results import FigureResult, RatioResult, Results, SideResult
from bench.spread import Spread, spread

_BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def quantity(value: float, unit: str) -> str:
    """Write a value with its unit: seconds as µs, ms or s; the rest with three digits."""
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms")):
            if value >= size:
                return f"{digits(value / size)} {name}"
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value)}{unit}" if unit.startswith("/") else f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Write three significant digits, and no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-4 else f"{value:.2g}"


def size(value: float) -> str:
    """Write a number of bytes."""
    for unit, name in _BINARY:
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B"


def position(x: float | None, binary: bool) -> str:
    """Write where on a curve."""
    if x is None:
        return ""
    if binary:
        return size(x)
    return f"{x / 1e6:g} M" if x >= 1e6 else f"{x:,.0f}"


def verdict(ratio: RatioResult) -> str:
    """Say whether the goal is met."""
    match ratio.met:
        case True:
            return "met"
        case False:
            return "missed"
        case None:
            return "not measured" if ratio.goal is not None else ""


def name(ratio: RatioResult, figure: FigureResult) -> str:
    """Call a ratio by its name and its place on the curve."""
    where = position(ratio.x, figure.axis_is_binary)
    return f"{ratio.says}, at {where}" if where else ratio.says


def spread_of(side: SideResult, unit: str) -> str:
    """Write a side's median and quartiles, or why there is none."""
    if side.missing:
        return f"not measured: {side.missing}"
    summary = spread(side.values)
    return f"{quantity(summary.median, unit)} ({between(summary, unit)})"


def between(summary: Spread, unit: str = "") -> str:
    """Write the quartiles."""
    if not unit:
        return f"{digits(summary.low)} to {digits(summary.high)}"
    return f"{quantity(summary.low, unit)} to {quantity(summary.high, unit)}"


def figure_lines(figure: FigureResult) -> Iterable[str]:
    """Tell a figure in lines: ratios first."""
    binary = figure.axis_is_binary
    for ratio in figure.ratios:
        value = f"not measured: {ratio.missing}"
        if ratio.spread is not None:
            value = f"{digits(ratio.spread.median)} ({between(ratio.spread)})"
        goal = f"  goal {ratio.bound}: {verdict(ratio)}" if ratio.bound is not None else ""
        yield f"{name(ratio, figure)}: {value}{goal}"
    for point in figure.points:
        where = f"{position(point.x, binary)}: " if point.x is not None else ""
        for side in point.sides:
            yield f"{where}{side.name}: {spread_of(side, figure.unit)}"
    yield from figure.notes
    for table in figure.tables:
        yield from (" | ".join(row) for row in (table.columns, *table.rows))
    if figure.error:
        yield f"FAILED: {figure.error}"
    yield f"took {figure.seconds:.1f} s"


def summary(results: Results) -> str:
    """Tell all goals, and on what they were measured."""
    lines = [""]
    for figure in results.figures:
        for ratio in figure.ratios:
            if ratio.bound is None:
                continue
            value = digits(ratio.spread.median) if ratio.spread is not None else "-"
            says = name(ratio, figure)
            lines.append(f"{value:>8}  {ratio.bound!s:>7}  {verdict(ratio):12}  {says}")
        if figure.error:
            lines.append(f"  FAILED  {figure.name}: {figure.error}")
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines += [
        "",
        f"{machine.processor}, {machine.processors} processors, Linux {machine.kernel}, "
        f"as {machine.user}; {versions}",
        f"layers: {', '.join(results.layers) or 'none'}",
        f"load {results.load_before[0]} before, {results.load_after[0]} after; "
        f"commit {results.commit}; {results.seconds:.0f} s",
    ]
    return "\n".join(lines)
