"""The one place that turns an exception into words and an exit code: never a traceback."""

from __future__ import annotations

import contextlib
import os
import sys

import click

from sandboxd.cli.settings import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    Settings,
)


def conclude(error: BaseException, settings: Settings) -> int:
    """Say what happened and return the exit code."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            _drop_output()
            return EXIT_BROKEN_PIPE
        case click.UsageError():
            error.show()
            return settings.usage_code
    if settings.json:
        from sandboxd.cli import documents

        write = documents.write_line if settings.json_lines else documents.write
        write({"error": documents.error(error)})
    say(error, settings)
    return settings.fault_code


def conclude_without_output(error: BaseException, settings: Settings) -> int:
    """Return the exit code when standard output cannot be written to; say so where possible."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    _drop_output()
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    with contextlib.suppress(OSError):
        click.echo(f"sandboxctl: cannot write the output: {error}", err=True)
    return settings.fault_code


def say(error: BaseException, settings: Settings, about: str = "", *, advise: bool = True) -> None:
    """Write to standard error what went wrong and, where known, what to do next.

    Args:
        error: what went wrong.
        settings: where the daemon is.
        about: which of several things it is about.
        advise: False leaves out what to do next, where it was said before.
    """
    problem, next_step = _words(error, settings)
    if about and about not in problem:
        from sandboxd.client.text import printable

        problem = f"{printable(about)}: {problem}"
    click.echo(f"sandboxctl: {problem}", err=True)
    if next_step and advise:
        click.echo(next_step, err=True)


def _words(error: BaseException, settings: Settings) -> tuple[str, str]:
    from sandboxd.cli import advice
    from sandboxd.client import Fault
    from sandboxd.client.text import printable

    match error:
        case Fault():
            return advice.explain(error, settings)
        case click.ClickException():
            lines = error.format_message().splitlines()
            return "\n".join(map(printable, lines)), ""
        case OSError() if error.filename is not None:
            return printable(f"{os.fsdecode(error.filename)}: {error.strerror}"), ""
        case OSError():
            return printable(str(error)), ""
    return (
        printable(f"internal error: {type(error).__name__}: {error}"),
        "This is a bug in sandboxctl; please report it with the command line",
    )


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere instead of failing aloud."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
