"""Verdicts on modules that were not compiled: which limit fired, or what the compiler did."""

from __future__ import annotations

import logging
import re
import signal

from sandboxd.supervisor import faults
from sandboxd.supervisor.child import ExitStatus
from sandboxd.supervisor.text import for_people
from sandboxd.supervisor.zygote import ChildLimits
from sandboxd.wire.v1 import runner_pb2

log = logging.getLogger(__name__)

# As the compiler cuts it; with its copies in a status this stays under gRPC's limit for metadata.
MAX_REASON_BYTES = 2048
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
