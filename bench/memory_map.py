"""What a process's memory consists of, from /proc/PID/smaps; see proc(5)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# Stack of a runner's interrupt thread (children.py): an anonymous mapping of just this size.
_THREAD_STACK_BYTES = 256 * 1024
_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+\s*(.*)$")


class Mapping(NamedTuple):
    """One mapping: what it is, and how much of it counts."""

    kind: str
    pss_kib: int
    private_kib: int


class Memory(NamedTuple):
    """Memory of a process in MiB: its proportional share, and what is its alone."""

    pss: float
    private: float


def read(pid: int) -> list[Mapping]:
    """Return a process's mappings. Raises PermissionError if the kernel does not show them."""
    return list(parse(Path(f"/proc/{pid}/smaps").read_text().splitlines()))


def parse(lines: Iterable[str]) -> Iterable[Mapping]:
    """Parse the lines of an smaps file."""
    kind: str | None = None
    pss = private = 0
    for line in lines:
        if header := _HEADER.match(line):
            if kind is not None:
                yield Mapping(kind, pss, private)
            size = int(header[2], 16) - int(header[1], 16)
            kind, pss, private = kind_of(header[4], header[3], size), 0, 0
            continue
        name, _, rest = line.partition(":")
        if name == "Pss":
            pss = int(rest.split()[0])
        elif name in ("Private_Clean", "Private_Dirty"):
            private += int(rest.split()[0])
    if kind is not None:
        yield Mapping(kind, pss, private)


def kind_of(path: str, permissions: str, size_bytes: int) -> str:
    """Name what a mapping holds, by its file, permissions and size."""
    name = path.rpartition("/")[2]
    for found, kind in (
        (path.startswith("/memfd:"), "memory files (outbox, images of initial memory)"),
        ("_libwasmtime" in name, "engine's library"),
        ("python" in name, "Python interpreter"),
        (".so" in name, "other libraries"),
        (path == "[heap]", "heap (malloc)"),
        (path == "[stack]", "stacks"),
        (bool(path), "others"),
        (size_bytes == _THREAD_STACK_BYTES, "stacks"),
        ("x" in permissions, "compiled code (module, trampolines)"),
    ):
        if found:
            return kind
    return "anonymous (Python objects, engine, module's data)"


def total(mappings: Iterable[Mapping]) -> Memory:
    """Add up."""
    kept = list(mappings)
    return Memory(
        sum(mapping.pss_kib for mapping in kept) / 1024,
        sum(mapping.private_kib for mapping in kept) / 1024,
    )


def by_kind(mappings: Iterable[Mapping]) -> dict[str, Memory]:
    """Add up each kind, the largest share first."""
    kinds: dict[str, list[Mapping]] = {}
    for mapping in mappings:
        kinds.setdefault(mapping.kind, []).append(mapping)
    totals = {kind: total(found) for kind, found in kinds.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1].pss))
