"""What requests hold in memory while they wait: all of them together, against one bound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sandboxd.supervisor import faults


class HeldMemory:
    """Counts the bytes of requests that wait.

    Attributes: size_bytes (held now), most_bytes (what may be held).
    """

    def __init__(self, most_bytes: int) -> None:
        self.size_bytes = 0
        self.most_bytes = most_bytes

    @contextlib.contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Count so many bytes until the block ends. Raises `faults.QueueFull`."""
        if self.size_bytes + size_bytes > self.most_bytes:
            raise faults.QueueFull(
                f"calls that wait hold {self.size_bytes} bytes already; retry later",
                retry_after_s=0.5,
            )
        self.size_bytes += size_bytes
        try:
            yield
        finally:
            self.size_bytes -= size_bytes
