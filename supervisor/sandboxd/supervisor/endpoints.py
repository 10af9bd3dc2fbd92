"""Where the daemon listens, and who may reach it there.

A unix socket is guarded by its directory and mode 0660; gRPC tells no peer credentials. TCP needs
mutual TLS; without it only loopback is possible, and only when it was asked for by name.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc import aio

from sandboxd.supervisor import addresses, state_directory
from sandboxd.supervisor.addresses import (
    MAX_UNIX_PATH_BYTES,
    EndpointBusy,
    EndpointError,
    TcpAddress,
    UnixAddress,
    require_guard,
)

__all__ = ["MAX_UNIX_PATH_BYTES", "EndpointError", "Tls", "bind", "check", "unlink"]


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
    if _is_left_behind(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
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


def _is_left_behind(path: str) -> bool:
    """True for a socket that a killed daemon left, False for nothing at all.

    Raises `EndpointError`: a socket is not taken from a daemon that serves it, and no file is.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ECONNREFUSED and Path(path).is_socket():
                return True
            if error.errno == errno.ECONNREFUSED:
                words = f"{path} is not a socket; move it away, or pass another --listen"
                raise EndpointError(words) from error
            raise EndpointError(f"{path}: {error.strerror}") from error
    raise EndpointBusy(f"another daemon serves {path}; stop it, or pass another --listen")


def _bind_tcp(server: aio.Server, address: TcpAddress, tls: Tls | None, insecure: bool) -> str:
    require_guard(address, tls is not None, insecure)
    target = address.target
    try:
        if tls is not None:
            chosen = server.add_secure_port(target, tls.credentials())
        else:
            chosen = server.add_insecure_port(target)
    except RuntimeError as error:
        raise EndpointError(f"cannot listen on tcp://{target}: {error}") from error
    return f"tcp://{target.rsplit(':', 1)[0]}:{chosen}"


def check(address: str, group: str, tls: Tls | None, insecure_tcp: bool) -> None:
    """Find out whether `bind` could bind an address, and leave nothing. Raises `EndpointError`."""
    match addresses.parse(address):
        case UnixAddress(path=path):
            if group:
                _gid(group)
            _is_left_behind(path)
            _require_room(Path(path).parent)
        case TcpAddress() as found:
            require_guard(found, tls is not None, insecure_tcp)
            if tls is not None:
                tls.credentials()
            _try_port(found)


def _require_room(directory: Path) -> None:
    """Raise if no socket could be made in the directory, or the directory itself could not be."""
    nearest = next(one for one in (directory, *directory.parents) if one.exists())
    try:
        state_directory.try_making_in(nearest)
    except OSError as error:
        words = f"{nearest}: no socket can be made there: {error.strerror}; pass another --listen"
        raise EndpointError(words) from error


def _try_port(address: TcpAddress) -> None:
    try:
        family, kind, _, _, found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
    except OSError as error:
        words = f"cannot listen on tcp://{address.target}: {error.strerror}"
        busy = error.errno == errno.EADDRINUSE
        raise (EndpointBusy if busy else EndpointError)(words) from error


def unlink(addresses: list[str]) -> None:
    """Remove the sockets that `bind` returned."""
    for address in addresses:
        if address.startswith("unix://"):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix("unix://"))
