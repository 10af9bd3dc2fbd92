"""The matrix as Markdown: docs/isolation-matrix.md, free of dates so that reruns compare."""

from __future__ import annotations

import os
import re
from itertools import groupby
from typing import Final

from tests.escape.field import CATALOGUE
from tests.escape.matrix import Matrix, judged, share_with_two_walls
from tests.escape.nest import WORKS
from tests.escape.walls import ALL, NONE, SINGLE

from sandboxd.runner.isolation import landlock

_GROUPS: Final = {
    "files": "The host's files and programs",
    "processes": "The supervisor's process",
    "siblings": "Another runner of the same zygote",
    "network": "The network",
    "memory": "New code",
    "resources": "What all share",
    "privileges": "Privilege and the host's state",
    "kernel": "The kernel",
}
_IDENTITIES: Final = {
    "root": "Started as root: every runner takes a user id of its own",
    "user": "Started as an ordinary user: runners live in a user namespace and share its id",
}
_THROUGH: Final = "·"

_INTRODUCTION: Final = """\
# Isolation matrix

Written by `make escape-matrix`; do not edit. Native code in a forked child of a preloaded zygote,
as an escaped guest would be, makes real attacks: behind no wall, behind each wall alone, and behind
all of them as the daemon puts them up. The attacks are in
[tests/escape](../tests/escape); what must stop each, and with which errno or signal, stands beside
it, and `tests/escape/test_matrix.py` fails if an attack ends in any other way.

A cell is how the attack ended: `{through}` it got through, an errno, the signal that killed it, or
*contained* (the call succeeded, but on something that is not the host's). An attack that does not
work without walls is void on that host and proves nothing; such rows are listed with the reason.
A wall counts as stopping an attack only if it did so for the reason that stands beside the attack.

{walls}
| U+R | both, for limits that root is exempt from and its runners are not; no single wall |
| all | everything, in the order of the lock-down, with the seal |
"""


def render(matrices: list[Matrix]) -> str:
    """The whole document."""
    legend = ["| Wall | Layers |", "|---|---|"]
    legend += [f"| {letter} | {meaning} |" for letter, meaning in SINGLE.items()]
    parts = [
        _INTRODUCTION.format(through=_THROUGH, walls="\n".join(legend)),
        f"Measured on Linux {_kernel()}, {os.uname().machine}, Landlock ABI {landlock.ABI}.\n",
        _totals(matrices),
        *(_section(matrix) for matrix in matrices),
    ]
    return "\n".join(parts)


def _kernel() -> str:
    found = re.match(r"[\d.]+\d", os.uname().release)
    return found.group() if found else os.uname().release


def _totals(matrices: list[Matrix]) -> str:
    """Two shares: of all attacks, and without those that wait for a wall which is not here."""
    lines = [
        "| | work without a wall | through all walls | stopped by two single walls or more | "
        "the same, where every wall that ought to is here | void here |",
        "|---|---|---|---|---|---|",
    ]
    for matrix in matrices:
        valid, counted = list(matrix.valid()), judged(matrix)
        through = sum(row.get(ALL) == WORKS for row in matrix.valid().values())
        lines.append(
            f"| {matrix.identity} | {len(valid)} | {through} | {_share(matrix, valid)} | "
            f"{_share(matrix, counted)} | {len(matrix.void())} |"
        )
    return "\n".join(lines) + "\n"


def _share(matrix: Matrix, names: list[str]) -> str:
    share = share_with_two_walls(matrix, names)
    return f"{round(share * len(names))} of {len(names)}, {share:.1%}"


def _section(matrix: Matrix) -> str:
    columns = [column for column in matrix.columns if column != NONE]
    parts = [f"## {_IDENTITIES[matrix.identity]}\n"]
    if matrix.no_namespaces:
        parts.append(f"No column N and no column all: {matrix.no_namespaces}.\n")
    parts.append(_cgroups(matrix))
    head = f"| Attack | {' | '.join(columns)} | walls |"
    parts.append(head + "\n" + "|---" * (len(columns) + 2) + "|\n" + _rows(matrix, columns))
    parts.append(_void(matrix))
    return "\n".join(parts)


def _cgroups(matrix: Matrix) -> str:
    if "memory" in matrix.controllers:
        return f"Cgroups with {', '.join(sorted(matrix.controllers))}.\n"
    has = f"have only {', '.join(matrix.controllers)}" if matrix.controllers else "are not there"
    why = re.sub(r"/\S+", "the daemon's", matrix.no_cgroups)
    return (
        f"Cgroups {has} here ({why}): without a memory cgroup the limits on each kind of memory "
        "bound a runner, and nothing bounds their sum.\n"
    )


def _rows(matrix: Matrix, columns: list[str]) -> str:
    lines = []
    for group, attacks in groupby(matrix.valid(), key=lambda name: CATALOGUE[name].group):
        lines.append(f"| **{_GROUPS[group]}** |" + " |" * (len(columns) + 1))
        for name in attacks:
            cells = [_cell(matrix.rows[name].get(column, "")) for column in columns]
            walls = len(matrix.stopped_by(name))
            lines.append(f"| {name} | {' | '.join(cells)} | {walls} |")
    stopped = [
        sum(row.get(column, WORKS) != WORKS for row in matrix.valid().values())
        for column in columns
    ]
    lines.append(f"| **attacks stopped** | {' | '.join(map(str, stopped))} | |")
    return "\n".join(lines) + "\n"


def _cell(outcome: str) -> str:
    return {WORKS: _THROUGH, "contained": "*contained*"}.get(outcome, outcome)


def _void(matrix: Matrix) -> str:
    if not matrix.void():
        return ""
    lines = ["Void here: without any wall these attacks do not work.\n", "| Attack | Reason |"]
    lines += ["|---|---|"]
    lines += [
        f"| {name} | {_reason(why, matrix.identity)} |" for name, why in matrix.void().items()
    ]
    return "\n".join(lines) + "\n"


def _reason(outcome: str, identity: str) -> str:
    explained = {
        "EPERM": "an ordinary user may not" if identity == "user" else "root may not, on this host",
        "EACCES": "an ordinary user may not"
        if identity == "user"
        else "root may not, on this host",
        "ENOSYS": "this kernel has no such call",
        "ENOENT": "this kernel has no such file",
        "EAFNOSUPPORT": "this kernel has no such address family",
        "contained": "it reaches nothing of the host's",
    }
    return f"{explained[outcome]} ({outcome})" if outcome in explained else outcome
