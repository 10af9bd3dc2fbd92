"""`python -m bench`: measure, or make the report of what was measured."""

from __future__ import annotations

import asyncio
import datetime
import signal
import sys
import time
from pathlib import Path

import click

from bench import machine, registry, results
from bench.figure import FULL, QUICK, Figure, Settings
from bench.report import document, text
from bench.run import measure
from bench.stage import ROOT, Stage

DEFAULT_JSON = ROOT / "build" / "bench" / "results.json"
PARTIAL_JSON = DEFAULT_JSON.with_name("partial.json")
"""Of a run with --only or --quick, so that it does not take the place of a whole one."""

# How many missing figures are named.
_NAMED = 3


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="A rough look: few and short blocks.")
@click.option("--only", multiple=True, help="Only this figure; may be repeated.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="build/bench/results.json, or partial.json beside it with --only or --quick",
    help="Where the results go.",
)
@click.option("--list", "list_only", is_flag=True, help="List the figures.")
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    only: tuple[str, ...],
    json_path: Path | None,
    list_only: bool,
) -> None:
    """Measure sandboxd against its alternatives, on this machine.

    Exit status: 0 if no figure failed, whether its goal was met or not. What cannot be
    measured on this machine (a tool is missing, say) is named in the output and does not count.
    """
    if context.invoked_subcommand is not None:
        return
    settings = QUICK if quick else FULL
    figures = registry.all_figures(settings)
    if list_only:
        for figure in figures:
            click.echo(f"{figure.name:28} {figure.title}")
        return
    unknown = set(only) - {figure.name for figure in figures}
    if unknown:
        raise click.BadParameter(f"no such figure: {', '.join(sorted(unknown))}; see --list")
    chosen = [figure for figure in figures if not only or figure.name in only]
    try:
        found = asyncio.run(_run(chosen, settings))
    except asyncio.CancelledError:
        raise click.Abort from None
    results.write(found, json_path or (PARTIAL_JSON if quick or only else DEFAULT_JSON))
    click.echo(text.summary(found))
    sys.exit(any(figure.error for figure in found.figures))


@main.command()
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=DEFAULT_JSON,
    show_default="build/bench/results.json",
    help="The results to report.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Report a run that was quick or lacks figures, too: the document loses the others.",
)
def report(json_path: Path, partial: bool) -> None:
    """Write figures and charts into docs/performance.md, between its markers.

    Exit status: 0 if written; 2 for results of a run that was not whole.
    """
    found = results.read(json_path)
    if not partial and (lack := _lack(found)):
        raise click.UsageError(
            f"{json_path} {lack}; docs/performance.md would lose what it shows of a whole run. "
            "Nothing was written. Measure everything (`make bench`), or pass --partial"
        )
    for path in document.write(found, ROOT / "docs"):
        click.echo(path.relative_to(ROOT))


def _lack(found: results.Results) -> str:
    """What these results lack of a whole run's, as the end of a sentence; "" if nothing."""
    if found.quick:
        return "is of a quick run"
    wanted = [figure.name for figure in registry.all_figures(FULL)]
    missing = [name for name in wanted if name not in {figure.name for figure in found.figures}]
    if not missing:
        return ""
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return f"lacks {len(missing)} of {len(wanted)} figures ({named})"


async def _run(figures: list[Figure], settings: Settings) -> results.Results:
    stage = Stage(settings)
    _stop_cleanly()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    started_at = time.monotonic()
    load_before = machine.load()
    found: list[results.FigureResult] = []
    for number, figure in enumerate(figures, 1):
        _say(f"[{number}/{len(figures)}] {figure.name}: {figure.title}")
        result = await measure(figure, stage, _say)
        for line in text.figure_lines(result):
            _say(f"    {line}")
        found.append(result)
    described = machine.describe()
    described.versions.update(stage.versions)
    return results.Results(
        machine=described,
        commit=machine.commit(),
        quick=settings.quick,
        rounds=settings.rounds,
        block_s=settings.block_s,
        started=started,
        seconds=results.rounded(time.monotonic() - started_at),
        load_before=load_before,
        load_after=machine.load(),
        layers=stage.layers,
        figures=found,
    )


def _stop_cleanly() -> None:
    """On SIGINT and SIGTERM end what was started; a job in the background ignores the former."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
