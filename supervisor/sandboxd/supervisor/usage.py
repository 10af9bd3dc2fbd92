"""Values that are wrong on every start: bad usage, told before anything is started.

They are looked at here and not by the options' types, because some depend on the host, such as the
name of a user, and the message names what there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from sandboxd.supervisor import addresses, isolation, privileges
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.settings import Settings


def check(settings: Settings) -> None:
    """Raise `click.BadParameter` for the first setting that no start would take."""
    with _bad_usage("--listen"):
        for address in settings.listen:
            addresses.parse(address)
    with _bad_usage("--require-layer"):
        isolation.check_names(settings.require_layer)
    with _bad_usage("--user"):
        if settings.user:
            privileges.account(settings.user, 0)


@contextlib.contextmanager
def _bad_usage(flag: str) -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise click.BadParameter(str(error), param_hint=flag) from error
