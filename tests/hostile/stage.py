"""The supervisor's own objects, in this process, with hostile programs as their children.

Everything is real (`Zygote`, `Child`, `Runner`, `Pool`, `CompileService`, `Executor`) but the
launcher, which starts `malicious_zygote.py` instead of a real zygote.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tests.hostile.harness import word

from sandboxd.supervisor import faults
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.artifacts import ArtifactCache
from sandboxd.supervisor.birth import PoolConfig
from sandboxd.supervisor.compilation import CompileConfig, CompileService
from sandboxd.supervisor.execution import Executor
from sandboxd.supervisor.launcher import LaunchedZygote
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.stats import Stats
from sandboxd.supervisor.store import Store
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import control_pb2

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]
GRACE_S = 0.05
WALL_MS = 300
# Beyond deadline and grace: the kill, the reaping, and a machine with two busy cores.
SLACK_S = 1.0
MODULE_HEAD = b"\0asm\x01\0\0\0"
HONEST_COMPILER = b"compiled()"
OUTPUT_LIMIT = 64 * 1024

# As a daemon sets them. Nothing here enforces them, but verdicts compare with them.
_LIMITS = ChildLimits(
    data_bytes=256 * MIB,
    cpu_seconds=120,
    file_size_bytes=16 * MIB,
    shared_bytes=16 * MIB,
    processes=16,
)
_CALL = CallLimits(WALL_MS, 60_000, MIB, 100, OUTPUT_LIMIT)
_MOST = CallLimits(60_000, 60_000, MIB, 100, OUTPUT_LIMIT)
COMPILE_WALL_S = 0.8
CACHE_BYTES = 16 * MIB
# gRPC's soft limit.
METADATA_BYTES = 8192


class HostileLauncher:
    """Stands in for `Launcher`: what it launches is ours."""

    def __init__(self, script: Path) -> None:
        self._script = script

    def launch(self, control: socket.socket, *_: Any) -> LaunchedZygote:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.hostile.malicious_zygote"),
                *(str(control.fileno()), str(self._script)),
            ],
            pass_fds=[control.fileno()],
            cwd=ROOT,
            start_new_session=True,
        )
        launched = LaunchedZygote()
        launched.set_pidfd(os.pidfd_open(process.pid))
        loop = asyncio.get_running_loop()

        def reap() -> None:
            loop.remove_reader(launched.pidfd)
            launched.set_exit(process.wait())

        loop.add_reader(launched.pidfd, reap)
        return launched


class Stage:
    """A supervisor without gRPC. An asynchronous context manager."""

    def __init__(self, directory: Path) -> None:
        self._script = directory / "script"
        self._script.write_text("")
        self._directory = directory
        self._modules = itertools.count()
        self.lost: list[str] = []
        """What reached the event loop's exception handler: must stay empty."""
        self.stats = Stats()

    async def __aenter__(self) -> Stage:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.lost.append(str(context))
        )
        self.zygote = Zygote((), lambda: None)
        launcher: Any = HostileLauncher(self._script)
        await self.zygote.start(launcher, "off", (), control_pb2.Cgroups(mode="off"))
        disk = ArtifactStore(0, MIB, is_stored=lambda tenant, digest: False)
        self.compiles = CompileService(
            CompileConfig(2, 16, COMPILE_WALL_S, MIB, _LIMITS), ArtifactCache(CACHE_BYTES, 64), disk
        )
        self.compiles.use_zygote(self.zygote, 0)
        self.pool = Pool(PoolConfig(8, 0, 64, 1000, 600.0, 600.0, OUTPUT_LIMIT, _LIMITS))
        self.pool.use_zygote(self.zygote, 0)
        self.executor = Executor(
            self.pool,
            self.compiles,
            Store(self._directory, MIB, 100, 100 * MIB),
            LimitPolicy(_CALL, _MOST),
            self.stats,
            GRACE_S,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()
        await self.executor.close()
        await self.compiles.close()
        await self.zygote.stop()

    def runners_begin_with(self, script: str) -> None:
        """Script of runners that are forked from now on; empty: they say that they are ready."""
        self._script.write_text(script)

    def module(self, compiler: bytes = HONEST_COMPILER) -> bytes:
        """A module that no call had before, with its compiler's script."""
        return MODULE_HEAD + compiler + b"\0%d" % next(self._modules)

    async def call(
        self, script: str, module: bytes | None = None, *, pad: int = 0, wall_ms: int = WALL_MS
    ) -> str:
        """Make a call whose runner follows the script; return the outcome, or the fault's reason.

        `pad` makes the job that many bytes larger.
        """
        data = script.encode() + (b"\n#" + bytes([35]) * pad if pad else b"")
        request = sandbox_pb2.ExecuteRequest(
            wasm=self.module() if module is None else module,
            bytes=call_pb2.BytesCall(export="f", input=data),
            limits=sandbox_pb2.Limits(wall_time_ms=wall_ms),
        )
        try:
            received = (request, request.SerializeToString())
            response = await self.executor.execute("default", received, None)
            return word(sandbox_pb2.ExecuteResponse.FromString(response))
        except faults.Fault as fault:
            fits = len(fault.details()) < METADATA_BYTES
            return fault.reason if fits else f"{fault.reason} does not fit into metadata"


class Neighbour:
    """A well-behaved guest beside the hostile one; calls all the time and notes how long it took.

    An asynchronous context manager.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._module = stage.module()
        self.slowest_s = 0.0
        self.calls = 0

    async def __aenter__(self) -> Neighbour:
        assert await self._call() == "completed"
        self._task = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def _call(self) -> str:
        return await self._stage.call("answer(b'ok')", self._module)

    async def _go_on(self) -> None:
        while True:
            started_at = time.monotonic()
            assert await self._call() == "completed"
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_at)
            self.calls += 1
            await asyncio.sleep(0.002)


def open_descriptors() -> int:
    return psutil.Process().num_fds()


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
