"""Compiled modules in memory: sealed memory files that runners load from.

An artifact is native code from a hostile source. To the supervisor it is a descriptor to pass on
and opaque bytes to seal (sealing.py); it never interprets them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

from sandboxd.supervisor.keys import EngineIdentity, Key
from sandboxd.v1 import call_pb2


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameter and result types of an exported function."""

    params: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """What the compiler told about a module: its imports and exports, and its functions by name."""

    imports: tuple[call_pb2.Extern, ...]
    exports: tuple[call_pb2.Extern, ...]
    functions: dict[str, Signature]
    has_memory: bool
    """True if a memory is exported as "memory"."""

    @classmethod
    def of(
        cls, imports: tuple[call_pb2.Extern, ...], exports: tuple[call_pb2.Extern, ...]
    ) -> ModuleInfo:
        """Index the exported functions."""
        functions = {
            export.name: Signature(tuple(export.params), tuple(export.results))
            for export in exports
            if export.kind == call_pb2.EXTERN_KIND_FUNCTION
        }
        has_memory = any(
            export.name == "memory" and export.kind == call_pb2.EXTERN_KIND_MEMORY
            for export in exports
        )
        return cls(imports, exports, functions, has_memory)


class Artifact:
    """A compiled module: a sealed memory file, its size, what the module looks like, who made it.

    `from_disk` is True if it was not compiled now. The descriptor lives as long as the object: a
    call that still holds an artifact can use it after the cache dropped it.
    """

    __slots__ = ("engine", "fd", "from_disk", "info", "size_bytes")

    def __init__(
        self,
        fd: int,
        size_bytes: int,
        info: ModuleInfo,
        engine: EngineIdentity,
        *,
        from_disk: bool = False,
    ) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.info = info
        self.engine = engine
        self.from_disk = from_disk

    def __del__(self) -> None:
        os.close(self.fd)


class ArtifactCache:
    """Artifacts by key, the least recently used dropped when they exceed `budget_bytes`.

    At most `max_entries` are kept, too: each holds a descriptor. The newest one is kept even if it
    alone exceeds the budget.
    """

    def __init__(self, budget_bytes: int, max_entries: int) -> None:
        self._budget_bytes = budget_bytes
        self._max_entries = max_entries
        self._entries: OrderedDict[Key, Artifact] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: Key) -> Artifact | None:
        """Return the artifact, as the most recently used one, or None."""
        artifact = self._entries.get(key)
        if artifact is not None:
            self._entries.move_to_end(key)
        return artifact

    def put(self, key: Key, artifact: Artifact) -> None:
        """Keep an artifact."""
        self.drop(key)
        self._entries[key] = artifact
        self.size_bytes += artifact.size_bytes
        while len(self._entries) > 1 and (
            self.size_bytes > self._budget_bytes or len(self._entries) > self._max_entries
        ):
            self.drop(next(iter(self._entries)))

    def __len__(self) -> int:
        return len(self._entries)

    def drop(self, key: Key) -> None:
        """Forget an artifact, if it is there."""
        artifact = self._entries.pop(key, None)
        if artifact is None:
            return
        self.size_bytes -= artifact.size_bytes

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._entries):
            self.drop(key)
