"""Charts as SVG, written by hand: a few kilobytes each, and a diff shows what changed.

Lines with a band between the quartiles for curves; bars with whiskers for comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.report.scale import Scale, fit
from bench.spread import Spread

Write = Callable[[float], str]

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 36, 40, 74
_BAR, _GAP = 22, 10
# Of a letter, at most: how wide a label gets depends on the reader's fonts.
_LETTER = 7.2
# Okabe and Ito: told apart by people who see colours differently, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS = ("circle", "square", "diamond")


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its places on the x axis, and a summary for each."""

    name: str
    points: Sequence[tuple[float, Spread]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; without a summary it says why there is none."""

    name: str
    summary: Spread | None
    note: str = ""


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    write_x: Write,
    write_y: Write,
    x_binary: bool,
) -> str:
    """Draw curves."""
    rows = (len(series) + 2) // 3
    bottom = HEIGHT - _BOTTOM - 18 * (rows - 1)
    xs = [x for line in series for x, _ in line.points]
    ys = [v for line in series for _, s in line.points for v in (s.low, s.high)]
    x = fit(xs, _LEFT, WIDTH - _RIGHT, x_binary)
    y = fit(ys, bottom, _TOP)
    parts = [_text(_LEFT, 22, title, "title")]
    parts += _grid(x, y, bottom, write_x, write_y)
    parts += [
        _text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, x_label, "middle"),
        f'<text class="middle" transform="translate(14 {(bottom + _TOP) / 2:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>",
    ]
    for index, line in enumerate(series):
        parts += _line(line, x, y, index)
        column, row = index % 3, index // 3
        left, base = _LEFT + column * 212, bottom + 54 + 18 * row
        parts += [_mark(left, base - 4, index), _text(left + 10, base, line.name)]
    return _svg(WIDTH, HEIGHT, title, parts)


def bars(title: str, x_label: str, values: Sequence[Bar], write: Write) -> str:
    """Draw a comparison. Bars on a logarithmic axis have no honest length: they are dots then."""
    bottom = _TOP + len(values) * (_BAR + _GAP) + _GAP
    height = bottom + 44
    found = [bar.summary for bar in values if bar.summary is not None]
    left = 16 + _LETTER * max(len(bar.name) for bar in values)
    scale = fit([v for s in found for v in (s.low, s.high)], left, WIDTH - _RIGHT - 60)
    parts = [_text(12, 22, title, "title")]
    for tick in scale.ticks():
        at = scale.place(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(at, bottom + 16, write(tick), "middle"))
    note = " (logarithmic)" if scale.logarithmic else ""
    parts.append(_text((left + WIDTH) / 2, bottom + 36, x_label + note, "middle"))
    for index, bar in enumerate(values):
        parts += _bar(bar, scale, _TOP + _GAP + index * (_BAR + _GAP), index, write)
    return _svg(WIDTH, height, title, parts)


def _grid(x: Scale, y: Scale, bottom: float, write_x: Write, write_y: Write) -> list[str]:
    parts: list[str] = []
    for tick in x.ticks():
        at = x.place(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(at, bottom + 16, write_x(tick), "middle"))
    for tick in y.ticks():
        at = y.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, at + 4, write_y(tick), "end"))
    return parts


def _line(line: Series, x: Scale, y: Scale, index: int) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    upper = [(x.place(at), y.place(summary.high)) for at, summary in line.points]
    lower = [(x.place(at), y.place(summary.low)) for at, summary in line.points]
    middle = [(x.place(at), y.place(summary.median)) for at, summary in line.points]
    parts = [
        f'<polygon fill="{colour}" opacity=".15" points="{_points(upper + lower[::-1])}"/>',
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{_points(middle)}"/>',
    ]
    return parts + [_mark(*at, index) for at in middle]


def _bar(bar: Bar, scale: Scale, top: float, index: int, write: Write) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    middle = top + _BAR / 2
    parts = [_text(scale.start - 8, middle + 4, bar.name, "end")]
    if bar.summary is None:
        return [*parts, _text(scale.start + 6, middle + 4, f"not measured: {bar.note}", "weak")]
    low, at, high = (
        scale.place(value) for value in (bar.summary.low, bar.summary.median, bar.summary.high)
    )
    if scale.logarithmic:
        parts.append(_mark(at, middle, index))
    else:
        parts.append(
            f'<rect fill="{colour}" opacity=".8" x="{scale.start:.1f}" y="{top:.1f}" '
            f'width="{max(at - scale.start, 1):.1f}" height="{_BAR}"/>'
        )
    parts.append(f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>')
    return [*parts, _text(max(high, at) + 9, middle + 4, write(bar.summary.median))]


def _mark(x: float, y: float, index: int) -> str:
    colour = COLOURS[index % len(COLOURS)]
    match _MARKS[index % len(_MARKS)]:
        case "circle":
            return f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case "square":
            return f'<path fill="{colour}" d="M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z"/>'
        case _:
            return f'<path fill="{colour}" d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z"/>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


_STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px;font-weight:bold}"
    ".middle{text-anchor:middle}.end{text-anchor:end}.weak{fill:#777;font-style:italic}"
    ".grid{stroke:#ddd;fill:none}.whisker{stroke:#222;stroke-width:1.5;fill:none}"
)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Put a drawing together; on white, whatever the page behind it is."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )
