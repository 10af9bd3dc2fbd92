"""What the claims are measured with besides sandboxd: found here, or missing for a reason.

All of it is optional. `make claims-tools` brings a C compiler and the interpreters below build/.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GUESTS = HERE / "guests"
BUILD = ROOT / "build" / "claims"
INTERPRETERS = ROOT / "build" / "interpreters"

CPYTHON_WASM = INTERPRETERS / "python.wasm"
QUICKJS_WASM = INTERPRETERS / "qjs.wasm"
QUICKJS_NATIVE = INTERPRETERS / "qjs"

# The guests' own level, so that what differs is the target alone.
NATIVE_FLAGS = ("-O3", "-std=gnu17", "-g0", "-Wall", "-Wextra", "-Wno-unknown-pragmas")

# A zig that examples/guests/build or `make claims-tools` has installed, in this order.
_ZIG_PLACES = (
    "build/claims/zig/ziglang/zig",
    "build/guests/venv/lib/python*/site-packages/ziglang/zig",
)


class MissingError(Exception):
    """This host lacks something; the text says what, and how to get it."""


class BuildError(Exception):
    """A command failed; the text is its command line and its output."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler for this machine: its command line so far, and what it is called in reports."""

    command: tuple[str, ...]
    name: str


def zig() -> Path:
    """Return zig's path; raises MissingError. The guests are compiled with nothing else."""
    for place in _ZIG_PLACES:
        for found in sorted(ROOT.glob(place)):
            return found
    raise MissingError("zig is not installed: `make claims-tools` fetches it")


def compiler() -> Compiler:
    """Return the guests' compiler, or else the system's; raises MissingError."""
    try:
        # For the CPU at hand, as a user who compiles for himself would; zig would otherwise also
        # instrument undefined behaviour.
        return Compiler((str(zig()), "cc", "-fno-sanitize=undefined"), "clang")
    except MissingError:
        for name in ("clang", "gcc", "cc"):
            if (found := shutil.which(name)) is not None:
                return Compiler((found, "-march=native"), name)
    raise MissingError("no C compiler: `make claims-tools` fetches one")


def node() -> str:
    """Return the path of Node.js; raises MissingError."""
    found = shutil.which("node")
    if found is None:
        raise MissingError("node is not installed")
    return found


def python() -> str:
    """Return the interpreter below the virtual environment: what one starts without sandboxd.

    A virtual environment's own start reads the hooks of what is installed into it.
    """
    return str(getattr(sys, "_base_executable", sys.executable))


def require(path: Path) -> Path:
    """Return the path of something that `make claims-tools` makes; raises MissingError."""
    if not path.is_file():
        raise MissingError(f"{path.name} is not there: `make claims-tools` makes it")
    return path


def compile_native(name: str, into: Path) -> tuple[Path, Compiler]:
    """Compile a claim's guest as a program; raises MissingError and BuildError."""
    with_ = compiler()
    program = into / name
    run([*with_.command, *NATIVE_FLAGS, f"{name}.c", "-o", str(program)], GUESTS)
    return program, with_


def run(command: Sequence[str], cwd: Path) -> None:
    """Run a command quietly; raises BuildError with its output if it cannot start or fails."""
    cache = str(BUILD / "zig-cache")
    # CPATH and the like must not reach the compilers.
    environment = {
        "HOME": str(BUILD),
        "LC_ALL": "C",
        "PATH": os.environ.get("PATH", os.defpath),
        "ZIG_GLOBAL_CACHE_DIR": cache,
        "ZIG_LOCAL_CACHE_DIR": cache,
    }
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, check=False, text=True, capture_output=True
        )
    except OSError as error:
        raise BuildError(f"{' '.join(command)}\n{error}") from error
    if done.returncode != 0:
        raise BuildError(
            f"{' '.join(command)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
        )


def versions() -> dict[str, str]:
    """Return the version of each tool that is there, for the record."""
    found = {"Python baseline": platform.python_version()}
    for name, command in (("Node.js", _node_version), ("C baseline", _compiler_version)):
        try:
            found[name] = _first_line(command())
        except (MissingError, OSError):
            continue
    return found


def _node_version() -> list[str]:
    return [node(), "--version"]


def _compiler_version() -> list[str]:
    return [*compiler().command[:2], "--version"]


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    lines = done.stdout.splitlines() or ["unknown"]
    return lines[0]
