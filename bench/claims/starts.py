"""The claims about starts: CPython and QuickJS, from nothing to 42 on standard output."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import requests
from bench.claims import tools
from bench.claims.sides import EXECUTE, RUNNER, Sides
from bench.figure import Figure, Note, Part, Ratio
from bench.stage import Stage

IN_PROCESS = "wasmtime in the host's process, fresh instance"
NATIVE_PYTHON = "native python3 -c, a process per call"
BARE_PYTHON = "native python3 -I -S -c, a process per call"
NATIVE_QUICKJS = "native QuickJS, a process per call"
NODE = "node -e, a process per call"

ANSWER = b"42\n"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter as a WASI command, how it prints 42, and what stands beside it."""

    name: str
    title: str
    module: Path
    arguments: tuple[str, ...]
    beside: tuple[tuple[str, Callable[[], Sequence[str]]], ...]
    note: str


def _python(*flags: str) -> Callable[[], Sequence[str]]:
    return lambda: [tools.python(), *flags, "-c", "print(42)"]


def _node() -> Sequence[str]:
    return [tools.node(), "-e", "console.log(42)"]


def _quickjs() -> Sequence[str]:
    return [str(tools.require(tools.QUICKJS_NATIVE)), "-e", "print(42)"]


CPYTHON = Interpreter(
    "claim-start-cpython",
    "Start of CPython: print(42)",
    tools.CPYTHON_WASM,
    ("python", "-c", "print(42)"),
    (
        (NATIVE_PYTHON, _python()),
        (BARE_PYTHON, _python("-I", "-S")),
        (NODE, _node),
    ),
    "The guest is CPython 3.12 with its library inside the module; the native one reads its "
    "library from files, and is of another version (see the versions).",
)
QUICKJS = Interpreter(
    "claim-start-quickjs",
    "Start of QuickJS: print(42)",
    tools.QUICKJS_WASM,
    ("qjs", "-e", "print(42)"),
    (
        (NATIVE_QUICKJS, _quickjs),
        (NODE, _node),
        (BARE_PYTHON, _python("-I", "-S")),
    ),
    "QuickJS is compiled from one source for both: as a WASI command, and for this machine.",
)


def figure(interpreter: Interpreter) -> Figure:
    """Return the figure of one interpreter's start."""

    async def parts(stage: Stage) -> AsyncGenerator[Part, None]:
        async with AsyncExitStack() as exits:
            yield (await _set_up(interpreter, stage, exits)).point(stage.settings.rounds)
            yield Note(
                "Nothing is kept from one start to the next but compiled code: in sandboxd every "
                f"call is a fresh instance that starts from nothing. {interpreter.note}"
            )

    ratios = [Ratio("Execute over wasmtime in the host's process", of=EXECUTE, to=IN_PROCESS)]
    ratios += [
        Ratio(f"Execute over {name}", of=EXECUTE, to=name) for name, _command in interpreter.beside
    ]
    return Figure(interpreter.name, interpreter.title, "Claims", "s", parts=parts, ratios=ratios)


def figures() -> list[Figure]:
    """Return the figures of both."""
    return [figure(CPYTHON), figure(QUICKJS)]


async def _set_up(interpreter: Interpreter, stage: Stage, exits: AsyncExitStack) -> Sides:
    stage.versions.update(tools.versions())
    sides = Sides(exits, stage.settings.block_s, ANSWER.__eq__)
    ours = [EXECUTE, RUNNER, IN_PROCESS]
    try:
        module = tools.require(interpreter.module)
    except tools.MissingError as error:
        sides.lacks(ours, str(error))
    else:
        if stage.settings.quick:
            # Compiling them, twice, takes longer than all that is measured.
            sides.lacks(ours, "a quick run leaves it out")
            return sides
        daemon = await exits.enter_async_context(stage.daemon())
        digest = await daemon.push(module.read_bytes())
        await sides.execute(daemon, requests.wasi_command(digest, *interpreter.arguments))
        host = [sys.executable, "-m", "bench.claims.engine", "wasi", str(module)]
        await sides.peer({IN_PROCESS: "run"}, lambda: [*host, *interpreter.arguments])
    for name, command in interpreter.beside:
        sides.program(name, command, bytes)
    return sides
