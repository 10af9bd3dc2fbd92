"""Compiled modules in memory: sealed memory files that runners load from.

An artifact is native code from a hostile source. To the supervisor it is a descriptor to pass on
and opaque bytes to seal (sealing.py); it never interprets them.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sandboxd.supervisor.keys import EngineIdentity, Key
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2


@dataclass(frozen=True, slots=True)
class Signature:
    """Types of an exported function. Kept as a byte each; `params` and `results` make tuples."""

    params_bytes: bytes
    results_bytes: bytes

    @property
    def params(self) -> tuple[int, ...]:
        """Types of the parameters."""
        return tuple(self.params_bytes)

    @property
    def results(self) -> tuple[int, ...]:
        """Types of the results."""
        return tuple(self.results_bytes)


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """What the compiler told about a module: its functions by name, and its whole description.

    A module decides how much that is, and the supervisor keeps it for every module that it has
    compiled: so it is kept small, and `size_bytes` counts it.
    """

    description: bytes
    """Imports, exports, and whether there is a start function: a `sandboxd.wire.v1.Compiled`."""
    functions: dict[str, Signature]
    """Exported functions. Functions of one type share one signature."""
    other_names: frozenset[str]
    """Names of all other exports."""
    has_memory: bool
    """True if a memory is exported as "memory"."""
    no_start_function: bool
    """True if the compiler said that there is none."""
    size_bytes: int
    """Memory that all of this takes."""
    plugin_calls: set[tuple[str, tuple[int, ...]]] = field(
        default_factory=set, compare=False, repr=False
    )
    """Bytes calls that were found to fit: export and results. A few; see requests.py."""

    @classmethod
    def of(
        cls,
        imports: Iterable[call_pb2.Extern],
        exports: Iterable[call_pb2.Extern],
        no_start_function: bool = False,
    ) -> ModuleInfo:
        """Index the exports. Raises ValueError for types that are none."""
        told = runner_pb2.Compiled(
            imports=imports, exports=exports, no_start_function=no_start_function
        )
        # A compiler that was taken over can say more than there are words for.
        told.DiscardUnknownFields()
        signatures: dict[Signature, Signature] = {}
        functions: dict[str, Signature] = {}
        other_names: set[str] = set()
        has_memory = False
        for export in told.exports:
            name = export.name
            if export.kind == call_pb2.EXTERN_KIND_FUNCTION:
                signature = Signature(bytes(export.params), bytes(export.results))
                functions[name] = signatures.setdefault(signature, signature)
            else:
                other_names.add(name)
                has_memory |= export.kind == call_pb2.EXTERN_KIND_MEMORY and name == "memory"
        description = told.SerializeToString(deterministic=True)
        names = frozenset(other_names)
        size = _memory_of(description, functions, names, *functions, *names)
        for signature in signatures:
            size += _memory_of(signature, signature.params_bytes, signature.results_bytes)
        return cls(description, functions, names, has_memory, no_start_function, size)

    @property
    def imports(self) -> Sequence[call_pb2.Extern]:
        """Imports, in order; the description is parsed anew each time."""
        return runner_pb2.Compiled.FromString(self.description).imports

    @property
    def exports(self) -> Sequence[call_pb2.Extern]:
        """Exports, in order; the description is parsed anew each time."""
        return runner_pb2.Compiled.FromString(self.description).exports


def _memory_of(*objects: object) -> int:
    """Return what these take, without what they refer to; the allocator's unit is 16 bytes."""
    return sum((sys.getsizeof(one) + 15) & ~15 for one in objects)


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

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes: code and description."""
        return self.size_bytes + self.info.size_bytes

    def __del__(self) -> None:
        os.close(self.fd)


class ArtifactCache:
    """Artifacts by key, the least recently used dropped when they exceed `budget_bytes`.

    The budget is of memory: of code, and of what is known of its module.

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
        self.size_bytes += artifact.memory_bytes
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
        self.size_bytes -= artifact.memory_bytes

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._entries):
            self.drop(key)
