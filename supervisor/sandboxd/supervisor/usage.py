"""Settings that no start would take: bad usage, told before anything is started.

Values that are wrong, and settings that contradict each other. They are looked at here and not by
the options' types, because some depend on each other or on the host, such as the name of a user,
and the message names what there is. Left to the start is what the host may have at the next one: a
directory that can be written, a certificate, a group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from sandboxd.supervisor import addresses, isolation, privileges
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.settings import Settings


def check(settings: Settings) -> None:
    """Raise `click.UsageError` for the first setting that no start would take."""
    _check_tls(settings)
    with _bad_usage("--listen"):
        _check_listen(settings)
    with _bad_usage("--require-layer"):
        isolation.check_names(settings.require_layer)
    with _bad_usage("--user"):
        if settings.user:
            privileges.account(settings.user, 0)
    _check_limits(settings)


def _check_tls(settings: Settings) -> None:
    given = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if any(given) and not all(given):
        raise click.UsageError("TLS needs all of --tls-cert, --tls-key and --tls-client-ca")


def _check_listen(settings: Settings) -> None:
    for address in settings.listen:
        parsed = addresses.parse(address)
        if isinstance(parsed, addresses.TcpAddress):
            addresses.require_guard(parsed, bool(settings.tls_cert), settings.insecure_tcp)
    addresses.require_distinct(settings.listen)


def _check_limits(settings: Settings) -> None:
    """A default above its maximum would refuse every call that does not set the limit itself."""
    for name in ("wall_time", "cpu_time", "memory", "table_elements", "output"):
        if getattr(settings, f"default_{name}") > getattr(settings, f"max_{name}"):
            flag = name.replace("_", "-")
            raise click.UsageError(
                f"--default-{flag} is above --max-{flag}; raise or lower one of them"
            )


@contextlib.contextmanager
def _bad_usage(flag: str) -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise click.BadParameter(str(error), param_hint=flag) from error
