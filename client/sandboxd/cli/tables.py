"""Tables on a terminal, and the same columns without trimming in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.client.text import printable

# Wide enough that nothing is cut when nobody is looking.
_PIPE_COLUMNS = 1000
_DIGEST_DIGITS_SHOWN = 12


def console(stream: TextIO) -> Console:
    """Make a console that takes text as text: no markup, emoji codes or highlighting."""
    return Console(
        file=stream,
        width=None if stream.isatty() else _PIPE_COLUMNS,
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
) -> None:
    """Print rows under headings; every cell is escaped."""
    out = console(sys.stdout)
    if title:
        out.print(Text(f"\n{title}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    out.print(table)


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
