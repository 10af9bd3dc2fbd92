"""Run by systemd in the guest, as root: make every check, and tell of each on a serial line."""

from __future__ import annotations

import os
import sys
import time
import traceback

from tests.system import checks
from tests.system.registry import CHECKS, Check
from tests.system.report import END, Line

assert checks.GROUPS


def _make(name: str, check: Check) -> Line:
    started_at = time.monotonic()
    try:
        detail = check()
        return Line(name, "ok", detail, time.monotonic() - started_at)
    except AssertionError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{frame.filename}:{frame.lineno}: {frame.line}\n{error}"
    except Exception:  # noqa: BLE001 - told as the check's failure; the next one is made
        detail = traceback.format_exc()
    return Line(name, "failed", detail, time.monotonic() - started_at)


def main() -> None:
    """Take the path of the serial line as the only argument."""
    line = os.open(sys.argv[1], os.O_WRONLY | os.O_NOCTTY)
    for name, check in CHECKS.items():
        _tell(line, _make(name, check))
    _tell(line, END)


def _tell(line: int, told: Line) -> None:
    text = (told.render() + "\n").encode()
    while text:
        text = text[os.write(line, text) :]


if __name__ == "__main__":
    main()
