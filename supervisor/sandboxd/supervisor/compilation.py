"""Compiling: one-shot processes, one per module at a time, with a certain end.

Calls and pushes that need the same module share one compilation. It is theirs: when the last of
them is gone, the compiler is killed, unless the module is stored. Only so many compilers run at
once; the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults, frames
from sandboxd.supervisor.artifacts import Artifact, ArtifactCache, ModuleInfo, seal
from sandboxd.supervisor.child import Child, ExitStatus
from sandboxd.supervisor.keys import Key
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.wire.v1 import control_pb2, runner_pb2

log = logging.getLogger(__name__)

# What a compiler says about a module: it keeps to 1 MiB, 10,000 imports and as many exports.
MAX_REPLY_BYTES = 1536 * 1024
MAX_EXTERNS = 20_000
MAX_TYPES = 1000
# A compiler that answered has this long to end by itself; giving back gigabytes takes a while.
_EXIT_PATIENCE_S = 1.0
_ALLOWED_FIRST = frozenset({"ready", "failed"})
_ALLOWED_THEN = frozenset({"compiled", "invalid", "too_complex"})


@dataclass(frozen=True, slots=True)
class CompileConfig:
    """Limits of the compiler."""

    concurrency: int
    """Compilers at once."""
    queue_capacity: int
    """Modules that may wait for one."""
    wall_time_s: float
    """Seconds of wall-clock time for one module."""
    max_artifact_bytes: int
    """The largest compiled module."""
    limits: ChildLimits
    """Resource limits of the process."""


class _Job:
    __slots__ = ("keep", "task", "waiters")

    def __init__(self, task: asyncio.Task[Artifact]) -> None:
        self.task = task
        self.waiters = 0
        self.keep = False


class CompileService:
    """Compiles modules in children of the zygote and keeps the artifacts."""

    def __init__(self, config: CompileConfig, cache: ArtifactCache) -> None:
        self.config = config
        self.cache = cache
        self._zygote: Zygote | None = None
        self._limits = config.limits
        self._jobs: dict[Key, _Job] = {}
        self._slots = asyncio.Semaphore(config.concurrency)
        self.working = 0

    def use_zygote(self, zygote: Zygote | None, processes: int) -> None:
        """Fork from this zygote from now on; `processes` is the children's RLIMIT_NPROC."""
        self._zygote = zygote
        self._limits = dataclasses.replace(self.config.limits, processes=processes)

    async def artifact(
        self, key: Key, open_wasm: Callable[[], int], *, keep: bool = False
    ) -> Artifact:
        """Return the module's artifact, compiling it if it is not cached.

        `open_wasm` returns a descriptor of the module's bytes; it is closed here. With `keep` the
        compilation goes on when nobody waits for it any more. Raises
        `faults.InvalidModule`, `ModuleTooComplex`, `CompilerLost`, `QueueFull`, `ZygoteLost`.
        """
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        job = self._jobs.get(key)
        if job is None:
            if len(self._jobs) >= self.config.queue_capacity:
                raise faults.QueueFull(
                    "too many modules are waiting for the compiler; retry later", retry_after_s=1.0
                )
            job = self._begin(key, open_wasm())
        job.waiters += 1
        job.keep |= keep
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if job.waiters == 0 and not job.keep and not job.task.done():
                job.task.cancel()
                # Whoever asks next starts anew; this one is only cleaning up.
                if self._jobs.get(key) is job:
                    del self._jobs[key]

    def _begin(self, key: Key, wasm_fd: int) -> _Job:
        # The job owns its descriptor: whoever opened it may be gone before the compiler starts.
        task = asyncio.get_running_loop().create_task(self._run(key, wasm_fd))
        task.add_done_callback(lambda _: os.close(wasm_fd))
        # Whoever waited may have gone: then nobody asks for the exception.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        job = self._jobs[key] = _Job(task)
        return job

    async def _run(self, key: Key, wasm_fd: int) -> Artifact:
        job = self._jobs[key]
        try:
            async with self._slots:
                self.working += 1
                try:
                    artifact = await self._compile(key, wasm_fd)
                finally:
                    self.working -= 1
            self.cache.put(key, artifact)
            return artifact
        finally:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    async def _compile(self, key: Key, wasm_fd: int) -> Artifact:
        if self._zygote is None:
            raise faults.ZygoteLost("no process can be started now; retry", retry_after_s=0.5)
        artifact_fd = os.memfd_create("sandboxd-artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            child = self._zygote.spawn(
                control_pb2.CHILD_KIND_COMPILER, [wasm_fd, artifact_fd], self._limits
            )
            compiled = await _Compilation(child, self.config).run(
                os.fstat(wasm_fd).st_size, key.fuel
            )
            artifact = _accept(artifact_fd, compiled, self.config.max_artifact_bytes)
            artifact_fd = -1
            return artifact
        finally:
            if artifact_fd >= 0:
                os.close(artifact_fd)


