"""What a forked child does: lock itself down, then serve as a runner or compile one module.

Nothing is imported and no file is opened after the fork; the lock-down allows neither.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import os
import threading
from typing import NoReturn

import wasmtime
from google.protobuf.message import DecodeError

from sandboxd.runner import mapping
from sandboxd.runner.channel import Channel, Closed
from sandboxd.runner.compiler import compile_module, out_of_memory
from sandboxd.runner.engine import Engines
from sandboxd.runner.guest import ArtifactError, Guest
from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import MDWE, SECCOMP_SEALED, IsolationError, LayerState
from sandboxd.runner.isolation.lockdown import ChildPolicy, Plan, lock_down, seal_after_load
from sandboxd.runner.isolation.policy import INTERRUPT_FD, SOCKET_FD
from sandboxd.runner.outbox import Outbox
from sandboxd.runner.outcomes import for_people
from sandboxd.runner.rehearsal import rehearse
from sandboxd.wire.v1 import control_pb2, runner_pb2

# How often the interrupt thread bumps the epoch once it was told to: a bump that comes before a
# store has set its deadline is lost, so one is not enough. The process is about to be killed.
_BUMP_INTERVAL_S = 0.001
_INTERRUPT_STACK_BYTES = 256 * 1024

# A compiler gets what calls leave of the processors: about a third of a full share beside one that
# is as busy. See sched(7), "The nice value".
_COMPILER_NICENESS = 5

_PR_SET_NAME = 15

# Layers that are applied after the module was loaded.
SEALING = frozenset({MDWE, SECCOMP_SEALED})

# Exit codes, for the supervisor's log.
EXIT_DONE = 0
EXIT_NOT_LOCKED = 3
EXIT_BUG = 4
EXIT_NOT_READY = 5

_REASON_BYTES = 1024


def layer_messages(states: tuple[LayerState, ...]) -> list[control_pb2.IsolationLayer]:
    """Return layer states as they go over the wire."""
    return [
        control_pb2.IsolationLayer(
            name=state.name,
            active=state.active,
            detail=state.detail,
            remedy=state.remedy,
            reason=state.reason,
        )
        for state in states
    ]


def run_child(
    kind: control_pb2.ChildKind.ValueType,
    policy: ChildPolicy,
    plan: Plan,
    required: frozenset[str],
    fds: list[int],
    engines: Engines,
    script: bytes,
) -> NoReturn:
    """Be a runner or a compiler until there is nothing left to do; never returns.

    `plan` is the lock-down that the zygote made for `policy`; `required` names the layers that must
    hold, those after loading included. `fds` are the
    descriptors of the SpawnRequest, in its order.
    """
    code = EXIT_BUG
    try:
        name_process("sbx-runner" if kind == control_pb2.CHILD_KIND_RUNNER else "sbx-compiler")
        if kind == control_pb2.CHILD_KIND_RUNNER:
            code = _run_runner(policy, plan, required & SEALING, fds, engines, script)
        else:
            code = _run_compiler(policy, plan, fds, engines)
    except MemoryError:
        if kind == control_pb2.CHILD_KIND_COMPILER:
            # There is not even enough to say so. The engine ends like this, too.
            os.abort()
    except (Closed, BrokenPipeError, ConnectionResetError):
        code = EXIT_DONE
    finally:
        # No interpreter shutdown: it would run what the parent registered.
        os._exit(code)


def name_process(name: str) -> None:
    """Name this process for ps(1); at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    kernel.prctl(_PR_SET_NAME, ctypes.addressof(buffer))


# --- runner ---------------------------------------------------------------------------------------


def _run_runner(
    policy: ChildPolicy,
    plan: Plan,
    seal_required: frozenset[str],
    fds: list[int],
    engines: Engines,
    script: bytes,
) -> int:
    socket_fd, _interrupt_fd, outbox_fd = fds
    outbox = Outbox(outbox_fd)
    socket_identity = os.fstat(socket_fd)
    threading.stack_size(_INTERRUPT_STACK_BYTES)
    try:
        states = lock_down(policy, plan)
    except IsolationError as error:
        _tell_failed(Channel(_number_of(socket_identity, socket_fd)), str(error))
        return EXIT_NOT_LOCKED
    channel = Channel(SOCKET_FD)
    try:
        rehearse(engines, script, outbox)
    except Exception as error:  # noqa: BLE001 - whatever it is, a call would meet it next
        # Only told can it be acted on: one that just ends is waited for.
        _tell_failed(channel, f"its rehearsal failed: {str(error) or type(error).__name__}")
        return EXIT_NOT_READY
    ready = runner_pb2.Ready(layers=layer_messages(states))
    channel.send(runner_pb2.RunnerReply(ready=ready).SerializeToString())
    shortage: RuntimeError | None = None
    try:
        # Ahead of need. The filters that are still to come bind every thread.
        _thread.start_new_thread(_interrupt, (INTERRUPT_FD, (engines.plain, engines.fuel)))
    except RuntimeError as error:
        shortage = error

    guest = _bind(channel, outbox, engines, seal_required, shortage)
    if guest is None:
        return EXIT_NOT_LOCKED
    _serve(channel, guest)
    return EXIT_DONE


