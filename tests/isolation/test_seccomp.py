"""The assembler, against an interpreter of classic BPF and the meaning of the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.isolation.oracle import MACHINES, PID, Call, interpret, meaning

from sandboxd.runner.isolation import syscalls
from sandboxd.runner.isolation.policy import Profile
from sandboxd.runner.isolation.seccomp import (
    ALLOW,
    ALWAYS,
    AUDIT_ARCH,
    KILL_PROCESS,
    OWN_PID,
    Clause,
    Match,
    Program,
    Rule,
    assemble,
    errno_action,
)

actions = st.sampled_from([ALLOW, KILL_PROCESS, errno_action(1), errno_action(38)])
interesting = st.sampled_from(
    [0, 1, 2, 3, 5, 6, 9, 15, 0x22, 0x4022, 0x10F00, 0x3D0F00, 65, 66, PID, 1030, 0x53564D41]
)
arguments = st.one_of(
    interesting,
    interesting.map(lambda value: value | 1 << 32),
    interesting.map(lambda value: value | 1 << 63),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([syscalls.CANARY_LOCKED, syscalls.CANARY_SEALED]),
)


@st.composite
def matches(draw: st.DrawFn) -> Match:
    wide = draw(st.booleans())
    values = draw(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=4))
    high = draw(st.integers(0, 3)) << 32 if wide else 0
    own = [] if wide else draw(st.sampled_from([[], [OWN_PID]]))
    mask = draw(st.sampled_from([(1 << 64) - 1, 0xFF, ~0x30 & (1 << 64) - 1, 0x3_0000_00FF]))
    return Match(draw(st.integers(0, 5)), (*(v | high for v in values), *own), mask, wide)


rule_tables = st.dictionaries(
    st.integers(0, 500),
    st.builds(
        Rule,
        st.lists(
            st.builds(Clause, st.lists(matches(), max_size=3).map(tuple), actions), max_size=3
        ).map(tuple),
        actions,
    ),
    max_size=40,
)


@st.composite
def calls(draw: st.DrawFn, machine: str, numbers: list[int]) -> Call:
    arch = draw(st.sampled_from([AUDIT_ARCH[machine]] * 6 + [0x40000003, 0xC00000B7, 0xC000003E]))
    pool = [st.integers(0, 0xFFFFFFFF), st.integers(0, 600)]
    if numbers:
        pool += [st.sampled_from(numbers)] * 3
        pool.append(st.sampled_from(numbers).map(lambda number: number | 0x40000000))
    return draw(st.one_of(pool)), arch, draw(st.tuples(*[arguments] * 6))


@settings(deadline=None, database=None, max_examples=150)
@given(st.data(), st.sampled_from(MACHINES), rule_tables, actions)
def test_a_program_answers_what_its_rules_say(
    data: st.DataObject, machine: str, rules: dict[int, Rule], default: int
) -> None:
    program = assemble(machine, rules, default)
    code = program.for_process(PID)
    for _ in range(8):
        call = data.draw(calls(machine, sorted(rules)))
        assert interpret(code, call)[0] == meaning(machine, rules, default, call)


TABLES = [
    (syscalls.ROWS, "core", KILL_PROCESS),
    (syscalls.ROWS, "runner", KILL_PROCESS),
    (syscalls.ROWS, "files", KILL_PROCESS),
    (syscalls.ROWS, "compiler", KILL_PROCESS),
    (syscalls.SEALED_ROWS, "runner", ALLOW),
    (syscalls.SEALED_CORE_ROWS, "core", ALLOW),
]
TABLE_NAMES = ["core", "runner", "files", "compiler", "sealed", "sealed core"]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("table", TABLES, ids=TABLE_NAMES)
@settings(deadline=None, database=None, max_examples=50)
@given(data=st.data())
def test_the_real_tables_mean_what_they_say(
    data: st.DataObject,
    machine: str,
    table: tuple[tuple[syscalls.Row, ...], Profile, int],
) -> None:
    rows, profile, default = table
    rules = syscalls.rules(rows, machine, profile)
    code = _assembled(machine, rules, default).for_process(PID)
    for _ in range(8):
        call = data.draw(calls(machine, sorted(rules)))
        assert interpret(code, call)[0] == meaning(machine, rules, default, call)


_programs: dict[tuple[str, frozenset[int], int], Program] = {}


def _assembled(machine: str, rules: dict[int, Rule], default: int) -> Program:
    key = (machine, frozenset(rules), default)
    if key not in _programs:
        _programs[key] = assemble(machine, rules, default)
    return _programs[key]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_system_call_is_found_in_few_steps(machine: str) -> None:
    rules = syscalls.rules(syscalls.ROWS, machine, "runner")
    code = assemble(machine, rules, KILL_PROCESS).for_process(PID)
    assert len(code) // 8 < 512
    for number in range(500):
        _, steps = interpret(code, (number, AUDIT_ARCH[machine], (0,) * 6))
        assert steps < 40


def test_an_empty_table_is_its_default() -> None:
    code = assemble("aarch64", {}, KILL_PROCESS).for_process(PID)
    assert interpret(code, (0, AUDIT_ARCH["aarch64"], (0,) * 6))[0] == KILL_PROCESS


def test_two_rows_for_one_call_are_refused() -> None:
    row = syscalls.Row("read", 0, 63, ALWAYS, ("runner",), "twice")
    with pytest.raises(ValueError, match="has two rows"):
        syscalls.rules((row, row), "x86_64", "runner")


def test_values_that_differ_above_32_bits_are_refused() -> None:
    rule = Rule((Clause((Match(0, (1, 1 << 32), wide=True),), ALLOW),))
    with pytest.raises(ValueError, match="upper half"):
        assemble("x86_64", {0: rule}, ALLOW)


def test_every_row_has_a_reason_and_a_number() -> None:
    for row in (*syscalls.ROWS, *syscalls.SEALED_CORE_ROWS):
        assert row.reason, row.name
        assert row.x86_64 is not None or row.aarch64 is not None, row.name


_FAMILIES = "socket connect bind accept listen sendmsg sendto execve execveat fork vfork ptrace"
_REACHING_OUT = "kill tkill pidfd_open setns unshare mount chroot bpf io_uring_setup keyctl"


@pytest.mark.parametrize("name", f"{_FAMILIES} {_REACHING_OUT}".split())
def test_the_allowlist_has_no_row_that_makes_or_reaches_anything(name: str) -> None:
    assert name not in {row.name for row in syscalls.ROWS}


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers on this host")
    numbers: dict[str, int] = {}
    for line in HEADERS[machine].read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define" and words[1].startswith("__NR"):
            name = words[1].removeprefix("__NR3264_").removeprefix("__NR_")
            if words[2].isdigit():
                numbers[name] = int(words[2])
    # The generic table calls it by its older name.
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))
    for row in (*syscalls.ROWS, *syscalls.SEALED_ROWS):
        number = row.number(machine)
        assert number is None or numbers[row.name] == number, row.name
