"""Generated parts of a hand-written document.

    <!-- bench: goals -->
    generated
    <!-- end bench -->

What is between the two lines is replaced; everything else is the author's and stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(
    r"^(?P<begin><!-- bench: (?P<name>[^\n]*?) -->\n)(?P<body>.*?)(?P<end>^<!-- end bench -->$)",
    re.MULTILINE | re.DOTALL,
)
_BEGIN = re.compile(r"^<!-- bench: .* -->$", re.MULTILINE)


class MarkerError(ValueError):
    """The document's markers are not in order; the message says which."""


def names(document: str) -> list[str]:
    """Return the names of the parts, in order. Raises MarkerError if one has no end."""
    found = [match["name"] for match in _BLOCK.finditer(document)]
    if len(found) != len(_BEGIN.findall(document)):
        raise MarkerError(
            "a part that begins with '<!-- bench: ... -->' has no '<!-- end bench -->'"
        )
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise MarkerError(f"more than one part is called {', '.join(twice)}")
    return found


def replace(document: str, parts: Mapping[str, str]) -> str:
    """Replace the parts that are given. Raises MarkerError if the document lacks one."""
    lacking = sorted(set(parts) - set(names(document)))
    if lacking:
        raise MarkerError(f"the document has no place for: {', '.join(lacking)}")

    def put(match: re.Match[str]) -> str:
        body = parts.get(match["name"])
        if body is None:
            return match[0]
        return f"{match['begin']}\n{body.strip()}\n\n{match['end']}"

    return _BLOCK.sub(put, document)
