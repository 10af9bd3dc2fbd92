"""Stored modules and their interfaces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sandboxd.client.errors import ExportNotFound
from sandboxd.client.values import Signature

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ExternKind(StrEnum):
    """The kind of an import or export."""

    FUNCTION = "function"
    MEMORY = "memory"
    TABLE = "table"
    GLOBAL = "global"
    TAG = "tag"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Extern:
    """One import or export. Names were chosen by the module's author: escape them."""

    name: str
    kind: ExternKind
    module: str = ""
    """Module name; only for imports."""
    signature: Signature | None = None
    """Only for functions."""
    minimum: int = 0
    """Initial size of a memory (pages of 64 KiB) or table (elements)."""
    maximum: int | None = None
    """Maximum size, if declared."""


@dataclass(frozen=True, slots=True)
class Module:
    """A stored module; imports and exports are empty in a list, filled by `get` and `push`."""

    digest: str
    """`sha256:` and 64 lower-case hex digits."""
    size_bytes: int
    create_time: datetime | None
    """When it was first stored, in UTC."""
    imports: tuple[Extern, ...] = ()
    exports: tuple[Extern, ...] = ()

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True, slots=True)
class PushResult:
    """Acknowledges a push: the module is on disk."""

    module: Module
    created: bool
    """False if it had been stored before."""
    compile_time_ns: int
    """0 if it had been compiled before."""


def digest_of(wasm: bytes) -> str:
    """Compute the digest by which the daemon knows these bytes."""
    return f"sha256:{hashlib.sha256(wasm).hexdigest()}"


def check_digest(text: str) -> str:
    """Return `text` if it is a full digest, else raise ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a digest ('sha256:' and 64 lower-case hex digits); "
            "for a file pass a pathlib.Path"
        )
    return text


def find_signature(exports: Sequence[Extern], name: str) -> Signature:
    """Return the signature of the exported function `name`, else raise `ExportNotFound`."""
    for extern in exports:
        if extern.name == name and extern.signature is not None:
            return extern.signature
    raise ExportNotFound(
        f"the module exports no function named {name!r}",
        code="INVALID_ARGUMENT",
        reason="EXPORT_NOT_FOUND",
    )
