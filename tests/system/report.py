"""What the guest says over its serial line, and how the host judges it.

A line for each check, as JSON, and one at the end. A check that is missing, one that nobody knows,
and a run without an end count as failures: silence proves nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

_MARK: Final = "@sandboxd "
_WIDTH: Final = 100
Outcome = Literal["ok", "failed", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one check; `detail` is what was measured, or why it failed."""

    name: str
    outcome: Outcome
    detail: str
    seconds: float

    def render(self) -> str:
        """Return the line as it goes over the wire."""
        return _MARK + json.dumps(asdict(self))


END: Final = Line("end", "ok", "", 0.0)


def parse(text: str) -> list[Line]:
    """Return the lines in what a serial port received; whatever else is in it does not count."""
    found = []
    for raw in text.splitlines():
        if raw.startswith(_MARK):
            try:
                found.append(Line(**json.loads(raw.removeprefix(_MARK))))
            except (ValueError, TypeError):
                found.append(Line(raw, "unknown", "not a line of the guest's", 0.0))
    return found


def judge(lines: Iterable[Line], expected: Sequence[str]) -> list[Line]:
    """Return one line for each expected check, in that order, then one for each surprise."""
    told = {line.name: line for line in lines}
    ended = told.pop(END.name, None) is not None
    judged = [
        told.pop(name, Line(name, "missing", "the guest said nothing of it", 0.0))
        for name in expected
    ]
    judged += [
        Line(line.name, "unknown", "nobody expects this check", line.seconds)
        for line in told.values()
    ]
    if not ended:
        judged.append(Line(END.name, "missing", "the guest did not come to its end", 0.0))
    return judged


def table(lines: Iterable[Line]) -> str:
    """Return the lines for people, each with its detail below it."""
    parts = []
    for line in lines:
        parts.append(f"{line.outcome:8}{line.name}  ({line.seconds:.1f} s)")
        for paragraph in line.detail.splitlines():
            parts += textwrap.wrap(
                paragraph, _WIDTH, initial_indent=" " * 10, subsequent_indent=" " * 10
            )
    return "\n".join(parts)
