"""What a fresh runner does before there is anything to do: bind and call a module of our own.

The zygote does it, too: whatever is made at first use (caches of the interpreter, types of ctypes,
stacks for signals, addresses of the engine's functions) is then made once, and shared.

A forked child shares its memory with the zygote until it writes to a page. Each first write is a
page fault, and a runner takes some hundred of them until its first call is answered: more than half
of the time that it needs. After a rehearsal they are behind it, and it costs little more than they
do. It comes after the lock-down, and the module is a constant: nobody else's byte is seen.
"""

from __future__ import annotations

import os
import sys

import wasmtime

from sandboxd.runner.engine import Engines
from sandboxd.runner.guest import Guest
from sandboxd.runner.outbox import Outbox
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

# A bytes call into it touches what any call does: memory, two functions with numbers, a result.
_MODULE = """
(module
  (memory (export "memory") 1)
  (data (i32.const 8) "x")
  (func (export "alloc") (param i32) (result i32) (i32.const 16))
  (func (export "run") (param i32 i32) (result i64) (i64.const 0x800000001)))
"""
_JOB = runner_pb2.RunnerCommand(
    execute=runner_pb2.Execute(
        request=sandbox_pb2.ExecuteRequest(bytes=call_pb2.BytesCall(export="run", input=b"x")),
        memory_bytes=1 << 16,
        output_bytes=1,
    )
).SerializeToString()
# More than the interpreter's threshold of 8 executions; a rehearsal calls twice.
_WARM_UP_ROUNDS = 5
_OUTBOX_BYTES = 64 * 1024


def compile_script(engines: Engines) -> bytes:
    """Return the compiled module, or nothing if it cannot be compiled: then nothing is rehearsed.

    A forked child compiles it, so that this process does not.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            wasm = bytes(wasmtime.wat2wasm(_MODULE))
            with open(write_fd, "wb") as out:
                out.write(wasmtime.Module(engines.plain, wasm).serialize())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as answers:
        artifact = answers.read()
    os.waitpid(pid, 0)
    return artifact


def warm_up(engines: Engines, script: bytes) -> None:
    """Rehearse in this process until the interpreter has specialized what it executes.

    What goes wrong here is said and harms nobody: runners only pay for more themselves. If it goes
    wrong in them, too, it stops the start.
    """
    try:
        _warm_up(engines, script)
    except Exception as error:  # noqa: BLE001 - whatever it is, runners will meet it, or not
        print(f"sandboxd zygote: its rehearsal failed: {error!r}", file=sys.stderr, flush=True)


def _warm_up(engines: Engines, script: bytes) -> None:
    fd = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _OUTBOX_BYTES)
        outbox = Outbox(fd)
    finally:
        os.close(fd)
    for _ in range(_WARM_UP_ROUNDS):
        rehearse(engines, script, outbox)
    outbox.close()


def rehearse(engines: Engines, script: bytes, outbox: Outbox) -> None:
    """Load the compiled module, call it as often as makes a difference, and drop it."""
    if not script:
        return
    guest = Guest(engines.plain, script, False, outbox, no_start_function=True)
    for _ in range(2):
        command = runner_pb2.RunnerCommand.FromString(_JOB)
        result = guest.execute(command.execute)
        assert result.completed.output == b"x", result
        runner_pb2.RunnerReply(result=result).SerializeToString()
        guest.prepare()
    guest.close()
