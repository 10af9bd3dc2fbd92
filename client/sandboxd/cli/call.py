"""`sandboxctl call`: call an export with numbers or with bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import guest
from sandboxd.cli.settings import GuestCommand, global_options, settings_of, utf8

if TYPE_CHECKING:
    from sandboxd.client import Client, Execution, Signature
    from sandboxd.client.calls import BytesCall, TypedCall
    from sandboxd.client.operations import ModuleLike

# A number that an option parser would take for an option.
_NEGATIVE = re.compile(r"-(?:[0-9.].*|inf|infinity|nan)", re.IGNORECASE)
# No argument of a process can begin so.
_SHIELD = "\0"


class NumbersCommand(GuestCommand):
    """Lets negative numbers stand among options without `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Shield negative numbers from the option parser."""
        args = [_SHIELD + arg if _NEGATIVE.fullmatch(arg) else arg for arg in args]
        return super().parse_args(ctx, args)

    def make_parser(self, ctx: click.Context) -> Any:
        """Make the parser take the shields off what it parsed, values of options included."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, rest, order = parse(args=args)
            return {name: _bare(value) for name, value in values.items()}, _bare(rest), order

        parser.parse_args = parse_args
        return parser


def _bare(value: Any) -> Any:
    match value:
        case str():
            return value.removeprefix(_SHIELD)
        case list():
            return [_bare(item) for item in value]
        case tuple():
            return tuple(map(_bare, value))
    return value


@click.command(cls=NumbersCommand)
@click.argument("module")
@click.argument("export")
@click.argument("args", nargs=-1)
@click.option(
    "-i",
    "--input",
    "source",
    metavar="FILE|-",
    help="Call with the bytes of FILE, or of standard input, instead of numbers.",
)
@click.option(
    "--result",
    metavar="HOW",
    help="How bytes come back: packed, pointer-length, nul or fixed:LENGTH.  [default: packed]",
)
@guest.limit_options
@guest.receipt_option
@global_options
@click.pass_context
def call(
    ctx: click.Context,
    /,
    *,
    module: str,
    export: str,
    args: tuple[str, ...],
    source: str | None,
    result: str | None,
    **options: Any,
) -> None:
    """Call an exported function.

    MODULE is a file, a digest, or 4 or more hex digits of one. ARGS are numbers; their types
    are those of the export's signature, for which a file is pushed first. With a type on every
    argument (i32:7, f64:-0.5) a file is sent along and not stored. Results are written one per
    line.

    With --input the call passes bytes by the plugin ABI and writes the result's bytes; on a
    terminal they are escaped. What the guest prints and logs goes to standard error, escaped.

    \b
    Examples:
      sandboxctl call add.wasm add 2 -3
      sandboxctl call 3f9a01 scale f32:0.5 i64:-7
      sandboxctl call upper.wasm upper --input - <in.txt >out.txt
      sandboxctl call hash.wasm sha256 -i data.bin --result fixed:32 | xxd

    Exit codes are those of `sandboxctl run --help`.
    """
    settings = settings_of(ctx)
    utf8(export, "EXPORT")
    if source is None and result is not None:
        raise click.UsageError("--result goes with --input")
    if source is not None and args:
        raise click.UsageError("give either numbers or --input")

    def prepare(client: Client, found: Path | str) -> tuple[ModuleLike, BytesCall | TypedCall]:
        if source is not None:
            return found, _bytes_call(export, source, result or "packed")
        return _typed_call(client, found, export, args, settings.timeout)

    execution = guest.execute(settings, module, options, prepare)
    if not settings.json:
        _say_output(execution)
        _write_result(execution)
    guest.finish(settings, execution, receipt=options["receipt"], logs=True)


def _typed_call(
    client: Client, found: Path | str, export: str, args: tuple[str, ...], timeout: float | None
) -> tuple[ModuleLike, TypedCall]:
    from sandboxd.cli import arguments
    from sandboxd.client.calls import TypedCall
    from sandboxd.client.modules import find_signature

    module: ModuleLike = found
    signature: Signature | None = None
    if not arguments.all_typed(args):
        stored = (
            client.push(found, timeout=timeout).module
            if isinstance(found, Path)
            else client.get(found, timeout=timeout)
        )
        module, signature = stored, find_signature(stored.exports, export)
    return module, TypedCall(export, arguments.parse(args, signature, export))


def _bytes_call(export: str, source: str, result: str) -> BytesCall:
    from sandboxd.client.calls import BytesCall

    convention, length = guest.result_convention(result)
    return BytesCall(export, guest.read_input(source), convention, length)


def _say_output(execution: Execution) -> None:
    """Show what the guest printed, which is not the call's result, on standard error."""
    from sandboxd.client.text import printable

    for name, data in (("stdout", execution.stdout), ("stderr", execution.stderr)):
        for line in data.splitlines():
            click.echo(f"{name}: {printable(line)}", err=True)


def _write_result(execution: Execution) -> None:
    from sandboxd.client.outcomes import Completed
    from sandboxd.client.text import printable

    if not isinstance(execution.outcome, Completed):
        return
    for value in execution.outcome.results:
        click.echo(str(value))
    output = execution.outcome.output
    if output and sys.stdout.isatty():
        click.echo(printable(output))
    elif output:
        guest.write_bytes(sys.stdout, output)
