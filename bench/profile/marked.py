"""Starts the daemon or the echo server, as ever, in a process with marks.

    python -m bench.profile.marked daemon FILE [flags of the daemon]
    python -m bench.profile.marked echo FILE [flags of the echo server]

When it ends, FILE has JSON: {"marks": [[name, ns], ...], "cost_ns": what a wrapper costs}.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

import msgspec

from bench.profile import marks as marking
from bench.profile import points

_PROGRAMS = {
    "daemon": ("sandboxd.supervisor.main", points.SUPERVISOR),
    "echo": ("bench.baselines.echo_server", points.ECHO),
}


class Taken(msgspec.Struct):
    """What a marked process found."""

    marks: list[tuple[str, int]]
    """Name of the mark, and ns of the monotonic clock."""
    cost_ns: float
    """What a wrapper with two marks adds to the function that it wraps."""


def main() -> None:
    """Serve until SIGTERM; raises `marks.Gone` if the code has no such boundaries any more."""
    kind, path, *arguments = sys.argv[1:]
    program, wrap = _PROGRAMS[kind]
    marks = marking.Marks(points.names(wrap))
    for point in wrap:
        marks.wrap(point)
    serve: Callable[[], None] = importlib.import_module(program).main
    cost_ns = marking.cost_ns()
    # Before it gives up root.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    sys.argv[1:] = arguments
    try:
        serve()
    finally:
        with open(file, "wb") as out:
            out.write(msgspec.json.encode(Taken(marks.taken(), cost_ns)))


if __name__ == "__main__":
    main()
