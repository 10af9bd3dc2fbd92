"""Compiling: one-shot processes, one per module at a time, with a certain end.

Calls and pushes that need the same module share one compilation. It is theirs: when the last of
them is gone, the compiler is killed, unless the module is stored. Only so many compilers run at
once; the others wait, and tenants take turns (turns.py). A module that was compiled before may have
its artifact on disk (artifact_store.py); then it is not compiled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults, frames
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.artifacts import Artifact, ArtifactCache
from sandboxd.supervisor.child import Child, ExitStatus
from sandboxd.supervisor.compile_verdicts import (
    MAX_EXTERNS,
    clipped,
    death,
    seal_artifact,
    told,
    too_complex,
    understand,
)
from sandboxd.supervisor.keys import EngineIdentity, Key, digest_of_file
from sandboxd.supervisor.layers import LayerMissing, Layers
from sandboxd.supervisor.losses import Losses
from sandboxd.supervisor.memory_file import new_memory_file
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.threads import in_thread
from sandboxd.supervisor.turns import Turns
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.wire.v1 import control_pb2, runner_pb2

log = logging.getLogger(__name__)

# What a compiler says about a module: it keeps to 1 MiB.
MAX_REPLY_BYTES = 1536 * 1024
MAX_REPLY_FIELDS = 2 * MAX_EXTERNS + 16
_REPLY_KIND = runner_pb2.CompilerReply.DESCRIPTOR
# In the log, of what keeps a compiler from being used.
MAX_REASON_CHARACTERS = 1024
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

    def __init__(self, config: CompileConfig, cache: ArtifactCache, disk: ArtifactStore) -> None:
        self.config = config
        self.cache = cache
        self.disk = disk
        self._zygote: Zygote | None = None
        self._limits = config.limits
        self._jobs: dict[Key, _Job] = {}
        self._saving: dict[Key, asyncio.Task[None]] = {}
        self._turns = Turns(config.concurrency)
        self._losses = Losses()
        self._engine: EngineIdentity | None = None
        self.on_damaged: Callable[[Key], None] = lambda _: None
        """Called when a module's bytes turn out to be others than those of its digest."""
        self.working = 0
        self.compiled_total = 0

    def use_zygote(self, zygote: Zygote | None, processes: int) -> None:
        """Fork from this zygote from now on; `processes` is the children's RLIMIT_NPROC."""
        self._zygote = zygote
        self._limits = dataclasses.replace(self.config.limits, processes=processes)
        if zygote is not None and zygote.engine != self._engine:
            # The first one; or the engine was upgraded under a running daemon.
            self._engine = zygote.engine
            self.cache.clear()

    async def artifact(
        self, key: Key, open_wasm: Callable[[], int], *, keep: bool = False
    ) -> Artifact:
        """Return the module's artifact: from memory, from disk, or compiled now.

        `open_wasm` returns a descriptor of the module's bytes, for reading alone: a compiler gets
        it. It is closed here. With `keep` the compilation goes on when nobody waits for it any
        more. Raises `faults.InvalidModule`, `ModuleTooComplex`, `ModuleDamaged`, `CompilerLost`,
        `QueueFull`, `ZygoteLost`.
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
            artifact = await self._load(key)
            if artifact is None:
                self._losses.check(key)
                async with self._turns.slot(key.tenant):
                    self.working += 1
                    try:
                        artifact = await self._compile(key, wasm_fd)
                    finally:
                        self.working -= 1
                self.compiled_total += 1
            self.cache.put(key, artifact)
            self.keep(key, artifact)
            return artifact
        finally:
            if self._jobs.get(key) is job:
                del self._jobs[key]

    async def _load(self, key: Key) -> Artifact | None:
        if self._engine is None or not self.disk.has(key):
            return None
        return await asyncio.to_thread(self.disk.load, key, self._engine)

    def keep(self, key: Key, artifact: Artifact) -> asyncio.Task[None] | None:
        """Begin to put an artifact on disk, if its module is stored and it is not there yet.

        Return the task that does, to be shielded if it is awaited at all.
        """
        if artifact.from_disk or self.disk.has(key) or not self.disk.wants(key):
            return None
        task = self._saving.get(key)
        if task is None:
            saving = asyncio.to_thread(self.disk.save, key, artifact)
            task = asyncio.get_running_loop().create_task(saving)
            self._saving[key] = task
            task.add_done_callback(lambda _: self._saving.pop(key, None))
        return task

    async def close(self) -> None:
        """Wait for what is on its way to the disk."""
        await asyncio.gather(*self._saving.values())

    async def _compile(self, key: Key, wasm_fd: int) -> Artifact:
        await self._check_digest(key, wasm_fd)
        if self._zygote is None:
            raise faults.ZygoteLost("no process can be started now; retry", retry_after_s=0.5)
        zygote = self._zygote
        artifact_fd = new_memory_file()
        try:
            child = zygote.spawn(
                control_pb2.CHILD_KIND_COMPILER, [wasm_fd, artifact_fd], self._limits
            )
            compilation = _Compilation(child, self.config, zygote.layers)
            try:
                compiled = await compilation.run(os.fstat(wasm_fd).st_size, key.fuel)
            except faults.CompilerLost:
                if compilation.was_killed:
                    self._losses.add(key)
                raise
            info = await in_thread(understand, compiled)
            size = compiled.artifact_size_bytes
            seal_artifact(artifact_fd, size, self.config.max_artifact_bytes)
            artifact = Artifact(artifact_fd, size, info, zygote.engine)
            artifact_fd = -1
            return artifact
        finally:
            if artifact_fd >= 0:
                os.close(artifact_fd)

    async def _check_digest(self, key: Key, wasm_fd: int) -> None:
        """Compile nothing under a digest that is not its own: disks rot, and files are reached."""
        found = "unreadable"
        with contextlib.suppress(OSError):
            found = await in_thread(digest_of_file, wasm_fd)
        if found == key.digest:
            return
        log.error("module %s is damaged and no longer served: its bytes are %s", key.digest, found)
        self.on_damaged(key)
        raise faults.ModuleDamaged(
            f"the stored bytes of {key.digest} are not those that were pushed; push it again",
            metadata={"digest": key.digest},
        )


# Processes that are on their way out, while nobody may be waiting for them any more.
_ENDING: set[asyncio.Future[ExitStatus]] = set()


class _Compilation:
    """One compiler process, from fork to its certain end."""

    def __init__(self, child: Child, config: CompileConfig, zygote_layers: Layers) -> None:
        self._child = child
        self._config = config
        self._zygote_layers = zygote_layers
        self._reader = frames.FrameReader(MAX_REPLY_BYTES)
        self._allowed = _ALLOWED_FIRST
        self._command = b""
        self._reply: asyncio.Future[runner_pb2.CompilerReply | None]
        self._reply = asyncio.get_running_loop().create_future()
        self._breach = ""
        self._rejected = False
        self.was_killed = False
        """At its end: whether it was at work and was killed, by whom is not known."""
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
            # One that hung up may be on its way out, and how it ends is yet to be seen: `_finish`.
            if self._breach or self._reply.cancelled():
                self._child.kill()
            # Whatever happens to the caller: the process ends, and what it held is given back.
            end = asyncio.ensure_future(self._finish())
            _ENDING.add(end)
            end.add_done_callback(_ENDING.discard)
        exit_status = await asyncio.shield(end)
        if timed_out:
            limit_s = self._config.wall_time_s
            words = f"compiling took longer than {limit_s:g} s"
            raise too_complex("wall_time", words, int(limit_s * 1000))
        self.was_killed = (
            reply is None
            and not self._breach
            and self._allowed is not _ALLOWED_FIRST
            and exit_status.known
            and exit_status.may_be_our_kill
        )
        return self._verdict(reply, exit_status)

    async def _finish(self) -> ExitStatus:
        hung_up = False
        try:
            await asyncio.wait_for(asyncio.shield(self._child.gone), _EXIT_PATIENCE_S)
        except TimeoutError:
            replied = self._reply.done() and not self._reply.cancelled()
            hung_up = replied and not self._reply.result()
        self._child.kill()
        exit_status = await self._child.wait_exit()
        # One that was ending took its time to; only one that lived on has hung up.
        if hung_up and exit_status.may_be_our_kill:
            self._breach = self._breach or "it closed its socket without an answer"
        self._child.close()
        return exit_status

    def _on_data(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                if frames.more_fields_than(payload, MAX_REPLY_FIELDS, _REPLY_KIND):
                    self._breached(f"no reply, or one of more than {MAX_REPLY_FIELDS} fields")
                    return
                self._dispatch(runner_pb2.CompilerReply.FromString(payload))
                if self._breach:
                    return
        except (frames.FrameBreach, DecodeError) as error:
            self._breached(str(error) or "the frame is not a message")

    def _dispatch(self, reply: runner_pb2.CompilerReply) -> None:
        kind = reply.WhichOneof("reply")
        if kind not in self._allowed:
            self._breached(f"message {kind} out of turn")
        elif kind == "ready":
            self._hold_to(reply.ready)
        elif kind == "failed":
            self._reject(f"it could not get ready: {reply.failed.message}")
        else:
            self._allowed = frozenset()
            if not self._reply.done():
                self._reply.set_result(reply)

    def _hold_to(self, ready: runner_pb2.Ready) -> None:
        try:
            self._zygote_layers.of_child(ready.layers)
        except LayerMissing as missing:
            self._reject(str(missing))
            return
        self._allowed = _ALLOWED_THEN
        self._child.send(self._command)

    def _reject(self, reason: str) -> None:
        """Do not use it. It has not read the module yet, which is not to blame."""
        self._rejected = True
        self._breached(reason)
        log.error("a compiler is not used: %s", for_people(reason, MAX_REASON_CHARACTERS))

    def _breached(self, breach: str) -> None:
        self._breach = for_people(breach)
        # Nothing more is read, also if it goes on sending until it is gone.
        self._child.deafen()
        self._child.kill()
        self._hang_up()

    def _hang_up(self) -> None:
        if not self._reply.done():
            self._reply.set_result(None)

    def _verdict(
        self, reply: runner_pb2.CompilerReply | None, exit_status: ExitStatus
    ) -> runner_pb2.Compiled:
        if self._rejected:
            raise faults.CompilerLost(
                "no compiler could be made that is isolated as required; the daemon's log says "
                "why; retry",
                retry_after_s=0.5,
            )
        if reply is None or self._breach:
            config = self._config
            raise death(exit_status, self._breach, config.limits, config.max_artifact_bytes)
        match reply.WhichOneof("reply"):
            case "compiled":
                return reply.compiled
            case "invalid":
                invalid = reply.invalid
                metadata = {}
                if invalid.HasField("offset_bytes"):
                    metadata["offset_bytes"] = str(invalid.offset_bytes)
                raise faults.InvalidModule(
                    clipped(invalid.message), field="wasm", metadata=metadata
                )
            case _:
                raise told(reply.too_complex)
