"""Runs a command on a host on which some system calls go wrong.

`python -m tests.isolation.faulty_host FAULTS COMMAND...` loads a filter that answers the faulty
calls and execs the command, which inherits it: nothing in the command knows of the test. FAULTS is
JSON: a list of [number, argument or null, mask, values, negate, errno].
"""

from __future__ import annotations

import json
import os
import sys

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.seccomp import ALLOW, Clause, Match, Rule, assemble, errno_action


def rule(argument: int | None, mask: int, values: list[int], negate: bool, error: int) -> Rule:
    answer = errno_action(error)
    if argument is None:
        return Rule(default=answer)
    match = Match(argument, tuple(values), mask, wide=True)
    if negate:
        return Rule((Clause((match,), ALLOW),), answer)
    return Rule((Clause((match,), answer),), ALLOW)


def main() -> None:
    rules = {number: rule(*rest) for number, *rest in json.loads(sys.argv[1])}
    if os.geteuid() != 0:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.load_filter(assemble(kernel.MACHINE, rules, ALLOW).for_process(os.getpid()))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
