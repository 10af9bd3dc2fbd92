"""The page that libffi keeps readable, writable and executable.

ctypes callbacks (wasmtime's host function trampolines among them) are written into such a page.
A guest that escapes would find a ready place for its code there. After :func:`lock_pages` the
callbacks that exist keep working; creating or freeing one then ends the process with SIGSEGV.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import NotInForceError

Range = tuple[int, int]

_MAPS: Final = Path("/proc/self/maps")
_found: tuple[Range, ...] | None = None


def find_writable_code() -> tuple[Range, ...]:
    """Find the mappings that are both writable and executable, as (address, length) in bytes.

    Call it once in the parent of all children, after the last ctypes callback was created and
    before the root is emptied: it reads /proc/self/maps. The answer is remembered for children
    whose policy names no pages. Raises OSError if /proc is not there.
    """
    global _found  # noqa: PLW0603 - inherited by fork; there is one address space to describe
    ranges = []
    for line in _MAPS.read_text("utf-8").splitlines():
        span, permissions = line.split(" ", 2)[:2]
        if "w" in permissions and "x" in permissions:
            start, end = (int(text, 16) for text in span.split("-"))
            ranges.append((start, end - start))
    _found = tuple(ranges)
    return _found


def _pages(named: tuple[Range, ...]) -> tuple[Range, ...]:
    if named:
        return named
    if _found is None:
        raise NotInForceError("find_writable_code() was never called")
    return _found


def lock_pages(named: tuple[Range, ...]) -> None:
    """Make the named pages, or those found before, readable and executable only."""
    for address, length in _pages(named):
        kernel.mprotect(address, length, kernel.PROT_READ | kernel.PROT_EXEC)


def verify_locked(named: tuple[Range, ...]) -> str:
    """Check that the kernel refuses to write to these pages; return what was checked."""
    ranges = _pages(named)
    for address, _length in ranges:
        try:
            kernel.touch_for_writing(address)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
        else:
            raise NotInForceError(f"page {address:#x} is still writable and executable")
    return f"{len(ranges)} writable and executable mappings made read-only" if ranges else "none"
