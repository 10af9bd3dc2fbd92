"""Tools that look at a running process from outside: present or not, begun and ended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence

from bench.profile.finding import NotMeasured

# From its start until a tool looks; nothing tells that it does.
_ATTACH_S = 0.7
_END_S = 60.0


def require(tool: str) -> str:
    """Return the path of a tool. Raises NotMeasured."""
    path = shutil.which(tool)
    if path is None:
        raise NotMeasured(f"{tool} is not installed")
    return path


@contextlib.asynccontextmanager
async def attached(command: Sequence[str]) -> AsyncIterator[None]:
    """Have a tool look at a process until the block ends. Raises NotMeasured if it cannot."""
    running = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert running.stderr is not None
    said = asyncio.ensure_future(running.stderr.read())
    try:
        await asyncio.sleep(_ATTACH_S)
        if running.returncode is not None:
            raise NotMeasured(f"{command[0]} may not look: {_first_line(await said)}")
        yield
        running.send_signal(signal.SIGINT)
        await asyncio.wait_for(running.wait(), _END_S)
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
        await said


def _first_line(said: bytes) -> str:
    """Return the first line that says something; perf begins with one that does not."""
    lines = (line.strip() for line in said.decode(errors="replace").splitlines())
    return next((line for line in lines if line and not line.endswith(":")), "it ended").rstrip(".")
