"""From settings to a client, and from what the user typed to a module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sandboxd.cli.settings import Settings
    from sandboxd.client import Client

# Fewer hex digits are more likely a mistyped file name than a digest.
PREFIX_DIGITS_MIN = 4
_PREFIX = re.compile(rf"(?:sha256:)?([0-9a-f]{{{PREFIX_DIGITS_MIN},64}})")
_CANDIDATES_SHOWN = 10


def connect(settings: Settings) -> Client:
    """Make a client. Nothing is sent yet. Raises click.UsageError for a bad address."""
    from sandboxd.client import Client, Tls

    try:
        tls = None
        if settings.tls_ca or settings.tls_cert or settings.tls_key or settings.tls_name:
            tls = Tls(
                ca=settings.tls_ca,
                certificate=settings.tls_cert,
                key=settings.tls_key,
                server_name=settings.tls_name,
            )
        return Client(settings.address, tls=tls)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def find_module(client: Client, text: str, timeout: float | None) -> Path | str:
    """Tell what MODULE means: a file if there is one, else a digest or the start of one.

    Raises click.ClickException if it means nothing, or several modules.
    """
    path = Path(text)
    try:
        if path.exists() and not path.is_dir():
            return path
    except (OSError, ValueError):  # A name that no file can have.
        pass
    match = _PREFIX.fullmatch(text.lower())
    if not match:
        raise click.ClickException(
            f"there is no file {text!r}, and it is not a digest or {PREFIX_DIGITS_MIN} or more "
            "hex digits of one\nStored modules: sandboxctl module ls"
        )
    if len(match[1]) == 64:
        return f"sha256:{match[1]}"
    return _by_prefix(client, match[1], timeout)


def find_stored(client: Client, text: str, timeout: float | None) -> str:
    """Tell the digest that MODULE means; a file stands for the digest of its bytes."""
    from sandboxd.client import digest_of

    module = find_module(client, text, timeout)
    return digest_of(module.read_bytes()) if isinstance(module, Path) else module


def _by_prefix(client: Client, digits: str, timeout: float | None) -> str:
    found: list[str] = []
    listing = client.list(f"sha256:{digits}", page_size=_CANDIDATES_SHOWN + 1, timeout=timeout)
    for module in listing:
        found.append(module.digest)
        if len(found) > _CANDIDATES_SHOWN:
            break
    if len(found) == 1:
        return found[0]
    if not found:
        raise click.ClickException(
            f"no stored module's digest begins with {digits}\n"
            "Push it first: sandboxctl module push FILE"
        )
    more = ["  …"] if len(found) > _CANDIDATES_SHOWN else []
    shown = [f"  {digest}" for digest in found[:_CANDIDATES_SHOWN]]
    raise click.ClickException(
        "\n".join([f"{digits} is ambiguous; give more digits:", *shown, *more])
    )
