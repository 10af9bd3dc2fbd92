"""`sandboxctl status`: what the daemon is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sandboxd.cli.settings import global_options, settings_of

if TYPE_CHECKING:
    from sandboxd.client import Status


@click.command()
@global_options
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show what the daemon is doing: runners, queue, outcomes, latency, isolation.

    \b
    Examples:
      sandboxctl status
      sandboxctl status -o json | jq .queue.depth
      watch -n1 sandboxctl status
    """
    from sandboxd.cli import documents
    from sandboxd.cli.connect import connect

    settings = settings_of(ctx)
    with connect(settings) as client:
        snapshot = client.status(timeout=settings.timeout)
    if settings.json:
        documents.write(documents.plain(snapshot))
        return
    _print_daemon(snapshot)
    _print_load(snapshot)
    _print_artifacts(snapshot)
    _print_runners(snapshot)
    _print_layers(snapshot)


def _print_daemon(snapshot: Status) -> None:
    from sandboxd.cli.tables import duration, print_table

    zygote = snapshot.zygote_pid or "none"
    print_table(
        ("DAEMON", "ENGINE", "PID", "ZYGOTE", "UP", "MODULES", "COMPILING"),
        [
            (
                snapshot.version,
                snapshot.engine_version,
                snapshot.pid,
                zygote,
                duration(snapshot.uptime_ns),
                snapshot.modules,
                snapshot.compiling,
            )
        ],
    )


def _print_load(snapshot: Status) -> None:
    from sandboxd.cli.tables import duration, print_table

    pool, queue, latency = snapshot.pool, snapshot.queue, snapshot.latency
    print_table(
        (
            *("STARTING", "SPARE", "LOADING", "BOUND", "AHEAD", "BUSY", "DYING"),
            *("CAPACITY", "STARTED", "ENDED", "ZYGOTES"),
        ),
        [
            (
                pool.starting,
                pool.spare,
                pool.loading,
                pool.bound,
                pool.ahead,
                pool.busy,
                pool.dying,
                pool.capacity,
                pool.started_total,
                pool.ended_total,
                pool.zygote_starts_total,
            )
        ],
        title="Pool",
    )
    print_table(
        ("DEPTH", "CAPACITY", "REFUSED"),
        [(queue.depth, queue.capacity, queue.refused_total)],
        title="Queue",
    )
    print_table(
        ("ANSWER", "KIND", "COUNT"),
        [(o.name, "fault" if o.fault else "outcome", o.count) for o in snapshot.outcomes],
        title="Answers",
        right=("COUNT",),
    )
    quantiles = (latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.max_ns)
    print_table(
        ("CALLS", "P50", "P90", "P99", "MAX"),
        [(latency.count, *map(duration, quantiles))],
        title="Latency",
    )


def _print_artifacts(snapshot: Status) -> None:
    from sandboxd.cli.tables import print_table, size

    it = snapshot.artifacts
    print_table(
        ("IN MEMORY", "SIZE", "ON DISK", "SIZE", "COMPILED", "LOADED", "REJECTED"),
        [
            (
                it.cached,
                size(it.cache_bytes),
                it.stored,
                size(it.stored_bytes),
                it.compiled_total,
                it.loaded_total,
                it.rejected_total,
            )
        ],
        title="Compiled modules",
    )


def _print_runners(snapshot: Status) -> None:
    from sandboxd.cli.tables import duration, print_table, short_digest, size

    print_table(
        ("PID", "STATE", "TENANT", "MODULE", "AGE", "CALLS", "RSS", "CPU"),
        [
            (
                runner.pid,
                runner.state.lower(),
                runner.tenant or "-",
                short_digest(runner.module_digest) or "-",
                duration(runner.age_ns),
                runner.executions,
                size(runner.rss_bytes),
                duration(runner.cpu_time_ns),
            )
            for runner in snapshot.runners
        ],
        title="Runners",
        right=("PID", "CALLS", "RSS", "CPU"),
    )


def _print_layers(snapshot: Status) -> None:
    from sandboxd.cli.tables import print_table

    print_table(
        ("LAYER", "ACTIVE", "DETAIL"),
        [(layer.name, "yes" if layer.active else "NO", layer.detail) for layer in snapshot.layers],
        title="Isolation",
        whole=("LAYER", "ACTIVE"),
    )
