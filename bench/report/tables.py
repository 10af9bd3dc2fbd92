"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])


def titled(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table below its title."""
    return f"{title}\n\n{table(columns, rows)}"
