"""System calls that try out a row: arguments that each of its clauses, and its default, answers.

They are made from the rule itself. All other arguments are 0, with which no call of the tables does
harm: what is let through fails for want of a descriptor or an address, or does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tests.isolation.child import Profile, policy, raw
from tests.isolation.oracle import PID, meaning

from sandboxd.runner.isolation import kernel, lockdown, syscalls
from sandboxd.runner.isolation.seccomp import (
    ALLOW,
    AUDIT_ARCH,
    KILL_PROCESS,
    OWN_PID,
    Clause,
    Rule,
)

_BITS = [0, 1, 2, 3, 4, 5, 8, 12, 15, 18, 24, 31, 40, 63]
_NOTHING = (0, 0, 0, 0, 0, 0)
#: Stands for the process id of the child in arguments that are made before there is one.
MY_PID = PID


def _satisfying(clause: Clause) -> Iterator[tuple[int, ...]]:
    """Each value of each match, with the first values of the others."""
    first = list(_NOTHING)
    for match in clause.matches:
        first[match.argument] = MY_PID if match.values[0] == OWN_PID else match.values[0]
    yield tuple(first)
    for match in clause.matches:
        for value in match.values[1:]:
            changed = list(first)
            changed[match.argument] = MY_PID if value == OWN_PID else value
            yield tuple(changed)


def _breaking(rule: Rule) -> Iterator[tuple[int, ...]]:
    """One bit more or less in each argument that is looked at."""
    for clause in rule.clauses:
        for base in list(_satisfying(clause))[:2]:
            for match in clause.matches:
                for bit in _BITS if match.wide else [bit for bit in _BITS if bit < 32]:
                    changed = list(base)
                    changed[match.argument] ^= 1 << bit
                    yield tuple(changed)


def arguments_of(rule: Rule, number: int) -> dict[tuple[int, ...], int]:
    """Arguments to try, and the action that the rule means for each; a few of every action."""
    candidates = [*(args for clause in rule.clauses for args in _satisfying(clause)), _NOTHING]
    if rule.clauses:
        candidates += _breaking(rule)
    chosen: dict[tuple[int, ...], int] = {}
    count: dict[int, int] = {}
    rules = {number: rule}
    for arguments in candidates:
        call = (number, AUDIT_ARCH[kernel.MACHINE], arguments)
        action = meaning(kernel.MACHINE, rules, KILL_PROCESS, call)
        if arguments not in chosen and count.get(action, 0) < _AT_MOST.get(action, 6):
            count[action] = count.get(action, 0) + 1
            chosen[arguments] = action
    return chosen


_AT_MOST = {ALLOW: 16, KILL_PROCESS: 12}


def make_call(
    profile: Profile, sealed: bool, number: int, arguments: tuple[int, ...], filtered: bool
) -> str:
    """Make one call in a locked-down child, with the filters or with every layer but them.

    Returns an errno's name or "done".
    """
    # clone must be refused by the kernel: two threads on one stack would crash.
    chosen = policy(profile, processes=1)
    own = os.getpid()
    real = tuple(own if argument == MY_PID else argument for argument in arguments)
    if filtered:
        lockdown.lock_down(chosen)
        if sealed:
            lockdown.seal_after_load(core=profile == "core")
    else:
        lockdown.apply_layers(chosen, lockdown.LAYERS - {"seccomp"})
    return raw(number, *real)


def table(profile: Profile, sealed: bool) -> dict[str, tuple[int, Rule]]:
    """The rows of a table on this machine, by name."""
    rows: tuple[syscalls.Row, ...] = syscalls.ROWS
    if sealed:
        rows = syscalls.SEALED_CORE_ROWS if profile == "core" else syscalls.SEALED_ROWS
    found = {}
    for row in rows:
        number = row.number(kernel.MACHINE)
        if number is not None and profile in row.profiles:
            found[row.name] = (number, row.rule)
    return found
