"""A new `python` with wasmtime for every call, alone or inside bubblewrap."""

from __future__ import annotations

import asyncio
import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import wasmtime

from bench.baselines import one_call

# Everything of its own but the files, which are read-only.
_BUBBLEWRAP = (
    *("--unshare-all", "--die-with-parent", "--new-session"),
    *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
)


def compile_to(wasm: bytes, path: Path) -> Path:
    """Compile a module into a file, with default settings; return the file."""
    path.write_bytes(wasmtime.Module(wasmtime.Engine(), wasm).serialize())
    return path


class NewProcess:
    """Calls that start a process each."""

    def __init__(self, artifact: Path, export: str, wrapper: Sequence[str] = ()) -> None:
        self._command = [
            *wrapper,
            *(sys.executable, "-I", str(Path(one_call.__file__)), str(artifact), export),
        ]

    async def call(self, data: bytes) -> bytes:
        """Start a process, give it the input, return its output. Raises RuntimeError if it fails.

        posix_spawn or vfork below: starting costs this process little.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await process.communicate(data)
        if process.returncode:
            raise RuntimeError(f"a new process ended with {process.returncode}: {errors[-400:]!r}")
        return output


@functools.cache
def bubblewrap() -> tuple[list[str], str]:
    """Return the command that bubblewrap takes before another one, or why it cannot be used."""
    path = shutil.which("bwrap")
    if path is None:
        return [], "bubblewrap is not installed"
    command = [path, *_BUBBLEWRAP]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return [], f"bubblewrap does not work here: {tried.stderr.strip()}"
    return command, ""
