"""The host's judgement: nothing that the guest leaves out may pass for proved."""

from __future__ import annotations

from tests.system.report import END, Line, judge, parse, table


def _line(name: str) -> Line:
    return Line(name, "ok", "measured", 1.0)


def test_lines_are_found_between_whatever_else_is_printed() -> None:
    text = f"boot\r\n{_line('a').render()}\r\n[ 3.1] oom-kill\r\n{END.render()}\r\n"
    assert parse(text) == [_line("a"), END]


def test_every_expected_check_has_its_line() -> None:
    judged = judge([_line("b"), _line("a"), END], ["a", "b"])
    assert judged == [_line("a"), _line("b")]


def test_a_check_without_a_line_is_a_failure() -> None:
    judged = judge([_line("a"), END], ["a", "b"])
    assert [line.outcome for line in judged] == ["ok", "missing"]


def test_a_check_that_nobody_expects_is_a_failure() -> None:
    judged = judge([_line("a"), _line("z"), END], ["a"])
    assert [line.outcome for line in judged] == ["ok", "unknown"]


def test_a_guest_that_stops_half_way_is_a_failure() -> None:
    judged = judge([_line("a")], ["a"])
    assert [line.outcome for line in judged] == ["ok", "missing"]


def test_a_broken_line_is_a_failure() -> None:
    judged = judge(parse(f"@sandboxd {{half\n{END.render()}\n"), [])
    assert [line.outcome for line in judged] == ["unknown"]


def test_the_table_shows_outcome_and_detail() -> None:
    assert table([_line("a")]).splitlines() == ["ok      a  (1.0 s)", " " * 10 + "measured"]