def _accept(fd: int, compiled: runner_pb2.Compiled, max_bytes: int) -> Artifact:
    """Seal what a compiler wrote, after it is dead, and hold its words against the file."""
    size = os.fstat(fd).st_size
    if size != compiled.artifact_size_bytes or not 0 < size <= max_bytes:
        raise faults.ModuleTooComplex(
            "the compiler's output is not what it announced", metadata={"limit": "protocol"}
        )
    for extern in (*compiled.imports, *compiled.exports):
        if len(extern.params) > MAX_TYPES or len(extern.results) > MAX_TYPES:
            raise faults.ModuleTooComplex(
                "the compiler describes a function that cannot be", metadata={"limit": "protocol"}
            )
    seal(fd)
    info = ModuleInfo.of(tuple(compiled.imports), tuple(compiled.exports))
    return Artifact(fd, size, info)


def _parse(payload: bytes) -> runner_pb2.CompilerReply:
    """Parse a reply, unless it has so many parts that parsing it would hold up everybody."""
    inner = frames.only_field(payload)
    if inner is None or not frames.has_few_fields(inner, MAX_EXTERNS):
        raise frames.FrameFlood("a reply with too many parts")
    return runner_pb2.CompilerReply.FromString(payload)


# Processes that are on their way out, while nobody may be waiting for them any more.
_ENDING: set[asyncio.Future[ExitStatus]] = set()


