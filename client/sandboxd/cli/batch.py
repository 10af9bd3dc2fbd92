"""`sandboxctl batch`: call an export once for every line of input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli import guest
from sandboxd.cli.settings import Settings, global_options, settings_of, utf8

if TYPE_CHECKING:
    from sandboxd.client import BatchCall, Call, Client, Execution, Fault, Signature
    from sandboxd.client.operations import ModuleLike

# Not 1, which says that the batch did not come to its end.
EXIT_SOME_FAILED = 3


@click.command()
@click.argument("module")
@click.argument("export")
@click.option(
    "-i",
    "--input",
    "source",
    metavar="FILE|-",
    default="-",
    help="Where the lines are.  [default: standard input]",
)
@click.option(
    "--bytes", "as_bytes", is_flag=True, help="Pass each line as bytes, without its line feed."
)
@click.option(
    "--result",
    metavar="HOW",
    help="How bytes come back: packed, pointer-length, nul or fixed:LENGTH.  [default: packed]",
)
@click.option(
    "--max-parallel",
    type=click.IntRange(1, 0xFFFFFFFF),
    help="Calls under way at once.  [default: one more than the daemon has processors]",
)
@guest.limit_options
@global_options
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    *,
    module: str,
    export: str,
    source: str,
    as_bytes: bool,
    result: str | None,
    max_parallel: int | None,
    **options: Any,
) -> None:
    """Call an exported function once for every line of input.

    MODULE is a file, which is pushed, a digest, or 4 or more hex digits of one. A line holds the
    numbers of its call, as `sandboxctl call` takes them; with --bytes the line itself is passed by
    the plugin ABI. All of the input, 64 MiB at most, is read before the first call; then lines are
    sent many at a time. Every call has an instance and limits of its own, and one that fails harms
    no other.

    For every line there is one line of output, in the order of the input: the results, or the
    escaped bytes; an empty one if the call failed, and standard error says why. With
    -o json it is one document per line, as `call` writes it, with "index" (from 0); a call that
    sandboxd refused has "error" instead of an outcome. --timeout is for everything, from the start:
    waiting for standard input, reading the lines, pushing the file, all calls.

    \b
    Examples:
      seq 1000 | sandboxctl batch square.wasm square
      printf '2 3\\n4 5\\n' | sandboxctl batch 3f9a01 add
      sandboxctl batch slug.wasm slugify --bytes -i titles.txt | paste titles.txt -
      sandboxctl batch check.wasm run -i cases.txt --wall 100ms -o json | jq .outcome.name

    \b
    Exit codes:
      0    all calls completed, or exited with 0
      1    sandboxd failed, and calls may be without a result
      2    wrong command line, or a line that is no numbers: nothing was run
      3    every call has a result, and some failed
      130  interrupted
      141  whoever read the output went away
    """
    settings = settings_of(ctx)
    settings.json_lines = True
    utf8(export, "EXPORT")
    if result is not None and not as_bytes:
        raise click.UsageError("--result goes with --bytes")
    from sandboxd.cli.connect import connect, find_module
    from sandboxd.client.operations import seconds_left, time_to_give_up

    give_up = time_to_give_up(settings.timeout)
    lines = _Lines(guest.read_input(source, give_up))
    with connect(settings) as client:
        found = find_module(client, module, seconds_left(give_up))
        calls: Iterable[Call]
        if as_bytes:
            calls = _bytes_calls(export, lines, result or "packed")
            target: ModuleLike = found
        else:
            target, signature = _signature(client, found, export, seconds_left(give_up))
            for _ in _typed_calls(export, lines, signature):
                pass  # Every line is looked at before anything runs.
            calls = _typed_calls(export, lines, signature)
        results = client.execute_batch(
            _batch_calls(target, calls, options),
            max_parallel=max_parallel or 0,
            timeout=seconds_left(give_up),
        )
        failed = _write_all(settings, results)
    if failed:
        click.echo(f"sandboxctl: {failed} of {len(lines)} calls failed", err=True)
        raise click.exceptions.Exit(EXIT_SOME_FAILED)


class _Lines:
    """The lines of some bytes, without their line feeds; the last one may have none."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.count(b"\n") + (not self._data.endswith(b"\n") and self._data != b"")

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while at < len(self._data):
            end = self._data.find(b"\n", at)
            end = len(self._data) if end < 0 else end
            yield self._data[at:end]
            at = end + 1


