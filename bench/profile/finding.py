"""What one part of the profile found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figure import Note, Table

if TYPE_CHECKING:
    from bench.stage import Stage


@dataclass(frozen=True, slots=True)
class Finding:
    """Tables and sentences, in the order in which they are told."""

    parts: Sequence[Table | Note]


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to be profiled. `name` is for --only and for its place in the document.

    `measure` raises NotMeasured if this host cannot.
    """

    name: str
    title: str
    measure: Callable[[Stage], Awaitable[Finding]]


class NotMeasured(Exception):  # noqa: N818 - a verdict
    """This host lacks what it takes; the message says what."""
