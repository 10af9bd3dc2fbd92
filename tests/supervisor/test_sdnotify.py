"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.supervisor.sdnotify import Notifier


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        yield sock


def test_assignments_arrive_as_one_datagram(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    systemd.bind("notify")
    monkeypatch.setenv("NOTIFY_SOCKET", "notify")
    notifier = Notifier()
    notifier.notify("READY=1", "STATUS=serving")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=serving"
    # Children must not be able to speak for the daemon.
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.close()
    notifier.close()
    notifier.notify("STOPPING=1")


def test_an_abstract_address_works(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sandboxd-test-{os.getpid()}"
    systemd.bind("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    notifier = Notifier()
    notifier.notify("WATCHDOG=1")
    assert systemd.recv(1000) == b"WATCHDOG=1"
    notifier.close()


def test_a_full_or_lost_socket_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        notifier = Notifier()
        for _ in range(5000):
            notifier.notify("STATUS=" + "x" * 1000)
    notifier.notify("READY=1")
    notifier.close()


def test_without_systemd_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.notify("READY=1")
    notifier.close()


def test_an_address_that_nobody_listens_on_does_not_stop_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notifier = Notifier()
    notifier.notify("READY=1")
    notifier.close()


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("20000000", "", 10.0),
        ("20000000", "own", 10.0),
        ("20000000", "1", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_keep_alives_come_twice_as_often_as_systemd_demands(
    usec: str, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Notifier().watchdog_interval_s == interval_s
