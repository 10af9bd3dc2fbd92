"""Every row of the system call tables, executed both ways in a real locked-down child.

What a row lets through must get the answer that the kernel gives without the filter; what breaks
its argument rule must get the row's refusal: an errno, or the end of the process.
"""

from __future__ import annotations

import errno
import os

import pytest
from tests.isolation import rows
from tests.isolation.nursery_client import Nursery, Outcome

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.policy import Profile
from sandboxd.runner.isolation.seccomp import ALLOW, KILL_PROCESS, Rule

if kernel.MACHINE not in {"x86_64", "aarch64"}:
    pytest.skip("no table for this architecture", allow_module_level=True)

TABLES: dict[str, tuple[Profile, bool]] = {
    "core": ("core", False),
    "runner": ("runner", False),
    "files": ("files", False),
    "compiler": ("compiler", False),
    "sealed runner": ("runner", True),
    "sealed core": ("core", True),
}
CASES = [
    pytest.param(table, name, id=f"{table}-{name}")
    for table, (profile, sealed) in TABLES.items()
    for name in rows.table(profile, sealed)
]
#: They differ from one child to the next.
_CHANGING = {"brk", "getpid", "gettid"}


def _answer(outcome: Outcome) -> str:
    if outcome.status < 0:
        return outcome.killed_by
    return "exited" if outcome.report is None else str(outcome.value)


@pytest.mark.parametrize(("table", "name"), CASES)
def test_a_row_lets_through_what_it_says_and_nothing_else(
    plain: Nursery, table: str, name: str
) -> None:
    profile, sealed = TABLES[table]
    number, rule = rows.table(profile, sealed)[name]
    cases = rows.arguments_of(rule, number)
    assert cases
    for arguments, action in cases.items():
        said = _answer(_call(plain, profile, sealed, number, arguments, filtered=True))
        if action == KILL_PROCESS:
            assert said == "SIGSYS", arguments
        elif action != ALLOW:
            assert said == errno.errorcode[action & 0xFFFF], arguments
        elif sealed:
            # What the second filter lets through is the first one's to judge.
            continue
        else:
            without = _answer(_call(plain, profile, sealed, number, arguments, filtered=False))
            assert said == without, arguments


def _call(
    nursery: Nursery,
    profile: Profile,
    sealed: bool,
    number: int,
    arguments: tuple[int, ...],
    filtered: bool,
) -> Outcome:
    return nursery.run(
        "make_call",
        profile=profile,
        sealed=sealed,
        number=number,
        arguments=arguments,
        filtered=filtered,
    )


@pytest.mark.parametrize("table", TABLES)
def test_every_rule_with_arguments_is_tried_both_ways(table: str) -> None:
    for name, (number, rule) in rows.table(*TABLES[table]).items():
        actions = set(rows.arguments_of(rule, number).values())
        assert actions >= _meant(rule), name


def _meant(rule: Rule) -> set[int]:
    return {rule.default, *(clause.action for clause in rule.clauses)}


@pytest.mark.parametrize("table", TABLES)
def test_calls_of_another_architecture_end_the_process(plain: Nursery, table: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 has others beside it")
    profile, sealed = TABLES[table]
    outcome = plain.run("attack_through_i386", profile=profile, sealed=sealed)
    assert outcome.killed_by == "SIGSYS"
    for number in (0, 1, 39, 231, 512, 547):
        x32 = 0x40000000 | number
        outcome = _call(plain, profile, sealed, x32, (0,) * 6, filtered=True)
        assert outcome.killed_by == "SIGSYS", number
