"""make system: boot a real Debian with systemd and cgroup v2, and check the daemon in it.

Builds the image below build/system, boots it in an emulator, reads what the checks inside say, and
prints it. Exits with 0 only if every check said that it holds; with 2 if something is missing here.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from typing import Final

from tests.system import checks, image, machine, report
from tests.system.registry import CHECKS

assert checks.GROUPS

_DIRECTORY: Final = image.PROJECT / "build" / "system"
_TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    machine.EMULATOR: "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
}
#: Four minutes on two processors that nobody else uses.
_TIMEOUT_S: Final = 1800.0
EXIT_MISSING: Final = 2


def _missing() -> list[str]:
    """What keeps this from running here, for people."""
    found = []
    if os.geteuid() != 0:
        found.append("root: files of the image belong to root")
    if platform.machine() != "x86_64":
        found.append(
            f"an x86-64 machine, not {platform.machine()}: packages are of the host's kind"
        )
    packages = sorted(package for tool, package in _TOOLS.items() if shutil.which(tool) is None)
    if packages:
        found.append(f"packages: apt-get install --no-install-recommends {' '.join(packages)}")
    return found


def main() -> int:
    """Return the exit status."""
    if missing := _missing():
        print("make system needs", *missing, sep="\n  - ", file=sys.stderr)
        return EXIT_MISSING
    started_at = time.monotonic()
    built = image.build(_DIRECTORY)
    print(f"image built in {time.monotonic() - started_at:.0f} s", file=sys.stderr)
    transcript = machine.run(built, _DIRECTORY, _TIMEOUT_S)
    lines = report.judge(report.parse(transcript.report), list(CHECKS))
    print(report.table(lines))
    wrong = [line for line in lines if line.outcome != "ok"]
    print(
        f"{len(lines) - len(wrong)} of {len(lines)} checks hold, "
        f"after {time.monotonic() - started_at:.0f} s",
        file=sys.stderr,
    )
    if wrong:
        late = "" if transcript.in_time else ", which was ended after its time"
        print(f"the guest's console{late}: {transcript.console}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
