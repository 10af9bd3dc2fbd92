"""`sandboxctl module`: push, list, show and remove stored modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli.settings import EXIT_FAULT, Settings, global_options, settings_of

if TYPE_CHECKING:
    from sandboxd.client import Client, Extern, Module

# Below this an upload to a local daemon is over before a progress bar is drawn.
_PROGRESS_BYTES_MIN = 1 << 20


@click.group()
def module() -> None:
    """Store modules, so that calls can name them by digest.

    \b
    Examples:
      sandboxctl module push add.wasm
      sandboxctl module ls
      sandboxctl module show 3f9a01
    """


@module.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@global_options
@click.pass_context
def push(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Check, compile and store modules.

    Pushing a stored module again changes nothing. If one FILE is refused the others are still
    pushed, and the exit code is 1.

    \b
    Examples:
      sandboxctl module push add.wasm
      sandboxctl module push -o json build/*.wasm
    """
    from sandboxd.cli import documents
    from sandboxd.cli.connect import connect
    from sandboxd.client.text import printable

    settings = settings_of(ctx)

    def push_one(client: Client, name: str) -> dict[str, Any]:
        path = Path(name)
        size = path.stat().st_size
        with _progress(name, size) as progress:
            result = client.push(path, timeout=settings.timeout, progress=progress)
        if not settings.json:
            took = f"compiled in {result.compile_time_ns / 1e6:.0f} ms"
            state = took if result.created else "was stored already"
            click.echo(f"{printable(result.module.digest)}  {printable(name)}  {state}")
        return {
            "path": name,
            "created": result.created,
            "compile_time_ns": result.compile_time_ns,
            "module": documents.module(result.module),
        }

    with connect(settings) as client:
        _for_each(settings, "pushed", files, lambda name: push_one(client, name))


@module.command("ls")
@click.argument("prefix", default="")
@click.option("-q", "--quiet", is_flag=True, help="Only the digests, in full.")
@global_options
@click.pass_context
def list_modules(ctx: click.Context, prefix: str, quiet: bool) -> None:
    """List stored modules, ordered by digest.

    PREFIX keeps those whose digest begins so: hex digits, with or without `sha256:`.

    \b
    Examples:
      sandboxctl module ls
      sandboxctl module ls 3f
      sandboxctl module ls -q | xargs sandboxctl module rm
    """
    from sandboxd.cli import documents
    from sandboxd.cli.connect import connect
    from sandboxd.client.text import printable

    settings = settings_of(ctx)
    with connect(settings) as client:
        found = list(client.list(prefix, timeout=settings.timeout))
    if settings.json:
        documents.write({"modules": [documents.module(m, interface=False) for m in found]})
    elif quiet:
        for stored in found:
            click.echo(printable(stored.digest))
    else:
        _print_list(found)


@module.command()
@click.argument("name", metavar="MODULE")
@global_options
@click.pass_context
def show(ctx: click.Context, name: str) -> None:
    """Show what a stored module imports and exports.

    MODULE is a digest, 4 or more hex digits of one, or a file that has been pushed.

    \b
    Examples:
      sandboxctl module show 3f9a01
      sandboxctl module show -o json add.wasm
    """
    from sandboxd.cli import documents
    from sandboxd.cli.connect import connect, find_stored

    settings = settings_of(ctx)
    with connect(settings) as client:
        stored = client.get(find_stored(client, name, settings.timeout), timeout=settings.timeout)
    if settings.json:
        documents.write({"module": documents.module(stored)})
    else:
        _print_module(stored)


@module.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="MODULE...")
@global_options
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Remove stored modules; calls that have started are not affected.

    MODULE is a digest, 4 or more hex digits of one, or a file that has been pushed (the file
    itself stays). If one cannot be removed the others still are, and the exit code is 1.

    \b
    Examples:
      sandboxctl module rm 3f9a01
      sandboxctl module rm add.wasm mul.wasm
    """
    from sandboxd.cli.connect import connect, find_stored
    from sandboxd.client.text import printable

    settings = settings_of(ctx)

    def remove_one(client: Client, name: str) -> dict[str, Any]:
        digest = find_stored(client, name, settings.timeout)
        client.delete(digest, timeout=settings.timeout)
        if not settings.json:
            click.echo(printable(digest))
        return {"name": name, "digest": digest}

    with connect(settings) as client:
        _for_each(settings, "removed", names, lambda name: remove_one(client, name))


def _for_each(
    settings: Settings,
    verb: str,
    names: tuple[str, ...],
    act: Callable[[str], dict[str, Any]],
) -> None:
    """Do it to each; go on after a refusal, stop when the daemon cannot be reached."""
    from sandboxd.cli import documents, failure
    from sandboxd.client import DaemonUnreachable, SandboxdError

    done: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for name in names:
        try:
            done.append(act(name))
        except DaemonUnreachable:
            raise
        except (SandboxdError, click.ClickException, OSError) as error:
            failure.say(error, settings, about=name)
            errors.append({"name": name, "error": documents.error(error)})
    if settings.json:
        documents.write({verb: done, "errors": errors})
    if errors:
        raise click.exceptions.Exit(EXIT_FAULT)


@contextmanager
def _progress(name: str, size: int) -> Iterator[Callable[[int], None] | None]:
    """Draw a bar on standard error for a large file, if somebody is looking."""
    if size < _PROGRESS_BYTES_MIN or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    from sandboxd.cli.tables import console
    from sandboxd.client.text import printable

    with Progress(console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task(printable(name).replace("[", r"\["), total=size)
        yield lambda sent: bar.update(task, completed=sent)


def _print_list(found: list[Module]) -> None:
    from sandboxd.cli.tables import print_table, short_digest, size

    print_table(
        ("DIGEST", "SIZE", "STORED"),
        [
            (
                short_digest(m.digest),
                size(m.size_bytes),
                f"{m.create_time:%Y-%m-%d %H:%M:%S} UTC" if m.create_time else "",
            )
            for m in found
        ],
        right=("SIZE",),
        whole=("DIGEST",),
    )


def _print_module(stored: Module) -> None:
    from sandboxd.cli.tables import size
    from sandboxd.client.text import printable

    click.echo(f"digest:  {printable(stored.digest)}")
    click.echo(f"size:    {size(stored.size_bytes)}")
    if stored.create_time:
        click.echo(f"stored:  {stored.create_time:%Y-%m-%d %H:%M:%S} UTC")
    for title, externs in (("imports", stored.imports), ("exports", stored.exports)):
        click.echo(f"{title}:{'' if externs else ' none'}")
        for extern in externs:
            click.echo(f"  {_signature(extern)}")


def _signature(extern: Extern) -> str:
    """Write `add(i32, i32) -> i32`, `memory env.memory 1..16 pages`."""
    from sandboxd.client import ExternKind
    from sandboxd.client.text import printable

    name = printable(f"{extern.module}.{extern.name}" if extern.module else extern.name)
    if extern.signature is not None:
        return f"{name}{extern.signature}"
    line = f"{extern.kind} {name}"
    if extern.kind in {ExternKind.MEMORY, ExternKind.TABLE}:
        unit = "pages" if extern.kind is ExternKind.MEMORY else "elements"
        most = "" if extern.maximum is None else str(extern.maximum)
        line += f" {extern.minimum}..{most} {unit}"
    return line
