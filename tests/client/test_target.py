"""Addresses, TLS parameters and the package itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.fake_daemon import FakeDaemon

from sandboxd.client import AsyncClient, Client, Tls
from sandboxd.client.target import DEFAULT_ADDRESS, resolve_target, socket_path


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/x.sock", "unix:///run/x.sock"),
        ("unix:x.sock", "unix:x.sock"),
        ("/run/x.sock", "unix:///run/x.sock"),
        (Path("/run/x.sock"), "unix:///run/x.sock"),
        ("localhost:50051", "localhost:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("dns:///sandbox.example:443", "dns:///sandbox.example:443"),
    ],
)
def test_addresses_become_targets(address: str | Path, target: str) -> None:
    assert resolve_target(address) == target


@contextlib.contextmanager
def _slow_to_greet(daemon: str, path: Path, seconds: float) -> Iterator[str]:
    """A way to a daemon on which nothing is passed on at first."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        near, _ = listener.accept()
        time.sleep(seconds)
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(daemon)
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"unix://{path}"
        thread.join()


def test_a_daemon_that_is_slow_to_greet_is_waited_for(daemon: FakeDaemon) -> None:
    near = daemon.socket.with_name("slow")
    with (
        _slow_to_greet(str(daemon.socket), near, 0.5) as address,
        Client(address) as client,
    ):
        assert client.status(timeout=10)


@pytest.mark.parametrize("bad", ["", "localhost", "host:", ":1", "host:99999", "unix:", "/" * 200])
def test_what_is_no_address_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ValueError, match=r"address|socket path"):
        resolve_target(bad)


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOXD_ADDRESS", raising=False)
    assert resolve_target(None) == DEFAULT_ADDRESS
    monkeypatch.setenv("SANDBOXD_ADDRESS", "/run/other.sock")
    assert resolve_target(None) == "unix:///run/other.sock"


def test_only_unix_targets_have_a_socket_path() -> None:
    assert socket_path("unix:///a/b") == "/a/b"
    assert socket_path("unix:b") == "b"
    assert socket_path("localhost:1") is None


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key"):
        Tls(certificate=tmp_path / "c.pem")
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=Tls(ca=tmp_path / "none.pem"))


async def test_a_closed_client_says_so(loop_daemon: FakeDaemon) -> None:
    client = AsyncClient(loop_daemon.address)
    await client.status()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.status()


def test_an_asynchronous_client_can_be_made_outside_a_loop() -> None:
    assert AsyncClient("/run/x.sock").target == "unix:///run/x.sock"


def test_importing_the_client_warns_of_nothing_and_brings_no_engine() -> None:
    code = (
        "import sys, sandboxd.client; "
        "print(sorted({'wasmtime', 'psutil', 'msgspec', 'rich', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
