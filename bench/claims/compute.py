"""The claims about work: SHA-256 of 1 KB, JSON parse of 10 KB, resize of one megapixel."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

from bench import requests
from bench.claims import tools
from bench.claims.inputs import HASH, PARSE, RESIZE, Work
from bench.claims.sides import EXECUTE, RUNNER, Sides
from bench.figure import Figure, Note, Part, Ratio
from bench.stage import Stage

IN_PROCESS = "wasmtime in the host's process, fresh instance"
IN_GUEST = "in the guest, repeated in one instance"
NATIVE = "native C, repeated in one process"
NATIVE_SPAWNED = "native C, a process per call"
NODE = "Node.js, plain JavaScript, repeated in one process"
NODE_SPAWNED = "Node.js, a process per call"
PYTHON = "Python, plain, repeated in one process"
PYTHON_SPAWNED = "Python, a process per call"

# What a language's users would take instead of writing it: native code behind a call.
_NODE_BUILT_IN = {"sha256_1k": "node:crypto", "json_10k": "JSON.parse"}
_PYTHON_BUILT_IN = {"sha256_1k": "hashlib", "json_10k": "json module"}

_TITLES = {
    "sha256_1k": "SHA-256 of 1 KB",
    "json_10k": "JSON parse of 10 KB, and a walk through the tree",
    "resize_1mp": "Resize of 1 megapixel to a quarter",
}


def figure(work: Work) -> Figure:
    """Return the figure of one claim."""

    async def parts(stage: Stage) -> AsyncGenerator[Part, None]:
        async with AsyncExitStack() as exits:
            sides = await _set_up(work, stage, exits)
            yield sides.point(stage.settings.rounds)
            yield Note(_note(work))

    return Figure(
        name=f"claim-{work.name.replace('_', '-')}",
        title=_TITLES[work.name],
        section="Claims",
        unit="s",
        parts=parts,
        ratios=_ratios(work),
    )


def figures() -> list[Figure]:
    """Return the figures of all three."""
    return [figure(work) for work in (HASH, PARSE, RESIZE)]


def node_side(work: Work) -> str | None:
    """Return the name of the side with Node.js's own implementation, if it has one."""
    name = _NODE_BUILT_IN.get(work.name)
    return name and f"Node.js, {name}, repeated in one process"


def python_side(work: Work) -> str | None:
    """Return the name of the side with Python's own implementation, if it has one."""
    name = _PYTHON_BUILT_IN.get(work.name)
    return name and f"Python, {name}, repeated in one process"


def guest(work: Work) -> Path:
    """Return the path of the claim's module."""
    return tools.GUESTS / f"{work.name}.wasm"


async def _set_up(work: Work, stage: Stage, exits: AsyncExitStack) -> Sides:
    stage.versions.update(tools.versions())
    directory = await exits.enter_async_context(stage.directory())
    daemon = await exits.enter_async_context(stage.daemon())
    data = work.make()
    path = directory / "input"
    path.write_bytes(data)
    sides = Sides(exits, stage.settings.block_s, work.is_right)

    digest = await daemon.push(guest(work).read_bytes())
    await sides.execute(daemon, requests.bytes_call(digest, work.export, data))
    await add_engine(sides, work, path)
    await add_native(sides, work, path, directory)
    await add_node(sides, work, path)
    await add_python(sides, work, path)
    return sides


async def add_engine(sides: Sides, work: Work, path: Path) -> None:
    """Add the module in an ordinary host of the same engine, and in a loop of its own."""
    module = [sys.executable, "-m", "bench.claims.engine", "bytes", str(guest(work)), work.export]
    await sides.peer({IN_PROCESS: "run", IN_GUEST: "repeat"}, lambda: [*module, str(path)])


async def add_native(sides: Sides, work: Work, path: Path, directory: Path) -> None:
    """Add the guest's own source, compiled for this machine into `directory`."""

    def program() -> str:
        return str(tools.compile_native(work.name, directory)[0])

    await sides.peer({NATIVE: "run"}, lambda: [program(), str(path), "serve"])
    sides.program(NATIVE_SPAWNED, lambda: [program(), str(path)], from_hex)


async def add_node(sides: Sides, work: Work, path: Path) -> None:
    """Add plain JavaScript, what Node.js brings, if it does, and a process for each call."""
    script = str(tools.HERE / "javascript" / "peer.mjs")

    def command(variant: str) -> list[str]:
        return [tools.node(), script, work.name, variant, str(path)]

    await sides.peer({NODE: "run"}, lambda: [*command("plain"), "serve"])
    built_in = node_side(work)
    if built_in is not None:
        await sides.peer({built_in: "run"}, lambda: [*command("builtin"), "serve"])
    variant = "plain" if built_in is None else "builtin"
    sides.program(NODE_SPAWNED, lambda: command(variant), from_hex)


async def add_python(sides: Sides, work: Work, path: Path) -> None:
    """Add plain Python; and what Python brings, if it does, in a process for each call as well."""

    script = str(tools.HERE / "python" / "peer.py")

    def command(variant: str) -> list[str]:
        # Without what is installed: some packages hook into every start, and none is needed.
        return [tools.python(), "-S", script, work.name, variant, str(path)]

    await sides.peer({PYTHON: "run"}, lambda: [*command("plain"), "serve"])
    built_in = python_side(work)
    if built_in is not None:  # or else the work takes a second, and a start is lost in it
        await sides.peer({built_in: "run"}, lambda: [*command("builtin"), "serve"])
        sides.program(PYTHON_SPAWNED, lambda: command("builtin"), from_hex)


def from_hex(output: bytes) -> bytes:
    """Return the answer that a program printed."""
    return bytes.fromhex(output.decode())


def _ratios(work: Work) -> list[Ratio]:
    found = [
        Ratio("Execute over wasmtime in the host's process", of=EXECUTE, to=IN_PROCESS),
        Ratio("runner over wasmtime in the host's process", of=RUNNER, to=IN_PROCESS),
        Ratio("in the guest over native C", of=IN_GUEST, to=NATIVE),
        Ratio("in the guest over plain JavaScript", of=IN_GUEST, to=NODE),
        Ratio("Execute over native C in a loop", of=EXECUTE, to=NATIVE),
        Ratio("Execute over plain JavaScript in a loop", of=EXECUTE, to=NODE),
        Ratio("Execute over plain Python in a loop", of=EXECUTE, to=PYTHON),
    ]
    built_in = python_side(work)
    others = [node_side(work), built_in, NATIVE_SPAWNED, NODE_SPAWNED, built_in and PYTHON_SPAWNED]
    found += [Ratio(f"Execute over {side}", of=EXECUTE, to=side) for side in others if side]
    return found


def _note(work: Work) -> str:
    said = (
        "All sides got the same input and gave the same answer. The native program is the guest's "
        "source with the guest's flags. "
    )
    node, python = _NODE_BUILT_IN.get(work.name), _PYTHON_BUILT_IN.get(work.name)
    if node is None or python is None:
        return said + "Node.js and Python bring nothing that resizes, so there is plain code only."
    return said + f"A process per call of Node.js uses {node}, one of Python {python}."
