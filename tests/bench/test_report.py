"""Charts, numbers, and the generated parts of the document."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from bench import __main__ as command
from bench import registry
from bench.figure import FULL, QUICK
from bench.report import chart, document, markers, text
from bench.report.scale import fit
from bench.results import (
    FigureResult,
    Machine,
    PointResult,
    RatioResult,
    Results,
    SideResult,
    write,
)
from bench.spread import Spread
from click.testing import CliRunner, Result

SVG = "{http://www.w3.org/2000/svg}"


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.00039, "s", "390 µs"),
        (0.0123, "s", "12.3 ms"),
        (2.5, "s", "2.5 s"),
        (6512.3, "/s", "6,512/s"),
        (3.9312, "MiB", "3.93 MiB"),
        (0, "MiB", "0 MiB"),
    ],
)
def test_quantities_have_three_digits_and_a_unit(value: float, unit: str, written: str) -> None:
    assert text.quantity(value, unit) == written


def test_a_place_on_a_curve_is_written_as_its_axis_counts() -> None:
    assert text.position(1 << 20, binary=True) == "1 MiB"
    assert text.position(0, binary=True) == "0 B"
    assert text.position(500, binary=False) == "500"
    assert text.position(70e6, binary=False) == "70 M"


# --- scales ---------------------------------------------------------------------------------------


def test_what_spans_little_gets_a_linear_axis_from_zero() -> None:
    scale = fit([4.0, 6.0], 0, 100)
    assert not scale.logarithmic
    assert scale.place(0) == 0
    assert 0 in scale.ticks()


def test_what_spans_much_gets_a_logarithmic_axis_that_holds_it() -> None:
    scale = fit([3, 700], 0, 100)
    assert scale.logarithmic
    assert (scale.low, scale.high) == (2, 1000)
    assert all(0 <= scale.place(value) <= 100 for value in (3, 700))
    assert scale.ticks() == [2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_zero_stands_at_the_start_of_a_binary_axis() -> None:
    scale = fit([0, 64, 1 << 24], 10, 110, binary=True)
    assert scale.place(0) == 10
    assert scale.place(64) > 20
    assert scale.ticks()[0] == 0


# --- charts ---------------------------------------------------------------------------------------


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_curve_is_labelled_and_has_a_mark_for_each_point() -> None:
    summary = Spread(2.0, 1.0, 3.0)
    series = [chart.Series("a < b", [(1, summary), (10, summary), (500, summary)])]
    svg = chart.lines("Title", "calls", "time", series, str, str, x_binary=False)
    assert {"Title", "calls", "time", "a < b"} <= set(_texts(svg))
    marks = list(ET.fromstring(svg).iter(f"{SVG}circle"))
    assert len(marks) == 4  # three points and the legend
    assert len(svg) < 4000


def test_a_bar_that_is_missing_says_why() -> None:
    bars = [chart.Bar("a", Spread(1.0, 1.0, 1.0)), chart.Bar("b", None, "not installed")]
    assert "not measured: not installed" in _texts(chart.bars("T", "time", bars, str))


# --- markers --------------------------------------------------------------------------------------

PAGE = """# By hand

<!-- bench: goals -->
old
<!-- end bench -->

Why, by hand.

