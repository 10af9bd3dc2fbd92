"""What an artifact depends on, beside the module: which engine made it, how set, for which CPU.

An artifact is machine code that the engine trusts. It may only be loaded by the very engine that
made it, and the engine's own check compares its major version alone. The supervisor, which must not
load the engine, gets these facts from the zygote and makes them part of every artifact's seal.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wasmtime import _ffi as ffi

from sandboxd.runner.engine import engine_settings, engine_version

_CPUINFO: Final = Path("/proc/cpuinfo")
# What the kernel calls the features, on x86-64 and on aarch64.
_FEATURE_LINES: Final = frozenset({"flags", "Features"})


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Which engine this process would run artifacts on; SHA-256 sums in hex.

    version: of the engine inside the library.
    library_sha256: of the library's file.
    fingerprint: of every setting of both engines.
    cpu_features_sha256: of architecture and features of all processors.
    """

    version: str
    library_sha256: str
    fingerprint: str
    cpu_features_sha256: str


def engine_identity() -> EngineIdentity:
    """Read it all. To be called while library and /proc are in reach; raises OSError if not."""
    return EngineIdentity(
        version=engine_version(),
        library_sha256=_library_sha256(),
        fingerprint=_fingerprint(),
        cpu_features_sha256=cpu_features_sha256(_CPUINFO.read_text(errors="replace")),
    )


def _library_sha256() -> str:
    with open(ffi.filename, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint() -> str:
    both = [engine_settings(fuel) for fuel in (False, True)]
    return hashlib.sha256(json.dumps(both).encode()).hexdigest()


def cpu_features_sha256(cpuinfo: str) -> str:
    """Hash the features that a text as of /proc/cpuinfo lists, in whatever order."""
    features = set()
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in _FEATURE_LINES:
            # Processors of one machine can differ; a process may run on each of them.
            features.add(" ".join(sorted(values.split())))
    return hashlib.sha256("\n".join([platform.machine(), *sorted(features)]).encode()).hexdigest()
