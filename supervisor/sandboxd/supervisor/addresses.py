"""Addresses to listen on, as an operator writes them. Nothing here needs gRPC."""

from __future__ import annotations

import ipaddress
import itertools
import os
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from sandboxd.supervisor.errors import StartError

# sizeof(sockaddr_un.sun_path) less the NUL.
MAX_UNIX_PATH_BYTES = 107
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to compare with
_FORMS = "use unix:///path or tcp://127.0.0.1:port"


class EndpointError(StartError):
    """An address cannot be listened on; the message says why and what to do."""


class EndpointBusy(EndpointError):  # noqa: N818 - a state of the world
    """Something listens there already."""


class UnixAddress(NamedTuple):
    """A socket in the file system."""

    path: str


class TcpAddress(NamedTuple):
    """A host, which may be an IPv6 address, and a port, 0 for any."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """As gRPC writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(address: str) -> UnixAddress | TcpAddress:
    """Understand an address. Raises `EndpointError`."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise EndpointError(f"{address!r}: {error}; {_FORMS}") from error
    if parts.scheme == "unix":
        return _unix(address)
    if parts.scheme == "tcp":
        return _tcp(address)
    hint = f"; did you mean {_absolute(address)}?" if not parts.scheme and "/" in address else ""
    raise EndpointError(f"cannot listen on {address!r}: {_FORMS}{hint}")


def _unix(address: str) -> UnixAddress:
    # Not what urlsplit makes of it: the first name of unix://run/s.sock would be a host.
    path = address[len("unix:") :].removeprefix("//")
    hint = ""
    if path and not path.startswith("/"):
        # unix://run/s.sock lacks a slash, most likely; unix:s.sock is meant from here.
        meant = f"unix:///{path}" if address.startswith("unix://") else _absolute(path)
        hint = f"; did you mean {meant}?"
    if hint or not path or len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise EndpointError(
            f"cannot listen on {address!r}: a socket's path is absolute and has at most "
            f"{MAX_UNIX_PATH_BYTES} bytes, as in unix:///path{hint}"
        )
    if path.endswith("/") or not {"?", "#", "%", "\0"}.isdisjoint(path):
        raise EndpointError(
            f"cannot listen on {address!r}: a socket's path ends in a name and holds no '?', '#' "
            "or '%'"
        )
    return UnixAddress(path)


def _absolute(path: str) -> str:
    return f"unix://{os.path.abspath(path)}"


def _tcp(address: str) -> TcpAddress:
    parts = urlsplit(address)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise EndpointError(f"{address!r}: {error}") from error
    if not host or port is None:
        raise EndpointError(f"{address!r} needs a host and a port (0 for any)")
    return TcpAddress(host, port)


def require_distinct(addresses: Iterable[str]) -> None:
    """Raise `EndpointError` if two addresses could not be served at once, however written."""
    for one, other in itertools.combinations(addresses, 2):
        if _collide(parse(one), parse(other)):
            written = (
                f"{one!r} is given twice" if one == other else f"{one!r} and {other!r} collide"
            )
            raise EndpointError(f"{written}: leave one of them out")


def _collide(one: UnixAddress | TcpAddress, other: UnixAddress | TcpAddress) -> bool:
    match one, other:
        case UnixAddress(), UnixAddress():
            return os.path.realpath(one.path) == os.path.realpath(other.path)
        case TcpAddress(), TcpAddress():
            hosts = {_plain(one.host), _plain(other.host)}
            # gRPC takes a wildcard for every address of both families. A port 0 becomes any.
            return one.port == other.port != 0 and (len(hosts) == 1 or bool(hosts & _WILDCARDS))
    return False


def _plain(host: str) -> str:
    """The one way to write a host's address; names stay as they are."""
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host


def require_guard(address: TcpAddress, tls: bool, insecure: bool) -> None:
    """Raise `EndpointError` unless TLS guards the address, or it is loopback and meant to be open.

    Nothing is resolved: of names, only localhost is loopback.
    """
    if not tls and not (insecure and _is_loopback(address.host)):
        raise EndpointError(
            f"tcp://{address.target}: TCP needs --tls-cert, --tls-key and --tls-client-ca; without "
            "them only a loopback address with --insecure-tcp is possible"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
