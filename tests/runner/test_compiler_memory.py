"""Whatever the memory limit, a compiler that reaches it ends in one verdict: memory."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal

from tests.runner.modules import empty_functions

from sandboxd.runner.compiler import compile_module
from sandboxd.runner.engine import Engines
from sandboxd.wire.v1 import runner_pb2

STEP_BYTES = 64 * 1024
CEILING_BYTES = 512 << 20


def own_data_bytes() -> int:
    """What RLIMIT_DATA counts of this process already, and of whatever it forks."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData:")) * 1024


def attempt(engines: Engines, wasm: bytes, data_bytes: int) -> str:
    """Compile in a child under RLIMIT_DATA; return its verdict, or the name of its signal."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            os.close(2)  # the engine's last words
            fd = os.memfd_create("artifact")
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
            reply = compile_module(engines.plain, wasm, fd, 1 << 30)
            os.write(writing, reply.SerializeToString())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        payload = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    reply = runner_pb2.CompilerReply.FromString(payload)
    return reply.too_complex.limit or str(reply.WhichOneof("reply"))


def test_memory_is_the_verdict_at_every_step_below_what_is_enough(engines: Engines) -> None:
    wasm = empty_functions(3000)
    too_little = own_data_bytes()
    enough = too_little + CEILING_BYTES
    assert attempt(engines, wasm, enough) == "compiled"
    while enough - too_little > STEP_BYTES:
        middle = (enough + too_little) // 2
        if attempt(engines, wasm, middle) == "compiled":
            enough = middle
        else:
            too_little = middle
    # Just below, it is the engine that notices; further below, the allocator, which aborts.
    verdicts = {attempt(engines, wasm, enough - i * STEP_BYTES) for i in range(1, 60)}
    assert verdicts <= {"memory", "SIGABRT"}
    assert "memory" in verdicts
