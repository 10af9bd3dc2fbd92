"""Memory files: bytes that travel as a descriptor, and cannot change once they are sealed."""

from __future__ import annotations

import fcntl
import os

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def new_memory_file() -> int:
    """Return a descriptor of an empty memory file, to be sealed once it is full."""
    return os.memfd_create("sandboxd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(fd: int) -> None:
    """Make a memory file unchangeable for good. Raises OSError if somebody has it mapped."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def sealed_memory_file(content: bytes) -> int:
    """Return a descriptor of a sealed memory file with this content. Raises OSError."""
    fd = new_memory_file()
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
