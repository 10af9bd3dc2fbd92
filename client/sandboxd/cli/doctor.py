"""`sandboxctl doctor`: what isolates the guests of this daemon, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sandboxd.cli.settings import global_options, settings_of

if TYPE_CHECKING:
    from sandboxd.client import Status

# Not 1, which is any command's code if it failed: then nothing is known of the layers.
EXIT_NOT_ACTIVE = 3


@click.command()
@click.option(
    "--strict", is_flag=True, help=f"Exit with {EXIT_NOT_ACTIVE} if any layer is not active."
)
@global_options
@click.pass_context
def doctor(ctx: click.Context, /, *, strict: bool) -> None:
    """Show which layers of isolation are active, which are required, and what to do.

    A layer is active if every process applied it and verified it. The daemon does not start
    without those that are required: `sandboxd --isolation`, `--require-layer`.

    \b
    Exit codes:
      0    every required layer is active, with --strict every layer
      1    unknown: no daemon answers, or something else failed
      2    the command line is wrong
      3    a required layer is not active, with --strict any layer

    \b
    Examples:
      sandboxctl doctor
      sandboxctl doctor --strict && echo all walls stand
      sandboxctl doctor -o json | jq '.layers[] | select(.active | not)'
    """
    from sandboxd.cli import documents
    from sandboxd.cli.connect import connect

    settings = settings_of(ctx)
    with connect(settings) as client:
        snapshot = client.status(timeout=settings.timeout)
    findings = _findings(snapshot)
    missing = [layer for layer in snapshot.layers if not layer.active]
    if settings.json:
        documents.write(
            {
                "isolation_profile": snapshot.isolation_profile,
                "engine_version": snapshot.engine_version,
                "host": documents.plain(snapshot.host),
                "layers": [documents.plain(layer) for layer in snapshot.layers],
                "findings": findings,
            }
        )
    else:
        _print(snapshot, findings)
    if any(layer.required for layer in missing) or (strict and missing):
        raise click.exceptions.Exit(EXIT_NOT_ACTIVE)


def _findings(snapshot: Status) -> list[str]:
    """What an operator should know, in words."""
    host = snapshot.host
    found = []
    if host.supervisor_uid == 0:
        found.append("the process that speaks gRPC runs as root")
    if snapshot.engine_version != host.engine_package_version:
        found.append(
            f"the engine is {snapshot.engine_version}, though its package says "
            f"{host.engine_package_version}: judge advisories by the former"
        )
    if host.cgroup_mode == "none":
        found.append("no control groups are mounted")
    found += [
        f"{layer.name} is not active: {layer.remedy or layer.detail}"
        for layer in snapshot.layers
        if not layer.active
    ]
    return found


def _print(snapshot: Status, findings: list[str]) -> None:
    from sandboxd.cli.tables import print_table
    from sandboxd.client.text import printable

    host = snapshot.host
    user = f"{host.supervisor_uid}{' (started as root)' if host.started_as_root else ''}"
    print_table(
        ("PROFILE", "ENGINE", "PACKAGE", "KERNEL", "MACHINE", "CGROUPS", "USER"),
        [
            (
                snapshot.isolation_profile,
                snapshot.engine_version,
                host.engine_package_version,
                host.kernel,
                host.machine,
                host.cgroup_mode,
                user,
            )
        ],
    )
    print_table(
        ("LAYER", "ACTIVE", "REQUIRED", "VERIFIED, OR WHY NOT", "FOR"),
        [
            (
                layer.name,
                "yes" if layer.active else "NO",
                "yes" if layer.required else "no",
                layer.detail,
                layer.reason,
            )
            for layer in snapshot.layers
        ],
        title="Isolation",
        whole=("LAYER", "ACTIVE", "REQUIRED"),
    )
    click.echo()
    for finding in findings:
        click.echo(f"- {printable(finding)}")
    if not findings:
        click.echo("Nothing to remark.")
