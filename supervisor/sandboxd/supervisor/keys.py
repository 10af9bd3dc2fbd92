"""Names of things: tenants, digests, and what a runner is bound to."""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

DEFAULT_TENANT = "default"
"""The only tenant until callers have an identity. Part of every key from day one."""

DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Key(NamedTuple):
    """A compiled module: whose, which, and whether it was compiled with fuel metering.

    A runner is bound to one key for life.
    """

    tenant: str
    digest: str
    fuel: bool


class EngineIdentity(NamedTuple):
    """Which engine made an artifact and can load it, as the zygote told; sums in hex.

    version: of the engine inside its library. library_sha256: of that library. fingerprint: of all
    its settings. cpu_features_sha256: of what the machine's processors can do.
    """

    version: str
    library_sha256: str
    fingerprint: str
    cpu_features_sha256: str


def is_digest(text: str) -> bool:
    """Return True for "sha256:" and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(wasm: bytes) -> str:
    """Return the digest of a module's bytes."""
    return DIGEST_PREFIX + hashlib.sha256(wasm).hexdigest()


def digest_of_file(fd: int) -> str:
    """Return the digest of a file's bytes, wherever its position is. Blocks."""
    total = hashlib.sha256()
    at = 0
    while chunk := os.pread(fd, 1 << 20, at):
        total.update(chunk)
        at += len(chunk)
    return DIGEST_PREFIX + total.hexdigest()
