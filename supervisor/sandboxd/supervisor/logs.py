"""Logging: one line per event on standard error, with journald's priority prefix under systemd."""

from __future__ import annotations

import logging
import os
import sys

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Formatter(logging.Formatter):
    def __init__(self, journald: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._journald = journald
        if not journald:
            self._style._fmt = "%(asctime)s " + self._style._fmt

    def format(self, record: logging.LogRecord) -> str:
        # What a guest or a client named may be in a message: no control character gets through.
        text = "".join(
            char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}"
            for char in super().format(record)
        )
        if not self._journald:
            return text
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in text.splitlines())


def _is_news(record: logging.LogRecord) -> bool:
    """Drop gRPC's traceback for an answer whose client is gone: any client could fill the log."""
    return "ExecuteBatchError" not in record.getMessage()


def configure(level: str) -> None:
    """Send this package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(journald="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
