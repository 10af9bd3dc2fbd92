"""Measuring: the sides of a point take turns, block by block."""

from __future__ import annotations

import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Sequence

from bench.figure import Figure, Note, Point, Side, Table
from bench.results import FigureResult, PointResult, SideResult, TableResult, ratios_of, rounded
from bench.stage import Stage

Say = Callable[[str], None]


async def interleave(sides: Sequence[Side], rounds: int) -> list[list[float]]:
    """Measure each side once per round; return each side's values, in the order of rounds.

    The order is reversed every second round (A B, B A, A B, ...): a machine that grows slower, or a
    side that leaves the caches cold for whoever comes next, favours neither.
    """
    values: list[list[float]] = [[] for _ in sides]
    order = list(enumerate(sides))
    for number in range(rounds):
        for index, side in order if number % 2 == 0 else reversed(order):
            assert side.block is not None
            values[index].append(await side.block())
    return values


async def measure(figure: Figure, stage: Stage, say: Say) -> FigureResult:
    """Measure a figure. An exception is reported in the result, with what was found before it."""
    axis = figure.axis
    result = FigureResult(
        figure.name,
        figure.title,
        figure.section,
        figure.unit,
        axis.label if axis is not None else "",
        axis.binary if axis is not None else False,
    )
    started_at = time.monotonic()
    gc.collect()
    try:
        async with contextlib.aclosing(figure.parts(stage)) as parts:
            async for part in parts:
                await _take(part, stage, result)
    except Exception as error:  # noqa: BLE001 - one figure's failure must not cost the others
        result.error = f"{type(error).__name__}: {error}".splitlines()[0]
        say(traceback.format_exc())
    result.ratios = ratios_of(figure, result.points)
    result.seconds = rounded(time.monotonic() - started_at)
    return result


async def _take(part: Point | Table | Note, stage: Stage, result: FigureResult) -> None:
    match part:
        case Note(text):
            result.notes.append(text)
        case Table(title, columns, rows):
            result.tables.append(TableResult(title, list(columns), [list(row) for row in rows]))
        case Point():
            result.points.append(await measure_point(part, stage.settings.rounds))


async def measure_point(point: Point, rounds: int) -> PointResult:
    """Measure the sides of one point, after a first round that does not count."""
    present = [side for side in point.sides if side.block is not None]
    if point.rounds is None:
        await interleave(present, 1)
    else:
        rounds = min(rounds, point.rounds)
    measured = dict(
        zip((side.name for side in present), await interleave(present, rounds), strict=True)
    )
    return PointResult(
        point.x,
        [
            SideResult(side.name, [rounded(v) for v in measured.get(side.name, [])], side.missing)
            for side in point.sides
        ],
    )
