"""Making text from strangers safe to print."""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    r"""Escape everything that a terminal could act on, Python style (`\x1b`, `\u202e`).

    Covers C0, C1 and DEL, line and paragraph separators, bidirectional and other format
    characters, surrogates and unassigned characters; bytes that are not UTF-8 come out as
    `\xff`. The result is one line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