def _tell_failed(channel: Channel, reason: str) -> None:
    failed = runner_pb2.Failed(message=for_people(reason, _REASON_BYTES))
    channel.send(runner_pb2.RunnerReply(failed=failed).SerializeToString())


def _bind(
    channel: Channel,
    outbox: Outbox,
    engines: Engines,
    seal_required: frozenset[str],
    shortage: RuntimeError | None,
) -> Guest | None:
    """Wait for the module, load it and seal the process; None if that failed, which is told."""
    payload, artifact_fd = channel.receive_with_descriptor()
    bind = runner_pb2.RunnerCommand.FromString(payload).bind
    engine = engines.fuel if bind.fuel else engines.plain
    bound = runner_pb2.Bound()
    guest: Guest | None = None
    try:
        if shortage is not None:
            raise shortage
        guest = _load(engine, artifact_fd, bind, outbox)
        sealed = seal_after_load(seal_required, core=not guest.uses_wasi)
        bound.layers.extend(layer_messages(sealed))
    except (ArtifactError, IsolationError, OSError, MemoryError, RuntimeError) as error:
        bound.error = str(error) or type(error).__name__
        bound.failure = _bind_failure(error)
    channel.send(runner_pb2.RunnerReply(bound=bound).SerializeToString())
    if bound.error or guest is None:
        return None
    if bind.memory_bytes:
        # No call came along: there is time.
        guest.expect(bind.memory_bytes, bind.table_elements, bind.export)
        guest.prepare()
    return guest


def _number_of(socket_identity: os.stat_result, before: int) -> int:
    """The socket's number in a lock-down that failed before or after it was moved."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(SOCKET_FD), socket_identity):
            return SOCKET_FD
    return before


def _bind_failure(error: Exception) -> runner_pb2.BindFailure.ValueType:
    match error:
        case ArtifactError():
            return runner_pb2.BIND_FAILURE_ARTIFACT
        case IsolationError():
            return runner_pb2.BIND_FAILURE_ISOLATION
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return runner_pb2.BIND_FAILURE_MEMORY
        case _:
            # OSError, or RuntimeError: no thread can be started, the user has too many already.
            return runner_pb2.BIND_FAILURE_SHORTAGE


def _load(
    engine: wasmtime.Engine, artifact_fd: int, bind: runner_pb2.Bind, outbox: Outbox
) -> Guest:
    size = bind.artifact_size_bytes
    try:
        address = mapping.map_private(artifact_fd, size, "artifact")
    finally:
        os.close(artifact_fd)
    try:
        return Guest(engine, (address, size), bind.fuel, outbox, bind.no_start_function)
    finally:
        mapping.unmap(address, size)


def _serve(channel: Channel, guest: Guest) -> None:
    while True:
        payload = channel.receive()
        try:
            result = guest.execute(runner_pb2.RunnerCommand.FromString(payload).execute)
        except DecodeError:
            # Here a request lies two messages deeper than where the supervisor decoded it.
            result = runner_pb2.Result()
            result.rejected.message = "the request's unknown fields are nested too deeply"
        channel.send(runner_pb2.RunnerReply(result=result).SerializeToString())
        guest.prepare()


def _interrupt(fd: int, engines: tuple[wasmtime.Engine, ...]) -> None:
    """Wait for the supervisor's word, then bump the epoch until the process is killed."""
    # Never released: waiting for it is a pause that needs no system call beyond those of locks.
    pause = _thread.allocate_lock()
    pause.acquire()
    if os.read(fd, 1):
        while True:
            for engine in engines:
                engine.increment_epoch()
            pause.acquire(timeout=_BUMP_INTERVAL_S)


# --- compiler -------------------------------------------------------------------------------------


def _run_compiler(policy: ChildPolicy, plan: Plan, fds: list[int], engines: Engines) -> int:
    socket_fd, wasm_fd, artifact_fd = fds
    channel = Channel(socket_fd)
    os.nice(_COMPILER_NICENESS)
    try:
        states = lock_down(policy, plan)
    except IsolationError as error:
        failed = runner_pb2.Failed(message=str(error))
        channel.send(runner_pb2.CompilerReply(failed=failed).SerializeToString())
        return EXIT_NOT_LOCKED
    ready = runner_pb2.Ready(layers=layer_messages(states))
    channel.send(runner_pb2.CompilerReply(ready=ready).SerializeToString())
    command = runner_pb2.Compile.FromString(channel.receive())
    try:
        wasm = _read_all(wasm_fd, command.wasm_size_bytes)
        engine = engines.fuel if command.fuel else engines.plain
        reply = compile_module(engine, wasm, artifact_fd, policy.file_size_bytes)
    except MemoryError:
        reply = out_of_memory()
    if reply.too_complex.limit == "memory":
        reply.too_complex.maximum = policy.data_bytes
    channel.send(reply.SerializeToString())
    return EXIT_DONE


def _read_all(fd: int, size: int) -> bytes:
    wasm = os.pread(fd, size, 0)
    while len(wasm) < size:
        more = os.pread(fd, size - len(wasm), len(wasm))
        if not more:
            break
        wasm += more
    return wasm
