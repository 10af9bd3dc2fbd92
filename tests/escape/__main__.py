"""make escape-matrix: run every attack, print the matrix, write it down, and judge it.

As root it runs for root and for an ordinary user; as an ordinary user for that one alone, and then
prints without writing, for the committed matrix has both. Nothing is written if a rule is broken.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from tests.escape import matrix, report

_DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "isolation-matrix.md"


def main() -> int:
    """Return the exit status: 1 if a rule is broken."""
    matrices = []
    for identity in matrix.identities():
        start = time.monotonic()
        matrices.append(matrix.run(identity))
        print(f"{identity}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    document = report.render(matrices)
    print(document)
    broken = [
        f"{found.identity}: {rule}" for found in matrices for rule in matrix.broken_rules(found)
    ]
    if "root" in matrix.identities() and not broken:
        _DOCUMENT.write_text(document, "utf-8")
    print("\n".join(broken) or "every rule holds", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
