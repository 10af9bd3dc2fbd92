"""Addresses to listen on, as an operator writes them. Nothing here needs gRPC."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import urlsplit

from sandboxd.supervisor.errors import StartError

# sizeof(sockaddr_un.sun_path) less the NUL.
MAX_UNIX_PATH_BYTES = 107
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
