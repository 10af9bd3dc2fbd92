"""Tables: fitted to a terminal; one line per row, and nothing cut, in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.client.text import printable

# In a pipe no cell makes its column wider than this; a longer one moves the rest of its row.
_PIPE_COLUMN_MAX = 40
_GAP = 2
_DIGEST_DIGITS_SHOWN = 12


class _Console(Console):
    """Leaves a reader that went away to `failure.conclude`, like every other output."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich turns into an exit code of its own."""
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """Make a console that takes text as text: no markup, emoji codes or highlighting."""
    return _Console(
        file=stream,
        # Without colours rich would still write in bold; NO_COLOR means no styles at all.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | int]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print rows under headings; every cell is escaped.

    Args:
        columns: the headings.
        rows: the cells.
        title: printed above, after an empty line.
        right: columns to align to the right.
        whole: columns that stay on one line on a narrow terminal, if they leave a third of it.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if title:
        # Not click.echo: it takes an ASCII stream for UTF-8.
        print(f"\n{title}")
    if sys.stdout.isatty():
        _print_fitted(columns, cells, right, whole)
    else:
        _print_lines([columns, *cells], {columns.index(name) for name in right})


def _print_fitted(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    whole: Sequence[str],
) -> None:
    out = console(sys.stdout)
    kept = [columns.index(name) for name in whole]
    width = sum(max(cell_len(row[i]) for row in (columns, *rows)) + _GAP for i in kept)
    if width > out.width * 2 // 3:
        kept = []
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=i in kept,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


def _print_lines(rows: Sequence[Sequence[str]], right: set[int]) -> None:
    widths = [
        max((size for cell in column if (size := cell_len(cell)) <= _PIPE_COLUMN_MAX), default=0)
        for column in zip(*rows, strict=True)
    ]
    for row in rows:
        padded = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - cell_len(cell))
            padded.append(blank + cell if i in right else cell + blank)
        print((" " * _GAP).join(padded).rstrip())
    sys.stdout.flush()


def short_digest(digest: str) -> str:
    """Shorten a digest to what is enough to name it."""
    return digest.removeprefix("sha256:")[:_DIGEST_DIGITS_SHOWN]


def size(count: int) -> str:
    """Write bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def duration(ns: int) -> str:
    """Write a time for people."""
    if ns < 1_000_000:
        return f"{ns / 1e3:.0f} us"
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.1f} ms"
    seconds = ns / 1e9
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"
