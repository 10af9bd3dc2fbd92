"""Rows of the escape matrix behind the cgroup alone, and behind all walls.

Run as a module with "root" or "user" by systemd, in a cgroup that was delegated; prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from tests.escape import matrix
from tests.escape.field import CATALOGUE
from tests.escape.walls import ALL, NONE

_COLUMNS: Final = (NONE, "C", ALL)
#: All that a cgroup must stop.
NAMES: Final = tuple(name for name, attack in CATALOGUE.items() if "C" in attack.root)


def _step_aside() -> None:
    """Into a leaf: the cgroup that was delegated is to have controllers for others."""
    (line,) = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    leaf = Path("/sys/fs/cgroup", line.removeprefix("0::/"), "supervisor")
    leaf.mkdir()
    (leaf / "cgroup.procs").write_text(str(os.getpid()), "ascii")


def main() -> None:
    _step_aside()
    found = matrix.run(sys.argv[1], NAMES, _COLUMNS)
    print(
        json.dumps(
            {
                "controllers": sorted(found.controllers),
                "refused": found.no_cgroups or found.no_namespaces,
                "rows": found.rows,
                "void": found.void(),
                "through": matrix.through_all(found),
                "surprises": matrix.surprises(found),
            }
        )
    )


if __name__ == "__main__":
    main()
