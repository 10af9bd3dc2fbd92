"""What the profile found, in Markdown, and its place in docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench.figure import Table
from bench.profile.finding import Finding, Subject
from bench.report import markers
from bench.report.document import QUICK
from bench.report.tables import titled


class Circumstances(NamedTuple):
    """When and on what it was measured. `load` is the machine's load average before."""

    commit: str
    started: str
    load: float
    quick: bool


def place(subject: Subject) -> str:
    """Return the name of the subject's place in the document."""
    return f"profile-{subject.name}"


def told(found: Finding | str, circumstances: Circumstances) -> str:
    """Tell a finding, or why there is none."""
    quick = [QUICK] if circumstances.quick else []
    when = (
        f"`make profile` at {circumstances.started}, commit {circumstances.commit}, load average "
        f"{circumstances.load:g} before."
    )
    if isinstance(found, str):
        return "\n\n".join([*quick, f"Not measured: {found}.", when])
    parts = [
        titled(part.title, part.columns, part.rows) if isinstance(part, Table) else part.text
        for part in found.parts
    ]
    return "\n\n".join([*quick, *parts, when])


def write(parts: Mapping[str, str], document: Path) -> None:
    """Put the parts into their places. Raises `markers.MarkerError` if the document lacks one."""
    before = document.read_text(encoding="utf-8")
    document.write_text(markers.replace(before, parts), encoding="utf-8")
