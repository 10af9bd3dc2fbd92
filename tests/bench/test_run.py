"""How sides are interleaved, and what becomes of those that cannot be measured."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from bench import results
from bench.figure import QUICK, Axis, Figure, Note, Part, Point, Ratio, Side, Table, absent, at_most
from bench.figures.processor import Shares
from bench.run import interleave, measure
from bench.stage import Stage
from bench.timing import throughput


class Recorder:
    """Sides that record in which order they were measured."""

    def __init__(self) -> None:
        self.order = ""

    def side(self, name: str, value: float = 1.0) -> Side:
        async def block() -> float:
            self.order += name
            return value

        return Side(name, block)


async def test_sides_take_turns_in_reversed_order_every_second_round() -> None:
    recorder = Recorder()
    values = await interleave([recorder.side("a", 1.0), recorder.side("b", 2.0)], 4)
    assert recorder.order == "abbaabba"
    assert values == [[1.0] * 4, [2.0] * 4]


def _figure(parts: list[Part], ratios: list[Ratio], axis: Axis | None = None) -> Figure:
    async def yielding(stage: Stage) -> AsyncGenerator[Part, None]:
        for part in parts:
            yield part

    return Figure("f", "A figure", "Calls", "s", yielding, ratios, axis)


async def _measured(*parts: Part, ratios: list[Ratio]) -> results.FigureResult:
    axis = (
        Axis("x") if any(isinstance(part, Point) and part.x is not None for part in parts) else None
    )
    return await measure(_figure(list(parts), ratios, axis), Stage(QUICK), lambda line: None)


async def test_a_first_round_does_not_count() -> None:
    recorder = Recorder()
    found = await _measured(Point([recorder.side("a")]), ratios=[])
    assert recorder.order == "a" * (QUICK.rounds + 1)
    assert found.points[0].sides[0].values == [1.0] * QUICK.rounds


async def test_a_point_may_ask_for_fewer_rounds() -> None:
    found = await _measured(Point([Recorder().side("a")], rounds=1), ratios=[])
    assert found.points[0].sides[0].values == [1.0]


async def test_a_ratio_says_whether_its_goal_is_met() -> None:
    recorder = Recorder()
    point = Point([recorder.side("a", 3.0), recorder.side("b", 2.0)])
    met = Ratio("a / b", "a", "b", at_most(1.5))
    missed = Ratio("a", "a", goal=at_most(2))
    found = await _measured(point, ratios=[met, missed])
    assert [ratio.met for ratio in found.ratios] == [True, False]
    assert found.ratios[0].spread is not None
    assert found.ratios[0].spread.median == 1.5


async def test_a_side_that_is_missing_makes_its_ratio_not_measured_with_the_reason() -> None:
    point = Point([Recorder().side("a"), absent("b", "b is not installed")])
    found = await _measured(point, ratios=[Ratio("a / b", "a", "b", at_most(1))])
    (ratio,) = found.ratios
    assert ratio.met is None
    assert ratio.missing == "b: b is not installed"
    assert found.points[0].sides[1].values == []


async def test_the_goal_of_a_curve_holds_at_its_last_point_unless_told_otherwise() -> None:
    points = [Point([Recorder().side("a")], x=x) for x in (1, 2, 3)]
    last = await _measured(*points, ratios=[Ratio("a", "a", goal=at_most(1))])
    assert [ratio.goal for ratio in last.ratios] == [None, None, 1]
    middle = await _measured(*points, ratios=[Ratio("a", "a", goal=at_most(1), at=2)])
    assert [ratio.goal for ratio in middle.ratios] == [None, 1, None]
    alone = await _measured(*points, ratios=[Ratio("a", "a", goal=at_most(1), at=2, alone=True)])
    assert [(ratio.x, ratio.goal) for ratio in alone.ratios] == [(None, 1)]


async def test_an_exception_ends_the_figure_and_keeps_what_was_found() -> None:
    closed = False

    async def failing(stage: Stage) -> AsyncGenerator[Part, None]:
        nonlocal closed
        try:
            yield Point([Recorder().side("a")])
            yield Note("so far")
            raise OSError("no daemon")
        finally:
            closed = True

    figure = Figure("f", "A figure", "Calls", "s", failing, [Ratio("b", "b", goal=at_most(1))])
    said: list[str] = []
    found = await measure(figure, Stage(QUICK), said.append)
    assert found.error == "OSError: no daemon"
    assert found.points
    assert found.notes == ["so far"]
    assert found.ratios[0].missing == "not reached"
    assert closed
    assert "no daemon" in said[0]


async def test_a_side_that_fails_lets_the_figure_tear_down() -> None:
    closed = False

    async def block() -> float:
        raise RuntimeError("the guest trapped")

    async def parts(stage: Stage) -> AsyncGenerator[Part, None]:
        nonlocal closed
        try:
            yield Point([Side("a", block)])
        finally:
            closed = True

    found = await measure(Figure("f", "F", "Calls", "s", parts), Stage(QUICK), lambda line: None)
    assert found.error == "RuntimeError: the guest trapped"
    assert closed


async def test_results_survive_being_written(tmp_path: Path) -> None:
    figure = await _measured(
        Point([Recorder().side("a"), absent("b", "no")], x=1),
        Table("T", ["k", "v"], [["a", "1"]]),
        ratios=[Ratio("a", "a", goal=at_most(1))],
    )
    written = results.Results(
        machine=results.Machine("cpu", 2, 1024, "6.1", "x86_64", "root", {"python": "3.11"}),
        commit="abc", quick=True, rounds=3, block_s=0.1, started="now", seconds=1.0,
        load_before=[0.0], load_after=[0.0], layers={"seccomp": ""}, figures=[figure],
    )  # fmt: skip
    results.write(written, tmp_path / "deep" / "results.json")
    assert results.read(tmp_path / "deep" / "results.json") == written
    written.format += 1
    results.write(written, tmp_path / "results.json")
    with pytest.raises(ValueError, match="measure again"):
        results.read(tmp_path / "results.json")


async def test_shares_measure_once_a_round_in_whatever_order() -> None:
    blocks = 0

    async def block() -> dict[str, float]:
        nonlocal blocks
        blocks += 1
        return {"a": blocks, "b": blocks * 10}

    values = await interleave(Shares(["a", "b"], block).sides(), 3)
    assert values == [[1, 2, 3], [10, 20, 30]]
    assert blocks == 3


async def test_throughput_counts_no_more_calls_than_were_made() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1

    rate = await throughput([call] * 4, seconds=0.0, min_calls=100)
    assert rate > 0
    assert made >= 104