<!-- bench: Calls -->
<!-- end bench -->
"""


def test_what_stands_between_markers_is_replaced_and_the_rest_survives() -> None:
    written = markers.replace(PAGE, {"goals": "new \\1"})
    assert "old" not in written
    assert "<!-- bench: goals -->\n\nnew \\1\n\n<!-- end bench -->" in written
    assert "Why, by hand." in written
    assert markers.replace(written, {"goals": "old"}) != written
    assert markers.replace(written, {"goals": "new \\1"}) == written


def test_a_part_without_a_place_is_an_error() -> None:
    with pytest.raises(markers.MarkerError, match="no place for: Memory"):
        markers.replace(PAGE, {"Memory": ""})


def test_a_part_without_an_end_is_an_error() -> None:
    with pytest.raises(markers.MarkerError, match="has no"):
        markers.names(PAGE.rpartition("<!-- end bench -->")[0])


def test_a_part_that_occurs_twice_is_an_error() -> None:
    with pytest.raises(markers.MarkerError, match="more than one part is called goals"):
        markers.names(PAGE.replace("Calls", "goals"))


# --- the document ---------------------------------------------------------------------------------


def _results(section: str) -> Results:
    sides = [SideResult(name, [1.0, 2.0]) for name in ("a", "b", "c")]
    figure = FigureResult(
        "calls", "Calls | pipes", section, "s", "", False,
        points=[PointResult(None, [*sides, SideResult("d", [], "d is not installed")])],
        ratios=[RatioResult("a / b", None, Spread(1.2, 1.1, 1.3), goal=1.3)],
    )  # fmt: skip
    return Results(
        machine=Machine("cpu", 2, 1024, "6.1", "x86_64", "root", {"python": "3.11"}),
        commit="abc", quick=False, rounds=2, block_s=0.1, started="now", seconds=1.0,
        load_before=[0.0], load_after=[0.0], layers={"seccomp": ""}, figures=[figure],
    )  # fmt: skip


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / document.NAME).write_text(
        PAGE
        + "".join(
            f"<!-- bench: {place} -->\n<!-- end bench -->\n" for place in ("machine", "others")
        )
    )
    return tmp_path


def test_the_report_writes_tables_charts_and_json(docs: Path) -> None:
    stale = docs / document.FOLDER / "gone.svg"
    stale.parent.mkdir()
    stale.write_text("")
    paths = document.write(_results("Calls"), docs)
    page = (docs / document.NAME).read_text()
    assert "| [a / b](#calls) | **1.2** | 1.1 to 1.3 | ≤ 1.3 | met |" in page
    assert "not measured: d is not installed" in page
    assert "Why, by hand." in page
    assert {path.name for path in paths} == {document.NAME, "results.json", "calls.svg"}
    assert all(path.exists() for path in paths)
    assert not stale.exists()


def test_a_section_without_a_place_goes_to_the_others(docs: Path) -> None:
    document.write(_results("Unheard of"), docs)
    page = (docs / document.NAME).read_text()
    assert page.index("<!-- bench: others -->") < page.index('<a id="calls">')


def test_the_committed_document_has_its_places_in_order() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / document.NAME
    places = markers.names(page.read_text(encoding="utf-8"))
    assert {"machine", "goals", "others"} <= set(places)
    assert {figure.section for figure in registry.all_figures(FULL)} <= set(places)


def test_figures_have_names_of_their_own_in_quick_and_full_runs() -> None:
    names = [[figure.name for figure in registry.all_figures(kind)] for kind in (QUICK, FULL)]
    assert names[0] == names[1]


def test_what_cannot_be_measured_here_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _results("calls")

    async def run(*_: object) -> Results:
        return found

    monkeypatch.setattr(command, "_run", run)
    options = ["--json", str(tmp_path / "results.json")]
    assert CliRunner().invoke(command.main, options).exit_code == 0
    found.figures[0].error = "ValueError: broken"
    assert CliRunner().invoke(command.main, options).exit_code == 1
    words = " ".join(CliRunner().invoke(command.main, ["--help"]).output.split())
    assert "What cannot be measured on this machine (a tool is missing, say)" in words


# --- whole runs and others ------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go by default; what is measured is made up."""

    async def run(*_: object) -> Results:
        return _results("Calls")

    monkeypatch.setattr(command, "_run", run)
    monkeypatch.setattr(command, "DEFAULT_JSON", tmp_path / "results.json")
    monkeypatch.setattr(command, "PARTIAL_JSON", tmp_path / "partial.json")
    return tmp_path


@pytest.mark.parametrize("options", [["--only", "call-latency"], ["--quick"]], ids=" ".join)
def test_a_run_that_is_not_whole_leaves_the_results_of_one_alone(
    build: Path, options: list[str]
) -> None:
    (build / "results.json").write_text("of a whole run")
    assert CliRunner().invoke(command.main, options).exit_code == 0
    assert (build / "results.json").read_text() == "of a whole run"
    assert (build / "partial.json").exists()


def test_a_whole_run_goes_where_the_report_looks_and_others_where_they_are_told(
    build: Path,
) -> None:
    assert CliRunner().invoke(command.main, []).exit_code == 0
    assert os.listdir(build) == ["results.json"]
    told = ["--quick", "--json", str(build / "mine.json")]
    assert CliRunner().invoke(command.main, told).exit_code == 0
    assert sorted(os.listdir(build)) == ["mine.json", "results.json"]


def _whole() -> Results:
    found = _results("Calls")
    one = found.figures[0]
    names = [figure.name for figure in registry.all_figures(FULL)]
    found.figures = [msgspec.structs.replace(one, name=name) for name in names]
    return found


def _lacking() -> Results:
    found = _whole()
    del found.figures[1:]
    return found


def _quick() -> Results:
    return msgspec.structs.replace(_whole(), quick=True)


def _report(found: Results, docs: Path, *options: str) -> Result:
    path = docs / "measured.json"
    write(found, path)
    return CliRunner().invoke(command.main, ["report", "--json", str(path), *options])


@pytest.fixture
def root(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of which only the document is there."""
    found = tmp_path / "root"
    found.mkdir()
    (found / "docs").symlink_to(docs)
    monkeypatch.setattr(command, "ROOT", found)
    return found


@pytest.mark.parametrize(
    ("made", "words"),
    [(_lacking, ["lacks", "figures ("]), (_quick, ["is of a quick run"])],
    ids=["lacking", "quick"],
)
def test_the_report_refuses_results_of_a_run_that_was_not_whole(
    root: Path, docs: Path, made: Callable[[], Results], words: list[str]
) -> None:
    before = (docs / document.NAME).read_text()
    refused = _report(made(), docs)
    assert refused.exit_code == 2
    told = " ".join(refused.output.split())
    for word in (*words, "Nothing was written", "make bench", "--partial"):
        assert word in told
    assert (docs / document.NAME).read_text() == before
    assert not (docs / document.FOLDER).exists()
    # Who means it may.
    assert _report(made(), docs, "--partial").exit_code == 0
    assert (docs / document.NAME).read_text() != before


def test_the_report_takes_results_of_a_whole_run(root: Path, docs: Path) -> None:
    taken = _report(_whole(), docs)
    assert taken.exit_code == 0, taken.output
    assert str(Path("docs") / document.NAME) in taken.output
