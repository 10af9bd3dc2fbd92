"""Which modules have figures, in the order in which they are measured and reported."""

from __future__ import annotations

import importlib
import importlib.util

from bench.figure import Figure, Settings

# Each exposes `figures(settings) -> list[Figure]`.
MODULES: tuple[str, ...] = (
    "bench.figures.calls",
    "bench.figures.anatomy",
    "bench.figures.processor",
    "bench.figures.threads",
    "bench.figures.fresh",
    "bench.figures.lives",
    "bench.figures.speed",
    "bench.figures.payload",
    "bench.figures.hangs",
    "bench.figures.memory",
    "bench.figures.scaling",
    "bench.claims",
)


def all_figures(settings: Settings) -> list[Figure]:
    """Return every figure of every module that exists. Raises ValueError if two share a name."""
    figures: list[Figure] = []
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            continue
        figures += importlib.import_module(name).figures(settings)
    names = [figure.name for figure in figures]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"figures share a name: {', '.join(sorted(twice))}")
    return figures
