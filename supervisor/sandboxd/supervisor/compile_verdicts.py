"""Verdicts on what a compiler did: which limit fired, how it ended, whether it can be believed."""

from __future__ import annotations

import logging
import os
import re
import signal

from sandboxd.supervisor import faults
from sandboxd.supervisor.artifacts import ModuleInfo
from sandboxd.supervisor.child import ExitStatus
from sandboxd.supervisor.memory_file import seal
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.zygote import ChildLimits
from sandboxd.wire.v1 import runner_pb2

log = logging.getLogger(__name__)

# As the compiler cuts it; with its copies in a status this stays under gRPC's limit for metadata.
MAX_REASON_BYTES = 2048
# Imports, and exports, of a module; a compiler tells of no more.
MAX_EXTERNS = 10_000
# The engine's own limit for the parameters, and for the results, of a function.
MAX_TYPES = 1000
_LIMIT_NAME = re.compile(r"[a-z_]{1,40}")


def too_complex(
    limit: str, words: str, maximum: int | None = None, actual: int | None = None
) -> faults.ModuleTooComplex:
    """Name the limit that fired: for people, and for programs in the metadata."""
    metadata = {"limit": limit}
    if maximum is not None:
        metadata["maximum"] = str(maximum)
    if actual is not None:
        metadata["actual"] = str(actual)
    return faults.ModuleTooComplex(words, field="wasm", metadata=metadata)


def told(verdict: runner_pb2.TooComplex) -> faults.ModuleTooComplex:
    """Pass on what a compiler says, which a hostile module may have taken over."""
    limit = verdict.limit if _LIMIT_NAME.fullmatch(verdict.limit) else "protocol"
    return too_complex(
        limit,
        clipped(verdict.message),
        verdict.maximum if verdict.HasField("maximum") else None,
        verdict.actual if verdict.HasField("actual") else None,
    )


def clipped(message: str) -> str:
    """Cut a compiler's words for people."""
    return for_people(message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


def death(
    exit_status: ExitStatus, breach: str, limits: ChildLimits, max_artifact_bytes: int
) -> faults.Fault:
    """Say what a compiler's end without an answer means."""
    memory = ("memory", f"{limits.data_bytes >> 20} MiB of memory", limits.data_bytes)
    cpu_time = ("cpu_time", f"{limits.cpu_seconds} s of CPU time", limits.cpu_seconds * 1000)
    signals: dict[int, tuple[str, str, int | None]] = {
        -signal.SIGABRT: memory,
        -signal.SIGXCPU: cpu_time,
        -signal.SIGXFSZ: (
            "artifact_size",
            f"{max_artifact_bytes >> 20} MiB of output",
            max_artifact_bytes,
        ),
        -signal.SIGSEGV: ("stack", "the stack that the compiler has", None),
    }
    if exit_status.known and exit_status.cpu_time_ns >= limits.cpu_seconds * 1_000_000_000:
        # SIGXCPU comes first, but a process that handles it gets SIGKILL, which tells nothing.
        signals[-signal.SIGKILL] = cpu_time
    if exit_status.out_of_memory:
        signals[-signal.SIGKILL] = memory
    if breach:
        return too_complex("protocol", f"the compiler broke its protocol: {for_people(breach)}")
    if exit_status.known and exit_status.status in signals:
        limit, words, maximum = signals[exit_status.status]
        return too_complex(limit, f"compiling needs more than {words}", maximum)
    if exit_status.known and exit_status.status == -signal.SIGSYS:
        log.error("a compiler made a forbidden system call (SIGSYS)")
        return too_complex("sandbox", "the compiler made a forbidden system call and was killed")
    if exit_status.known and exit_status.status != -signal.SIGKILL:
        return too_complex(
            "crash", f"the compiler ended without an answer (status {exit_status.status})"
        )
    return faults.CompilerLost("the compiler was killed from outside; retry", retry_after_s=0.5)


def understand(compiled: runner_pb2.Compiled) -> ModuleInfo:
    """Check and index what a compiler tells of a module. Takes a while for ten thousand exports."""
    if max(len(compiled.imports), len(compiled.exports)) > MAX_EXTERNS:
        raise too_complex("protocol", "the compiler tells of too many imports or exports")
    impossible = too_complex("protocol", "the compiler tells of impossible signatures")
    for externs in (compiled.imports, compiled.exports):
        if any(max(len(one.params), len(one.results)) > MAX_TYPES for one in externs):
            raise impossible
    try:
        return ModuleInfo.of(compiled.imports, compiled.exports, compiled.no_start_function)
    except ValueError:
        raise impossible from None


def seal_artifact(fd: int, announced_bytes: int, max_bytes: int) -> None:
    """Seal what a compiler wrote, after it is dead, and hold its words against the file."""
    size = os.fstat(fd).st_size
    if size != announced_bytes or not 0 < size <= max_bytes:
        raise too_complex("protocol", "the compiler's output is not what it announced")
    try:
        seal(fd)
    except OSError:
        raise too_complex("protocol", "the compiler's output is still mapped") from None
