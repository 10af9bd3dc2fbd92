"""The command tree. Only click is imported here: everything heavy waits inside a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from sandboxd.cli.batch import batch
from sandboxd.cli.call import call
from sandboxd.cli.doctor import doctor
from sandboxd.cli.failure import conclude, conclude_without_output
from sandboxd.cli.module import module
from sandboxd.cli.run import run
from sandboxd.cli.settings import Settings, global_options, tls_options
from sandboxd.cli.status import status
from sandboxd.cli.version import version

PROGRAM = "sandboxctl"
_COMPLETION_VARIABLE = "_SANDBOXCTL_COMPLETE"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sandboxd", message=f"{PROGRAM} %(version)s")
@global_options
@tls_options
def cli() -> None:
    """Run untrusted WebAssembly through sandboxd.

    \b
    Examples:
      sandboxctl run hello.wasm               run a WASI command
      sandboxctl call add.wasm add 2 -3       call an exported function
      seq 9 | sandboxctl batch sq.wasm sq     call it once for every line of input
      sandboxctl module push add.wasm         store a module, print its digest
      sandboxctl status                       see what the daemon is doing
      sandboxctl doctor                       see what isolates the guests

    Every command has examples of its own: sandboxctl COMMAND --help. The options below may
    also follow the command.
    """


for _command in (run, call, batch, module, status, doctor, version):
    cli.add_command(_command)


def invoke(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    settings = Settings()
    _ensure_streams()
    _never_fail_to_print()
    try:
        if _COMPLETION_VARIABLE in os.environ:
            cli.main(list(argv), prog_name=PROGRAM, obj=settings)
        with cli.make_context(PROGRAM, list(argv), obj=settings) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
        try:
            code = conclude(error, settings)
            sys.stdout.flush()
        except (OSError, KeyboardInterrupt) as second:
            code = conclude_without_output(second, settings)
        return code
    return 0


def _ensure_streams() -> None:
    """Give whoever closed our output a place where it goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _never_fail_to_print() -> None:
    """Escape what the terminal's encoding lacks instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
