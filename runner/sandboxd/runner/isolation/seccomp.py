"""Classic-BPF seccomp programs: rules as data, an assembler, and loading.

A program answers every system call with one action. What it does not name is answered with its
default. A call of a foreign architecture, x32 among them, ends the process.

Rules without arguments cost nothing at run time on Linux 5.11 and later: the kernel finds out
when the program is loaded that they depend on the number alone, and does not run it for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000

#: Stands for the process id of the loading process, which is known only after the fork.
OWN_PID: Final = -1
_OWN_PID_MARK: Final = 0x51D51D51

#: AUDIT_ARCH_* of linux/audit.h, by platform.machine().
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Bit that marks a call of the x32 ABI, which shares its AUDIT_ARCH with x86-64.
_X32_BIT: Final = 0x40000000

# struct seccomp_data
_OFFSET_NUMBER: Final = 0
_OFFSET_ARCH: Final = 4
_OFFSET_ARGUMENTS: Final = 16

# linux/filter.h: opcodes, all with a constant operand.
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE
_GOTO: Final = 0x05  # BPF_JMP | BPF_JA
_RETURN: Final = 0x06  # BPF_RET
_entry: Final = struct.Struct("=HBBI")
_LOW_32: Final = 0xFFFFFFFF


def errno_action(number: int) -> int:
    """The action that makes a call fail with this errno, without being run."""
    return _ERRNO | number


@dataclass(frozen=True, slots=True)
class Match:
    """A condition on one argument: (argument & mask) is one of the values.

    With wide false the kernel takes the argument as a 32-bit int, so the upper half is ignored;
    with wide true all 64 bits count. OWN_PID may be among the values of a 32-bit argument.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFFFFFFFFFF
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """If every match holds, the action."""

    matches: tuple[Match, ...]
    action: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to one system call: the first clause that holds, or else the default."""

    clauses: tuple[Clause, ...] = ()
    default: int = KILL_PROCESS


ALWAYS: Final = Rule(default=ALLOW)


@dataclass(slots=True)
class _Assembly:
    """Instructions whose jumps go to labels, and where each label ended up."""

    code: list[tuple[int, str | None, str | None, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    _fresh: int = 0

    def label(self) -> str:
        self._fresh += 1
        return f"L{self._fresh}"

    def place(self, label: str) -> None:
        self.labels[label] = len(self.code)

    def emit(self, opcode: int, operand: int) -> None:
        self.code.append((opcode, None, None, operand))

    def branch(self, opcode: int, operand: int, then: str | None, otherwise: str | None) -> None:
        """A conditional jump; None falls through to the next instruction."""
        self.code.append((opcode, then, otherwise, operand))

    def goto(self, label: str) -> None:
        self.code.append((_GOTO, label, None, 0))

    def encode(self) -> bytes:
        return b"".join(self._encoded(at) for at in range(len(self.code)))

    def _encoded(self, at: int) -> bytes:
        opcode, then, otherwise, operand = self.code[at]
        if opcode == _GOTO and then is not None:
            return _entry.pack(opcode, 0, 0, self.labels[then] - at - 1)
        # struct refuses a distance that is negative or does not fit in its 8 bits.
        return _entry.pack(opcode, self._distance(at, then), self._distance(at, otherwise), operand)

    def _distance(self, at: int, label: str | None) -> int:
        return 0 if label is None else self.labels[label] - at - 1


@dataclass(frozen=True, slots=True)
class Program:
    """An assembled program, ready to be loaded any number of times."""

    code: bytes
    #: Byte offsets of the operands that hold the loading process's id.
    own_pid_offsets: tuple[int, ...]

    def for_process(self, pid: int) -> bytes:
        """The packed sock_filter entries for the process with this id."""
        code = bytearray(self.code)
        for offset in self.own_pid_offsets:
            struct.pack_into("=I", code, offset, pid)
        return bytes(code)


def assemble(machine: str, rules: Mapping[int, Rule], default: int) -> Program:
    """Assemble a program: rules by system call number, and the action for every other number.

    machine is a key of AUDIT_ARCH. Raises KeyError for another machine and struct.error for a
    rule that is too long to be jumped over.
    """
    assembly = _Assembly()
    native = assembly.label()
    assembly.emit(_LOAD, _OFFSET_ARCH)
    assembly.branch(_IF_EQUAL, AUDIT_ARCH[machine], native, None)
    assembly.emit(_RETURN, KILL_PROCESS)
    assembly.place(native)
    assembly.emit(_LOAD, _OFFSET_NUMBER)
    if machine == "x86_64":
        below = assembly.label()
        assembly.branch(_IF_AT_LEAST, _X32_BIT, None, below)
        assembly.emit(_RETURN, KILL_PROCESS)
        assembly.place(below)
    _search(assembly, sorted(rules.items()), default)
    code = assembly.encode()
    marks = [
        at * _entry.size + 4
        for at, (opcode, _then, _otherwise, operand) in enumerate(assembly.code)
        if opcode == _IF_EQUAL and operand == _OWN_PID_MARK
    ]
    return Program(code, tuple(marks))


def _search(assembly: _Assembly, rules: Sequence[tuple[int, Rule]], default: int) -> None:
    """Find the rule by binary search: the kernel runs the program once per number at loading."""
    if len(rules) <= 1:
        for number, rule in rules:
            found = assembly.label()
            assembly.branch(_IF_EQUAL, number, found, None)
            assembly.emit(_RETURN, default)
            assembly.place(found)
            _answer(assembly, rule)
        if not rules:
            assembly.emit(_RETURN, default)
        return
    middle = len(rules) // 2
    lower, upper = assembly.label(), assembly.label()
    # The upper half is too far for a conditional jump's 8 bits.
    assembly.branch(_IF_AT_LEAST, rules[middle][0], None, lower)
    assembly.goto(upper)
    assembly.place(lower)
    _search(assembly, rules[:middle], default)
    assembly.place(upper)
    _search(assembly, rules[middle:], default)


def _answer(assembly: _Assembly, rule: Rule) -> None:
    for clause in rule.clauses:
        next_clause = assembly.label()
        for match in clause.matches:
            _test(assembly, match, next_clause)
        assembly.emit(_RETURN, clause.action)
        assembly.place(next_clause)
    assembly.emit(_RETURN, rule.default)


def _test(assembly: _Assembly, match: Match, otherwise: str) -> None:
    """Fall through if the match holds; both architectures are little-endian."""
    holds = assembly.label()
    low = _OFFSET_ARGUMENTS + 8 * match.argument
    if match.wide:
        high_values = {value >> 32 for value in match.values}
        if len(high_values) != 1:
            raise ValueError("the values of a wide match must agree in their upper half")
        _load_masked(assembly, low + 4, match.mask >> 32)
        assembly.branch(_IF_EQUAL, high_values.pop(), None, otherwise)
    _load_masked(assembly, low, match.mask & _LOW_32)
    for value in match.values:
        operand = _OWN_PID_MARK if value == OWN_PID else value & _LOW_32
        assembly.branch(_IF_EQUAL, operand, holds, None)
    assembly.goto(otherwise)
    assembly.place(holds)


def _load_masked(assembly: _Assembly, offset: int, mask: int) -> None:
    assembly.emit(_LOAD, offset)
    if mask != _LOW_32:
        assembly.emit(_AND, mask)
