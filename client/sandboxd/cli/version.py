"""`sandboxctl version`: the client's version and the daemon's."""

from __future__ import annotations

import click

from sandboxd.cli.settings import global_options, settings_of

# Nobody waits longer to learn a version.
_TIMEOUT_S = 5.0


@click.command()
@global_options
@click.pass_context
def version(ctx: click.Context) -> None:
    """Show the client's version and, if one answers, the daemon's.

    Exits with 0 whether or not a daemon answers.

    \b
    Examples:
      sandboxctl version
      sandboxctl version -o json --address /run/sandboxd/sandboxd.sock
    """
    from importlib import metadata

    from sandboxd.cli import advice, documents
    from sandboxd.cli.connect import connect
    from sandboxd.client import Fault
    from sandboxd.client.text import printable

    settings = settings_of(ctx)
    own = metadata.version("sandboxd")
    daemon = error = None
    with connect(settings) as client:
        try:
            daemon = client.status(timeout=settings.timeout or _TIMEOUT_S)
        except Fault as fault:
            error = fault
    if settings.json:
        told = daemon and {"version": daemon.version, "engine_version": daemon.engine_version}
        documents.write(
            {
                "client": {"version": own},
                "daemon": told,
                "address": client.target,
                "error": error and documents.error(error),
            }
        )
        return
    click.echo(f"client: {own}")
    if daemon is not None:
        click.echo(
            f"daemon: {printable(daemon.version)} (engine {printable(daemon.engine_version)})"
        )
    if error is not None:
        click.echo(f"daemon: none ({advice.explain(error, settings)[0]})")
