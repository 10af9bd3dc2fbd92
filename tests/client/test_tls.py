"""Mutual TLS over TCP, with certificates made for the test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.client.fake_daemon import FakeDaemon, in_thread

from sandboxd.client import AsyncClient, Client, DaemonUnreachable, Tls

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl(1)")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate for both sides, signed by itself; its key lies beside it as .key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", "/CN=sandboxd.test",
         "-addext", "subjectAltName=DNS:sandboxd.test",
         "-keyout", path.with_suffix(".key"), "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


@pytest.fixture
def secure_fake(socket: Path, certificate: Path) -> FakeDaemon:
    pem, key = certificate.read_bytes(), certificate.with_suffix(".key").read_bytes()
    fake = FakeDaemon(socket)
    fake.credentials = grpc.ssl_server_credentials(
        [(key, pem)], root_certificates=pem, require_client_auth=True
    )
    return fake


@pytest.fixture
def tls_daemon(secure_fake: FakeDaemon) -> Iterator[FakeDaemon]:
    with in_thread(secure_fake):
        yield secure_fake


def test_both_sides_know_each_other(tls_daemon: FakeDaemon, certificate: Path) -> None:
    tls = Tls(
        ca=certificate,
        certificate=certificate,
        key=certificate.with_suffix(".key"),
        server_name="sandboxd.test",
    )
    with Client(tls_daemon.address, tls=tls) as client:
        assert client.status().version == "9.9.9"


def test_a_stranger_is_not_let_in(tls_daemon: FakeDaemon, certificate: Path) -> None:
    anonymous = Tls(ca=certificate, server_name="sandboxd.test")
    with Client(tls_daemon.address, tls=anonymous) as client, pytest.raises(DaemonUnreachable):
        client.status()


def test_a_daemon_of_another_name_is_not_trusted(tls_daemon: FakeDaemon, certificate: Path) -> None:
    tls = Tls(ca=certificate, certificate=certificate, key=certificate.with_suffix(".key"))
    with Client(tls_daemon.address, tls=tls) as client, pytest.raises(DaemonUnreachable):
        client.status()


async def test_asyncio_speaks_tls_too(secure_fake: FakeDaemon, certificate: Path) -> None:
    tls = Tls(
        ca=certificate,
        certificate=certificate,
        key=certificate.with_suffix(".key"),
        server_name="sandboxd.test",
    )
    async with secure_fake.serve(), AsyncClient(secure_fake.address, tls=tls) as client:
        assert (await client.status()).version == "9.9.9"
