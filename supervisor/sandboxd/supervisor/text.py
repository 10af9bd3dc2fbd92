"""Words from a child, made fit to be passed on: clipped, and without control characters."""

from __future__ import annotations

MAX_CHARACTERS = 4096


def for_people(text: str, maximum: int = MAX_CHARACTERS) -> str:
    """Return the text cut at `maximum` characters, with U+FFFD for each that cannot be printed."""
    text = text[:maximum]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
