"""What a seccomp filter must answer: an interpreter of classic BPF, and the meaning of the rules.

Neither shares code with the assembler.
"""

from __future__ import annotations

import struct

from sandboxd.runner.isolation.seccomp import AUDIT_ARCH, KILL_PROCESS, OWN_PID, Match, Rule

PID = 4321
MACHINES = sorted(AUDIT_ARCH)
Call = tuple[int, int, tuple[int, ...]]


def interpret(code: bytes, call: Call) -> tuple[int, int]:
    """Run a program as the kernel does; returns its answer and the number of steps."""
    number, arch, arguments = call
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", code))
    accumulator, at, steps = 0, 0, 0
    while True:
        opcode, then, otherwise, k = program[at]
        at, steps = at + 1, steps + 1
        if opcode == 0x06:
            return k, steps
        if opcode == 0x20:
            assert k % 4 == 0
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif opcode == 0x54:
            accumulator &= k
        elif opcode == 0x15:
            at += then if accumulator == k else otherwise
        elif opcode == 0x35:
            at += then if accumulator >= k else otherwise
        elif opcode == 0x05:
            at += k
        else:
            raise AssertionError(f"opcode {opcode:#x}")


def holds(match: Match, argument: int) -> bool:
    width = 0xFFFFFFFFFFFFFFFF if match.wide else 0xFFFFFFFF
    values = {PID if value == OWN_PID else value & width for value in match.values}
    return argument & match.mask & width in values


def meaning(machine: str, rules: dict[int, Rule], default: int, call: Call) -> int:
    """What the rules say, without any program."""
    number, arch, arguments = call
    if arch != AUDIT_ARCH[machine] or (machine == "x86_64" and number & 0xC0000000):
        return KILL_PROCESS
    rule = rules.get(number)
    if rule is None:
        return default
    for clause in rule.clauses:
        if all(holds(match, arguments[match.argument]) for match in clause.matches):
            return clause.action
    return rule.default