def _signature(
    client: Client, found: Path | str, export: str, timeout: float | None
) -> tuple[ModuleLike, Signature]:
    from sandboxd.client.modules import find_signature

    stored = (
        client.push(found, timeout=timeout).module
        if isinstance(found, Path)
        else client.get(found, timeout=timeout)
    )
    return stored, find_signature(stored.exports, export)


def _typed_calls(export: str, lines: Iterable[bytes], signature: Signature) -> Iterator[Call]:
    from sandboxd.cli import arguments
    from sandboxd.client import TypedCall

    for number, line in enumerate(lines, start=1):
        try:
            words = line.decode().split()
            yield TypedCall(export, arguments.parse(words, signature, export))
        except UnicodeDecodeError:
            raise click.UsageError(f"line {number} is not valid UTF-8") from None
        except click.UsageError as error:
            raise click.UsageError(f"line {number}: {error.message}") from None


def _bytes_calls(export: str, lines: Iterable[bytes], result: str) -> Iterator[Call]:
    from sandboxd.client import BytesCall

    convention, length = guest.result_convention(result)
    for line in lines:
        yield BytesCall(export, line, convention, length)


def _batch_calls(
    module: ModuleLike, calls: Iterable[Call], options: dict[str, Any]
) -> Iterator[BatchCall]:
    from sandboxd.client import BatchCall

    limits = guest.limits(options)
    fresh, layers = options["fresh"], options["require_layer"]
    return (BatchCall(module, call, limits, fresh, layers) for call in calls)


def _write_all(settings: Settings, results: Iterable[tuple[int, Execution | Fault]]) -> int:
    """Write what came of the calls, in their order; return how many did not complete."""
    from sandboxd.cli import verdict
    from sandboxd.client import Fault

    failed, output = 0, _Output(settings)
    # Results that came before those of earlier lines.
    early: dict[int, Execution | Fault] = {}
    at = 0
    for index, result in results:
        early[index] = result
        while at in early:
            ready = early.pop(at)
            output.write(at, ready)
            failed += isinstance(ready, Fault) or verdict.exit_code(ready.outcome) != 0
            at += 1
    return failed


class _Output:
    """Writes what came of each line; what to do about a kind of fault, once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._advised: set[tuple[str, str | None]] = set()

    def write(self, index: int, result: Execution | Fault) -> None:
        """Write a line of output, and to standard error why it is empty."""
        from sandboxd.cli import documents, verdict
        from sandboxd.client import Exited, Fault

        if self._settings.json:
            documents.write_line({"index": index, **_document(result)})
        elif isinstance(result, Fault):
            click.echo()
            self._say(index, result)
        else:
            click.echo(_text(result))
            verdict.say(result.outcome, about=f"line {index + 1}")
            if isinstance(result.outcome, Exited) and result.outcome.code:
                click.echo(f"sandboxctl: line {index + 1}: {result.outcome.describe()}", err=True)

    def _say(self, index: int, fault: Fault) -> None:
        from sandboxd.cli import failure

        kind = (type(fault).__name__, fault.reason)
        about = f"line {index + 1}"
        failure.say(fault, self._settings, about, advise=kind not in self._advised)
        self._advised.add(kind)


def _document(result: Execution | Fault) -> dict[str, Any]:
    from sandboxd.cli import documents, verdict
    from sandboxd.client import Fault

    if isinstance(result, Fault):
        return {"error": documents.error(result)}
    return documents.execution(result, verdict.exit_code(result.outcome))


def _text(execution: Execution) -> str:
    """The results of a call in one line; empty if it did not complete."""
    from sandboxd.client import Completed
    from sandboxd.client.text import printable

    if not isinstance(execution.outcome, Completed):
        return ""
    numbers = " ".join(map(str, execution.outcome.results))
    return numbers or printable(execution.outcome.output)
