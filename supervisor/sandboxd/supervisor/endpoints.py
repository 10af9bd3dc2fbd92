"""Where the daemon listens, and who may reach it there.

A unix socket is guarded by its directory and mode 0660; gRPC tells no peer credentials. TCP needs
mutual TLS; without it only loopback is possible, and only when it was asked for by name.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc import aio

from sandboxd.supervisor import addresses
from sandboxd.supervisor.addresses import (
    MAX_UNIX_PATH_BYTES,
    EndpointError,
    TcpAddress,
    UnixAddress,
)

__all__ = ["MAX_UNIX_PATH_BYTES", "EndpointError", "Tls", "bind", "unlink"]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the server and of the authority that signs clients."""

    certificate: str
    key: str
    client_ca: str

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files. Raises `EndpointError`."""
        try:
            pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
            authority = Path(self.client_ca).read_bytes()
        except OSError as error:
            raise EndpointError(f"TLS: {error.filename}: {error.strerror}") from error
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=True)


def bind(
    server: aio.Server, addresses: tuple[str, ...], group: str, tls: Tls | None, insecure_tcp: bool
) -> list[str]:
    """Bind all addresses and return them as bound (a TCP port 0 becomes the real one).

    Raises `EndpointError`.
    """
    bound: list[str] = []
    try:
        for address in addresses:
            bound.append(_bind(server, address, group, tls, insecure_tcp))
    except EndpointError:
        unlink(bound)
        raise
    return bound


def _bind(server: aio.Server, address: str, group: str, tls: Tls | None, insecure_tcp: bool) -> str:
    match addresses.parse(address):
        case UnixAddress(path=path):
            return _bind_unix(server, path, group)
        case TcpAddress() as found:
            return _bind_tcp(server, found, tls, insecure_tcp)


def _bind_unix(server: aio.Server, path: str, group: str) -> str:
    gid = _gid(group) if group else -1
    _refuse_if_served(path)
    try:
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise EndpointError(f"{error.filename}: {error.strerror}; pass another --listen") from error
    previous = os.umask(0o117)  # mode 0660 from the first moment
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise EndpointError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(previous)
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except OSError as error:
        unlink([f"unix://{path}"])
        raise EndpointError(f"cannot give {path} to group {group!r}: {error.strerror}") from error
    return f"unix://{path}"


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise EndpointError(
            f"there is no group {group!r}; create it, or leave --socket-group out"
        ) from None


def _refuse_if_served(path: str) -> None:
    """Refuse to take a socket away from a daemon that still serves it, or to unlink a file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ECONNREFUSED and Path(path).is_socket():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # left behind by a daemon that was killed
                return
            raise EndpointError(f"{path}: {error.strerror}") from error
    raise EndpointError(f"another daemon serves {path}; stop it, or pass another --listen")


def _bind_tcp(server: aio.Server, address: TcpAddress, tls: Tls | None, insecure: bool) -> str:
    target = address.target
    try:
        if tls is not None:
            chosen = server.add_secure_port(target, tls.credentials())
        elif not insecure or not _is_loopback(address.host):
            raise EndpointError(
                f"tcp://{target}: TCP needs --tls-cert, --tls-key and --tls-client-ca; without "
                "them only a loopback address with --insecure-tcp is possible"
            )
        else:
            chosen = server.add_insecure_port(target)
    except RuntimeError as error:
        raise EndpointError(f"cannot listen on tcp://{target}: {error}") from error
    return f"tcp://{target.rsplit(':', 1)[0]}:{chosen}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unlink(addresses: list[str]) -> None:
    """Remove the sockets that `bind` returned."""
    for address in addresses:
        if address.startswith("unix://"):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix("unix://"))
