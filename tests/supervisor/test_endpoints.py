"""Addresses: nothing that serves is taken away, nothing unguarded is opened."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc import aio

from sandboxd.supervisor import endpoints
from sandboxd.supervisor.endpoints import MAX_UNIX_PATH_BYTES, EndpointError, Tls


@pytest.fixture
async def server() -> AsyncIterator[aio.Server]:
    made = aio.server()
    yield made
    await made.stop(0)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = str(tmp_path / "s")
    assert len(found) < MAX_UNIX_PATH_BYTES
    return found


def bind(
    server: aio.Server, *addresses: str, tls: Tls | None = None, insecure: bool = False
) -> list[str]:
    return endpoints.bind(server, addresses, "", tls, insecure)


async def test_a_socket_is_reachable_by_owner_and_group_only(server: aio.Server, path: str) -> None:
    assert bind(server, f"unix://{path}") == [f"unix://{path}"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


async def test_a_socket_that_was_left_behind_is_replaced(server: aio.Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert bind(server, f"unix://{path}")


async def test_a_socket_that_is_served_is_refused_and_kept(server: aio.Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(EndpointError, match="another daemon serves"):
            bind(server, f"unix://{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def make(path: Path, kind: str) -> None:
    match kind:
        case "directory":
            path.mkdir()
        case "file":
            path.write_text("precious")
        case _:
            target = path.with_name("target")
            target.write_text("precious")
            path.symlink_to(target)


def is_as_made(path: Path) -> bool:
    return path.is_dir() or path.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "directory", "link to a file"])
async def test_what_is_not_a_socket_is_never_removed(
    server: aio.Server, path: str, kind: str
) -> None:
    make(Path(path), kind)
    with pytest.raises(EndpointError, match=re.escape(f"{path} is not a socket; ")):
        bind(server, f"unix://{path}")
    assert is_as_made(Path(path))


@pytest.mark.parametrize("address", ["unix://relative", "unix:", "unix:///" + "x" * 107])
async def test_a_path_that_cannot_be_a_sockets_is_refused(server: aio.Server, address: str) -> None:
    with pytest.raises(EndpointError, match=f"at most {MAX_UNIX_PATH_BYTES} bytes"):
        bind(server, address)


async def test_the_directory_is_made_for_owner_and_group(server: aio.Server, path: str) -> None:
    bind(server, f"unix://{path}/deep/s")
    assert stat.S_IMODE(os.stat(f"{path}/deep").st_mode) & 0o007 == 0


async def test_an_unknown_group_is_refused_by_name(server: aio.Server, path: str) -> None:
    with pytest.raises(EndpointError, match="no group 'no-such-group'"):
        endpoints.bind(server, (f"unix://{path}",), "no-such-group", None, False)


@pytest.mark.parametrize(
    ("address", "insecure"),
    [
        ("tcp://127.0.0.1:0", False),
        ("tcp://0.0.0.0:0", True),
        ("tcp://[::]:0", True),
        ("tcp://192.0.2.1:0", True),
        ("tcp://example.org:0", True),
    ],
)
async def test_tcp_without_tls_is_for_loopback_on_demand_only(
    server: aio.Server, address: str, insecure: bool
) -> None:
    with pytest.raises(EndpointError, match="--tls-client-ca"):
        bind(server, address, insecure=insecure)


async def test_port_0_becomes_the_real_port(server: aio.Server) -> None:
    (bound,) = bind(server, "tcp://127.0.0.1:0", insecure=True)
    assert int(bound.rpartition(":")[2]) > 0


@pytest.mark.parametrize(
    "address",
    ["tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:70000", "tcp://:1"],
)
async def test_a_tcp_address_needs_host_and_port(server: aio.Server, address: str) -> None:
    with pytest.raises(EndpointError):
        bind(server, address, insecure=True)


async def test_a_taken_port_is_refused(server: aio.Server) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(EndpointError, match="cannot listen"):
            bind(server, f"tcp://127.0.0.1:{other.getsockname()[1]}", insecure=True)


@pytest.mark.parametrize("address", ["/run/s.sock", "http://localhost:1", "", "vsock://1:2"])
async def test_other_schemes_are_refused_with_an_example(server: aio.Server, address: str) -> None:
    with pytest.raises(EndpointError, match="unix:///path"):
        bind(server, address)


async def test_tls_files_that_cannot_be_read_are_named(server: aio.Server, path: str) -> None:
    tls = Tls(certificate=f"{path}/cert.pem", key="/dev/null", client_ca="/dev/null")
    with pytest.raises(EndpointError, match=r"cert\.pem"):
        bind(server, "tcp://127.0.0.1:0", tls=tls)


async def test_a_refused_address_leaves_no_socket_of_the_others_behind(
    server: aio.Server, path: str
) -> None:
    with pytest.raises(EndpointError):
        bind(server, f"unix://{path}", "tcp://0.0.0.0:0")
    assert os.listdir(os.path.dirname(path)) == []


def test_unlinking_removes_unix_sockets_and_forgives(path: str) -> None:
    Path(path).touch()
    endpoints.unlink([f"unix://{path}", f"unix://{path}", "tcp://127.0.0.1:1"])
    assert not os.path.exists(path)
