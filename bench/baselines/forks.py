"""Starts the process of fork_server.py and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.baselines import fork_server
from bench.stage import ROOT


@contextlib.asynccontextmanager
async def fork_server_process() -> AsyncIterator[Callable[[float], Awaitable[float]]]:
    """Yield a function that forks for so many seconds and returns children per second."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.baselines.fork_server"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        # As the zygote's environment: see the supervisor's launcher.py.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "TOKIO_WORKER_THREADS": "1"},
    )
    assert running.stdin is not None
    assert running.stdout is not None
    answers, orders = running.stdout, running.stdin
    try:
        if (await answers.readline()).strip() != fork_server.READY.encode():
            raise RuntimeError("the forking process did not start")

        async def forks(seconds: float) -> float:
            orders.write(f"{seconds}\n".encode())
            await orders.drain()
            return float(await answers.readline())

        yield forks
    finally:
        orders.close()
        await running.wait()