class _Compilation:
    """One compiler process, from fork to its certain end."""

    def __init__(self, child: Child, config: CompileConfig) -> None:
        self._child = child
        self._config = config
        self._reader = frames.FrameReader(MAX_REPLY_BYTES)
        self._allowed = _ALLOWED_FIRST
        self._command = b""
        self._reply: asyncio.Future[runner_pb2.CompilerReply | None]
        self._reply = asyncio.get_running_loop().create_future()
        self._breach = ""
        child.on_data = self._on_data
        child.on_hangup = self._hang_up
        child.gone.add_done_callback(lambda _: self._hang_up())

    async def run(self, wasm_size: int, fuel: bool) -> runner_pb2.Compiled:
        """Compile; the process is dead when this returns or raises."""
        command = runner_pb2.Compile(wasm_size_bytes=wasm_size, fuel=fuel)
        self._command = frames.encode(command.SerializeToString())
        self._child.listen()
        timed_out = False
        reply = None
        try:
            reply = await asyncio.wait_for(self._reply, self._config.wall_time_s)
        except TimeoutError:
            timed_out = True
        finally:
            if reply is None or self._breach:
                self._child.kill()
            # Whatever happens to the caller: the process ends, and what it held is given back.
            end = asyncio.ensure_future(self._finish())
            _ENDING.add(end)
            end.add_done_callback(_ENDING.discard)
        exit_status = await asyncio.shield(end)
        if timed_out:
            raise faults.ModuleTooComplex(
                f"compiling took longer than {self._config.wall_time_s:g} s",
                metadata={"limit": "wall_time"},
            )
        return self._verdict(reply, exit_status)

    async def _finish(self) -> ExitStatus:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._child.gone), _EXIT_PATIENCE_S)
        self._child.kill()
        exit_status = await self._child.wait_exit()
        self._child.close()
        return exit_status

    def _on_data(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._dispatch(_parse(payload))
                if self._breach:
                    return
        except (frames.FrameTooLong, frames.FrameFlood, DecodeError) as error:
            self._breached(str(error) or "the frame is not a message")

    def _dispatch(self, reply: runner_pb2.CompilerReply) -> None:
        kind = reply.WhichOneof("reply")
        if kind not in self._allowed:
            self._breached(f"message {kind} out of turn")
        elif kind == "ready":
            self._allowed = _ALLOWED_THEN
            self._child.send(self._command)
        elif kind == "failed":
            log.error("a compiler could not lock itself down: %s", reply.failed.message)
            self._breached(f"it could not lock itself down: {reply.failed.message}")
        else:
            self._allowed = frozenset()
            if not self._reply.done():
                self._reply.set_result(reply)

    def _breached(self, breach: str) -> None:
        self._breach = breach
        self._hang_up()

    def _hang_up(self) -> None:
        if not self._reply.done():
            self._reply.set_result(None)

    def _verdict(
        self, reply: runner_pb2.CompilerReply | None, exit_status: ExitStatus
    ) -> runner_pb2.Compiled:
        if reply is None or self._breach:
            raise _death(exit_status, self._breach, self._config)
        match reply.WhichOneof("reply"):
            case "compiled":
                return reply.compiled
            case "invalid":
                invalid = reply.invalid
                metadata = {}
                if invalid.HasField("offset_bytes"):
                    metadata["offset_bytes"] = str(invalid.offset_bytes)
                raise faults.InvalidModule(
                    for_people(invalid.message), field="wasm", metadata=metadata
                )
            case _:
                # Which one of its own limits the compiler reached, its words tell.
                raise faults.ModuleTooComplex(
                    reply.too_complex.message, field="wasm", metadata={"limit": "compiler"}
                )


def _death(exit_status: ExitStatus, breach: str, config: CompileConfig) -> faults.Fault:
    """Say what a compiler's end without an answer means."""
    signals = {
        -signal.SIGABRT: ("memory", f"{config.limits.data_bytes >> 20} MiB of memory"),
        -signal.SIGXCPU: ("cpu_time", f"{config.limits.cpu_seconds} s of CPU time"),
        -signal.SIGXFSZ: ("artifact_size", f"{config.max_artifact_bytes >> 20} MiB of output"),
        -signal.SIGSEGV: ("stack", "the stack that the compiler has"),
    }
    if breach:
        return faults.ModuleTooComplex(
            f"the compiler broke its protocol: {for_people(breach)}", metadata={"limit": "protocol"}
        )
    if exit_status.known and exit_status.status in signals:
        limit, words = signals[exit_status.status]
        return faults.ModuleTooComplex(
            f"compiling needs more than {words}", metadata={"limit": limit}
        )
    if exit_status.known and exit_status.status == -signal.SIGSYS:
        log.error("a compiler made a forbidden system call (SIGSYS)")
        return faults.ModuleTooComplex(
            "the compiler made a forbidden system call and was killed",
            metadata={"limit": "sandbox"},
        )
    if exit_status.known and exit_status.status != -signal.SIGKILL:
        return faults.ModuleTooComplex(
            f"the compiler ended without an answer (status {exit_status.status})",
            metadata={"limit": "crash"},
        )
    return faults.CompilerLost("the compiler was killed from outside; retry", retry_after_s=0.5)


def wasm_memory_file(wasm: bytes) -> int:
    """Return a sealed memory file with the bytes of an inline module."""
    fd = os.memfd_create("sandboxd-module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(wasm)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
    )
    return fd
