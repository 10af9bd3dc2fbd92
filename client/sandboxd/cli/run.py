"""`sandboxctl run`: run a WASI command like a local program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import guest
from sandboxd.cli.settings import GuestCommand, global_options, settings_of, utf8

if TYPE_CHECKING:
    from sandboxd.client import Call, Client


@click.command(
    cls=GuestCommand,
    # Whatever follows MODULE is the guest's.
    context_settings={"allow_interspersed_args": False},
)
@click.argument("module")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable; repeatable.")
@click.option("--no-stdin", is_flag=True, help="Give the guest an empty standard input.")
@click.option("--logs", is_flag=True, help="Write what the guest logged to stderr.")
@guest.limit_options
@guest.receipt_option
@global_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    module: str,
    args: tuple[str, ...],
    env: tuple[str, ...],
    no_stdin: bool,
    logs: bool,
    **options: Any,
) -> None:
    """Run a WASI command like a local program.

    MODULE is a file, a digest, or 4 or more hex digits of one; the guest sees its name as
    argv[0], followed by ARGS. Options go before MODULE; a `--` right after MODULE is allowed and
    not passed on. Standard input is passed on unless it
    is a terminal; standard output and standard error are the guest's own bytes.

    \b
    Examples:
      sandboxctl run hello.wasm
      echo '1 2 3' | sandboxctl run --wall 5s --memory 64MiB sum.wasm -v
      sandboxctl run --env LANG=C --receipt 3f9a01 input.txt
      sandboxctl run python.wasm -- -c 'print(6*7)'

    \b
    Exit codes:
      0-255  the guest's own
      124    wall-clock or CPU time was up
      125    sandboxd failed, or was called wrongly
      126    the module imports what the host does not provide
      130    interrupted or cancelled
      134    the guest trapped or broke the ABI
      137    the guest reached its memory, table, fuel or output limit,
             or its process broke the protocol with the daemon
      159    the guest's process made a forbidden system call
      128+n  the guest's process died of signal n
    """
    settings = settings_of(ctx)
    if args[:1] == ("--",):
        args = args[1:]
    argv = [utf8(Path(module).name, "MODULE"), *(utf8(arg, "an argument") for arg in args)]
    variables = _environment(env)

    def prepare(_: Client, found: Path | str) -> tuple[Path | str, Call]:
        from sandboxd.client import WasiCommand

        return found, WasiCommand(argv, variables, b"" if no_stdin else _standard_input())

    execution = guest.execute(settings, module, options, prepare)
    if not settings.json:
        guest.write_bytes(sys.stdout, execution.stdout)
        guest.write_bytes(sys.stderr, execution.stderr)
    guest.finish(settings, execution, receipt=options["receipt"], logs=logs)


def _standard_input() -> bytes:
    # None: the descriptor was closed by whoever started us.
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return guest.read_input("-")


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = utf8(pair, "--env").partition("=")
        if not name or not equals:
            raise click.UsageError(f"--env {pair!r} is not of the form NAME=VALUE")
        variables[name] = value
    return variables
