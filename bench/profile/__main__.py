"""`python -m bench.profile`: profile a call, and a runner's life."""

from __future__ import annotations

import asyncio
import datetime
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from bench import machine
from bench.figure import FULL, QUICK, Settings
from bench.profile import life, report, samples, steps, switches, system_calls
from bench.profile.finding import Finding, NotMeasured, Subject
from bench.stage import Stage

SUBJECTS = (
    Subject("steps", "The steps of a call", steps.measure),
    Subject("system-calls", "The system calls of a call", system_calls.measure),
    Subject("switches", "Who takes the processor from the main thread", switches.measure),
    Subject("samples", "Where processor time goes", samples.measure),
    Subject("life", "The steps of a runner's life", life.measure),
)


@click.command()
@click.option("--quick", is_flag=True, help="A rough look.")
@click.option(
    "--only", multiple=True, type=click.Choice([subject.name for subject in SUBJECTS]), help="Some."
)
@click.option(
    "--write",
    "document",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Put what was found into this document, between its markers.",
)
def main(quick: bool, only: tuple[str, ...], document: Path | None) -> None:
    """Find out where the time of a call and of a new process goes, on this machine.

    Exit status: 0 if nothing failed. What cannot be measured on this machine (perf is missing, say)
    is named in the output and does not count.
    """
    settings = QUICK if quick else FULL
    chosen = [subject for subject in SUBJECTS if not only or subject.name in only]
    parts, failed = asyncio.run(_run(chosen, settings))
    for part in parts.values():
        click.echo(f"\n{part}")
    if document is not None:
        report.write(parts, document)
    sys.exit(failed)


async def _run(subjects: Sequence[Subject], settings: Settings) -> tuple[dict[str, str], bool]:
    """Return what the document's places get, and whether a subject failed: it gets nothing."""
    parts: dict[str, str] = {}
    failed = False
    for subject in subjects:
        click.echo(f"{subject.name}: {subject.title}", err=True)
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = report.Circumstances(
            machine.commit(), started, machine.load()[0], quick=settings.quick
        )
        try:
            parts[report.place(subject)] = report.told(await _measure(subject, settings), about)
        except Exception:  # noqa: BLE001 - one subject's failure must not cost the others
            click.echo(traceback.format_exc(), err=True)
            failed = True
    return parts, failed


async def _measure(subject: Subject, settings: Settings) -> Finding | str:
    try:
        return await subject.measure(Stage(settings))
    except NotMeasured as reason:
        return str(reason)


if __name__ == "__main__":
    main(prog_name="python -m bench.profile")
