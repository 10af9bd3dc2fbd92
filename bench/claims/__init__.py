"""The field's common claims, measured: see README.md here."""

from __future__ import annotations

from bench.claims import compute, starts
from bench.figure import Figure, Settings


def figures(settings: Settings) -> list[Figure]:
    """Return the figures of all claims; the settings reach them through the stage."""
    del settings
    return [*compute.figures(), *starts.figures()]
