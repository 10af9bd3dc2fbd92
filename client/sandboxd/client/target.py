"""Where the daemon is, and how the channel to it is set up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

ADDRESS_VARIABLE = "SANDBOXD_ADDRESS"
DEFAULT_ADDRESS = "unix:///run/sandboxd/sandboxd.sock"

# sizeof(sockaddr_un.sun_path) on Linux, less the terminating NUL.
_SOCKET_PATH_BYTES_MAX = 107
# Answers hold a guest's output and, in a list, many modules. The most that a daemon can be told to
# send: --max-output has an end, and what is beside the output, too.
_RECEIVE_BYTES_MAX = (1 << 30) + (16 << 20)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    # The daemon's own limit on a request answers, rather than a second one here.
    ("grpc.max_send_message_length", -1),
    # gRPC waits up to two minutes between attempts to connect: too long after a restart of
    # a daemon on the same machine.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name: how long one attempt may take. A daemon on a busy machine is slow to greet.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS for a TCP target; certificate and key together make it mutual. Files are PEM."""

    ca: Path | None = None
    """Certificates to trust; None: the system's."""
    certificate: Path | None = None
    """The client's certificate chain."""
    key: Path | None = None
    """The client's private key."""
    server_name: str | None = None
    """Name to expect in the server's certificate, if it is not the target's."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError."""
        import grpc

        ca, key, certificate = (
            path.read_bytes() if path is not None else None
            for path in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Channel options that go with the credentials."""
        if self.server_name is None:
            return ()
        return (("grpc.ssl_target_name_override", self.server_name),)


def resolve_target(address: str | os.PathLike[str] | None) -> str:
    """Turn an address into a gRPC target.

    Takes `unix:///path`, `unix:path`, `/path`, `host:port`, `dns:///host:port`; None means the
    environment's SANDBOXD_ADDRESS, else the system's daemon (`/run/sandboxd/sandboxd.sock`), else,
    if that one is not there, this user's own (below XDG_RUNTIME_DIR). Raises ValueError
    for an empty address, an address without port or a socket path that Linux cannot bind.
    """
    if address is None:
        address = os.environ.get(ADDRESS_VARIABLE) or _default_address()
    text = os.fspath(address)
    if text.startswith(("./", "../")):
        text = os.path.abspath(text)
    if text.startswith("/"):
        text = f"unix://{text}"
    path = socket_path(text)
    if path is not None:
        if not path or len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
            raise ValueError(
                f"a socket path has 1 to {_SOCKET_PATH_BYTES_MAX} bytes; this one has "
                f"{len(os.fsencode(path))}: {path}"
            )
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError(
            f"{text!r} is no address: give unix:///path, /path, host:port or dns:///host:port"
        )
    return text


def _default_address() -> str:
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "sandboxd", "sandboxd.sock")
    if not os.path.exists(DEFAULT_ADDRESS.removeprefix("unix://")) and os.path.isabs(own):
        return f"unix://{own}" if os.path.exists(own) else DEFAULT_ADDRESS
    return DEFAULT_ADDRESS


def socket_path(target: str) -> str | None:
    """Return the path of a unix target, None for any other target."""
    if not target.startswith("unix:"):
        return None
    rest = target.removeprefix("unix:")
    return rest.removeprefix("//") if rest.startswith("//") else rest
