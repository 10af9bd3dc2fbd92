"""sd_notify(3): telling systemd READY, STOPPING, STATUS and WATCHDOG. Silent without systemd."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Notifier:
    """Sends to the socket that systemd named in NOTIFY_SOCKET; does nothing without it."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        if address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)
            try:
                # A leading @ stands for the NUL byte of an abstract address.
                self._sock.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError as error:
                log.warning("NOTIFY_SOCKET %s: %s; systemd is told nothing", address, error)
                self.close()
        self.watchdog_interval_s = _watchdog_interval_s()

    def notify(self, *assignments: str) -> None:
        """Send assignments, such as "READY=1". Losing one is not an error for the daemon."""
        if self._sock is None:
            return
        try:
            self._sock.send("\n".join(assignments).encode())
        except OSError:
            return

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _watchdog_interval_s() -> float | None:
    """Seconds between keep-alives: half of what systemd allows; None if it asks for none."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdigit() or pid != str(os.getpid()):
        return None
    return int(usec) / 1e6 / 2
