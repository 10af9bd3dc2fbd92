"""The page that libffi keeps readable, writable and executable.

ctypes callbacks (wasmtime's host function trampolines among them) are written into such a page.
A guest that escapes would find a ready place for its code there. Once it is locked the callbacks
that exist keep working; creating or freeing one then ends the process with SIGSEGV.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import NotInForceError
from sandboxd.runner.isolation.policy import ChildPolicy
from sandboxd.runner.isolation.program import Work, call, pointer

Range = tuple[int, int]

_MAPS: Final = Path("/proc/self/maps")
_FUTEX_WAKE_OP: Final = 5
# FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0): "or the word with 0".
_FUTEX_OR_WITH_ZERO: Final = 2 << 28
_word, _WORD = pointer(bytes(4))
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


def pages(policy: ChildPolicy) -> tuple[Range, ...]:
    """The pages that the policy names, or those found before. Raises NotInForceError if nobody
    has looked."""
    if policy.writable_code:
        return policy.writable_code
    if _found is None:
        raise NotInForceError("find_writable_code() was never called")
    return _found


def lock(policy: ChildPolicy) -> Work:
    """Make these pages readable and executable only."""
    protection = kernel.PROT_READ | kernel.PROT_EXEC
    ranges = pages(policy)
    return Work(tuple(call("mprotect", address, size, protection) for address, size in ranges))


def verify(policy: ChildPolicy) -> Work:
    """Have the kernel write to these pages, which it must refuse with EFAULT.

    FUTEX_WAKE_OP with "or 0" is the one write that changes nothing if it does succeed and kills
    nobody if it does not.
    """
    ranges = pages(policy)
    attempts = (
        call(
            "futex",
            *(_word, _FUTEX_WAKE_OP, 0, 0, address, _FUTEX_OR_WITH_ZERO),
            expected=(-errno.EFAULT,),
            wrong=f"page {address:#x} is still writable and executable",
        )
        for address, _size in ranges
    )
    count = len(ranges)
    detail = f"{count} writable and executable mappings made read-only" if count else "none"
    return Work(tuple(attempts), detail=detail)
