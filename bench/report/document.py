"""docs/performance.md: tables and charts between its markers; the words are hand-written."""

from __future__ import annotations

from pathlib import Path

from bench import results as results_module
from bench.report import chart, markers, text
from bench.report.tables import table, titled
from bench.results import FigureResult, RatioResult, Results, SideResult
from bench.spread import spread

NAME = "performance.md"
FOLDER = "performance"
QUICK = "**A quick run: a rough look, not a measurement.**"
OTHERS = "others"
"""Where sections go that have no place of their own."""
# A comparison of fewer sides is told by its ratio.
_FEWEST_BARS = 3

_UNITS = {"s": "time", "/s": "calls per second", "MiB/s": "MiB per second", "MiB": "MiB"}


def write(results: Results, docs: Path) -> list[Path]:
    """Write charts, JSON and the generated parts of the document; return what was written.

    Raises `markers.MarkerError` if the document has no place for what was found; nothing is written
    then.
    """
    document = docs / NAME
    sections: dict[str, list[FigureResult]] = {}
    for figure in results.figures:
        sections.setdefault(figure.section, []).append(figure)
    parts = {"machine": _machine(results), "goals": _goals(results)}
    before = document.read_text(encoding="utf-8")
    places = markers.names(before)
    for section, figures in sections.items():
        place = section if section in places else OTHERS
        told = "\n\n".join(_figure(figure) for figure in figures)
        parts[place] = f"{parts[place]}\n\n{told}" if place in parts else told
    written = markers.replace(before, parts)
    paths = _write_charts(results, docs / FOLDER, written)
    results_module.write(results, docs / FOLDER / "results.json")
    document.write_text(written, encoding="utf-8")
    return [document, docs / FOLDER / "results.json", *paths]


def _write_charts(results: Results, folder: Path, document: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for chart_file in folder.glob("*.svg"):
        if chart_file.name not in document:
            chart_file.unlink()
    paths: list[Path] = []
    for figure in results.figures:
        drawn = draw(figure)
        if drawn:
            path = folder / f"{figure.name}.svg"
            path.write_text(drawn, encoding="utf-8")
            paths.append(path)
    return paths


def draw(figure: FigureResult) -> str:
    """Return the figure's chart, or "" if it needs none."""
    unit = _UNITS.get(figure.unit, figure.unit)

    def write_y(value: float) -> str:
        return text.quantity(value, figure.unit) if figure.unit == "s" else text.digits(value)

    if figure.axis:
        series = _series(figure)
        if not any(len(line.points) > 1 for line in series):
            return ""

        def write_x(value: float) -> str:
            return text.position(value, figure.axis_is_binary)

        return chart.lines(
            figure.title, figure.axis, unit, series, write_x, write_y, figure.axis_is_binary
        )
    sides = figure.points[0].sides if figure.points else []
    if sum(bool(side.values) for side in sides) < _FEWEST_BARS:
        return ""
    values = [
        chart.Bar(side.name, spread(side.values) if side.values else None, side.missing)
        for side in sides
    ]
    return chart.bars(figure.title, unit, values, write_y)


def _series(figure: FigureResult) -> list[chart.Series]:
    names = list(dict.fromkeys(side.name for point in figure.points for side in point.sides))
    series: list[chart.Series] = []
    for name in names:
        measured = [
            (point.x, spread(side.values))
            for point in figure.points
            if point.x is not None and (side := point.side(name)) is not None and side.values
        ]
        if measured:
            series.append(chart.Series(name, measured))
    return series


# --- tables ---------------------------------------------------------------------------------------


def _machine(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    loads = " / ".join(f"{value:g}" for value in results.load_before)
    after = " / ".join(f"{value:g}" for value in results.load_after)
    rows = [
        ("processor", f"{machine.processor}, {machine.processors} visible, {machine.architecture}"),
        ("memory", f"{machine.memory_mib / 1024:.1f} GiB"),
        ("kernel", f"Linux {machine.kernel}"),
        ("run as", machine.user),
        ("versions", versions),
        ("layers active", ", ".join(results.layers)),
        ("commit", results.commit),
        ("measured", f"{results.started}, in {results.seconds / 60:.1f} minutes"),
        ("rounds", f"{results.rounds} blocks of {results.block_s:g} s per side"),
        ("load average before", loads),
        ("load average after", after),
    ]
    told = table(("what", "value"), rows)
    return f"{QUICK}\n\n{told}" if results.quick else told


def _goals(results: Results) -> str:
    rows: list[tuple[str, ...]] = []
    for figure in results.figures:
        for ratio in figure.ratios:
            if ratio.bound is not None:
                says = f"[{text.name(ratio, figure)}](#{figure.name})"
                rows.append((says, *_ratio_cells(ratio), str(ratio.bound), text.verdict(ratio)))
    return table(("ratio", "median", "quartiles", "goal", ""), rows)


def _ratio_cells(ratio: RatioResult) -> tuple[str, str]:
    if ratio.spread is None:
        return "", ratio.missing
    return f"**{text.digits(ratio.spread.median)}**", text.between(ratio.spread)


def _figure(figure: FigureResult) -> str:
    parts = [f'### <a id="{figure.name}"></a>{figure.title}']
    if figure.error:
        parts.append(f"**Failed: {figure.error}**")
    if figure.ratios:
        parts.append(_ratio_table(figure))
    if draw(figure):
        parts.append(f"![{figure.title}]({FOLDER}/{figure.name}.svg)")
    if figure.points:
        parts.append(_curve_table(figure) if figure.axis else _side_table(figure))
    parts += [titled(found.title, found.columns, found.rows) for found in figure.tables]
    parts += figure.notes
    return "\n\n".join(parts)


def _ratio_table(figure: FigureResult) -> str:
    rows = []
    for ratio in figure.ratios:
        says = text.name(ratio, figure)
        goal = f"{ratio.bound}: {text.verdict(ratio)}" if ratio.bound is not None else ""
        rows.append((says, *_ratio_cells(ratio), goal))
    return table(("ratio", "median", "quartiles", "goal"), rows)


def _side_table(figure: FigureResult) -> str:
    rows = [
        (side.name, *_side_cells(side, figure.unit))
        for point in figure.points
        for side in point.sides
    ]
    return table(("side", "median", "quartiles"), rows)


def _side_cells(side: SideResult, unit: str) -> tuple[str, str]:
    if side.missing:
        return "", f"not measured: {side.missing}"
    summary = spread(side.values)
    return text.quantity(summary.median, unit), text.between(summary, unit)


def _curve_table(figure: FigureResult) -> str:
    names = list(dict.fromkeys(side.name for point in figure.points for side in point.sides))
    rows = []
    for point in figure.points:
        cells = [text.position(point.x, figure.axis_is_binary)]
        for name in names:
            side = point.side(name)
            cells.append(_median_cell(side, figure.unit) if side is not None else "")
        rows.append(tuple(cells))
    return table((figure.axis, *names), rows)


def _median_cell(side: SideResult, unit: str) -> str:
    if side.missing:
        return side.missing
    return text.quantity(spread(side.values).median, unit)
