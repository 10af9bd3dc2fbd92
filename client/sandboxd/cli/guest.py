"""What `run` and `call` share: limits, one execution, and how it ends."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TextIO, TypeAlias, TypeVar

import click

from sandboxd.cli.settings import DURATION, SIZE, UINT64_MAX, Settings

if TYPE_CHECKING:
    from sandboxd.client import Call, Client, Convention, Execution, Limits
    from sandboxd.client.operations import ModuleLike

_F = TypeVar("_F", bound=Callable[..., Any])

# Turns the module that was found into what is to be executed.
Prepare: TypeAlias = Callable[["Client", "Path | str"], "tuple[ModuleLike, Call]"]

# More than any daemon takes; it keeps an endless pipe from filling this machine's memory.
_INPUT_BYTES_MAX = 64 << 20
_PIECE_BYTES = 1 << 20


def limit_options(command: _F) -> _F:
    """Add the options of a call; `limits` and `execute` take them."""
    for option in (
        click.option(
            "--require-layer",
            multiple=True,
            metavar="LAYER",
            help="Refuse unless this layer of isolation is active; repeatable.",
        ),
        click.option("--fresh", is_flag=True, help="Use a process that serves this call only."),
        click.option("--output-limit", type=SIZE, help="Output in all, for example 1MiB."),
        click.option("--fuel", type=click.IntRange(0, UINT64_MAX), help="About 1 per instruction."),
        click.option("--memory", type=SIZE, help="Linear memory, for example 64MiB."),
        click.option("--cpu", type=DURATION, help="CPU time, for example 500ms."),
        click.option("--wall", type=DURATION, help="Wall-clock time, for example 5s."),
    ):
        command = option(command)
    return command


def receipt_option(command: _F) -> _F:
    """Add --receipt; `finish` is told of it."""
    option = click.option("--receipt", is_flag=True, help="Tell on stderr what the call used.")
    return option(command)


def execute(
    settings: Settings, module: str, options: dict[str, Any], prepare: Prepare
) -> Execution:
    """Find the module, prepare the call and run it."""
    from sandboxd.cli.connect import connect, find_module

    with connect(settings) as client:
        what, call = prepare(client, find_module(client, module, settings.timeout))
        return client.execute(
            what,
            call,
            limits=limits(options),
            fresh=options["fresh"],
            require_layers=options["require_layer"],
            timeout=settings.timeout,
        )


def limits(options: dict[str, Any]) -> Limits:
    """Make the limits of a call from its options."""
    from sandboxd.client import Limits

    wall, cpu = options["wall"], options["cpu"]
    return Limits(
        wall_time_ms=None if wall is None else round(wall * 1000),
        cpu_time_ms=None if cpu is None else round(cpu * 1000),
        memory_bytes=options["memory"],
        output_bytes=options["output_limit"],
        fuel=options["fuel"],
    )


def finish(settings: Settings, execution: Execution, *, receipt: bool, logs: bool) -> NoReturn:
    """Say what came of it and exit with the code for it."""
    from sandboxd.cli import documents, verdict

    code = verdict.exit_code(execution.outcome)
    if settings.json:
        documents.write(documents.execution(execution, code))
    else:
        if logs:
            verdict.say_logs(execution)
        verdict.say(execution.outcome)
    if receipt:
        verdict.say_receipt(execution)
    raise click.exceptions.Exit(code)


def result_convention(result: str) -> tuple[Convention, int | None]:
    """Read --result: how bytes come back, and their length if it is fixed.

    Raises click.UsageError.
    """
    from sandboxd.client import Convention

    match = re.fullmatch(r"(packed|pointer-length|nul)|fixed:([0-9]{1,10})", result)
    if not match or (match[2] and int(match[2]) >= 1 << 32):
        raise click.UsageError(f"--result {result!r}: packed, pointer-length, nul or fixed:LENGTH")
    return (Convention(match[1]), None) if match[1] else (Convention.FIXED, int(match[2]))


def write_bytes(stream: TextIO, data: bytes) -> None:
    """Write a guest's bytes as they are."""
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def read_input(source: str, give_up: float | None = None) -> bytes:
    """Read a file, or standard input for `-`, to its end.

    Args:
        source: which.
        give_up: when to stop waiting for standard input, by the monotonic clock.

    Raises click.UsageError if it is far too long or if standard input is closed,
    click.ClickException if its end does not come in time.
    """
    if source == "-":
        if sys.stdin is None:
            raise click.UsageError(
                "standard input is closed: redirect it, or name a file (--input)"
            )
        data = _read_until(sys.stdin.buffer, give_up)
    else:
        with Path(source).open("rb") as file:
            data = file.read(_INPUT_BYTES_MAX + 1)
    if len(data) > _INPUT_BYTES_MAX:
        raise click.UsageError(f"the input is longer than {_INPUT_BYTES_MAX >> 20} MiB")
    return data


def _read_until(file: BinaryIO, give_up: float | None) -> bytes:
    """Read as much as an input may have and a byte, waiting until `give_up` for each piece."""
    from sandboxd.client.operations import seconds_left

    if give_up is None:
        return file.read(_INPUT_BYTES_MAX + 1)
    data = bytearray()
    while len(data) <= _INPUT_BYTES_MAX:
        if not select.select([file], [], [], seconds_left(give_up))[0]:
            raise click.ClickException("--timeout was over before standard input came to its end")
        piece = os.read(file.fileno(), _PIECE_BYTES)
        if not piece:
            break
        data += piece
    return bytes(data)
