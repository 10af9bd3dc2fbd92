"""The walls by letter: each a set of real layers, put up alone, together, or not at all."""

from __future__ import annotations

import dataclasses
import os
from typing import Final

from sandboxd.runner.isolation import kernel, lockdown, passing, seccomp, syscalls
from sandboxd.runner.isolation.layers import (
    CAPABILITIES,
    CGROUP,
    DESCRIPTORS,
    LANDLOCK,
    LIBFFI_PAGE,
    MDWE,
    NO_NEW_PRIVS,
    NON_DUMPABLE,
    RLIMITS,
    SECCOMP,
    SECCOMP_SEALED,
    SESSION,
    UID,
    IsolationError,
)

#: Single walls in the order of the columns. N and F have no layer of a child:
#: the zygote entered the first, and the second is the other end's.
SINGLE: Final[dict[str, str]] = {
    "U": "user id of its own (root) and no capabilities",
    "R": "resource limits",
    "N": "namespaces, the empty root and (root) memory files that cannot be executed",
    "L": "Landlock",
    "S": "seccomp: the filter of the lock-down",
    "Z": "sealed: the second filter, after the module was loaded",
    "M": "no new code: MDWE, and libffi's page locked",
    "H": "hygiene: descriptors closed, a session of its own",
    "F": "the supervisor's end of the socket takes no descriptors",
    "P": "no new privileges",
    "D": "not dumpable",
    "C": "a cgroup of its own",
}
_LAYERS: Final[dict[str, frozenset[str]]] = {
    "U": frozenset({CAPABILITIES, UID}),
    "R": frozenset({RLIMITS}),
    "N": frozenset(),
    "L": frozenset({LANDLOCK}),
    "S": frozenset({SECCOMP}),
    "Z": frozenset(),
    "M": frozenset({LIBFFI_PAGE}),
    "H": frozenset({DESCRIPTORS, SESSION}),
    "F": frozenset(),
    "P": frozenset({NO_NEW_PRIVS}),
    "D": frozenset({NON_DUMPABLE}),
    "C": frozenset({CGROUP}),
}
_SECOND_FILTER: Final = seccomp.assemble(
    kernel.MACHINE,
    syscalls.rules(syscalls.SEALED_ROWS, kernel.MACHINE, "runner"),
    seccomp.ALLOW,
)
NONE: Final = "none"
ALL: Final = "all"
#: Two walls that are one to a user id: root is exempt from RLIMIT_NPROC and RLIMIT_MEMLOCK.
PAIR: Final = "U+R"
COLUMNS: Final = (NONE, *SINGLE, PAIR, ALL)


def layers_of(letter: str) -> frozenset[str]:
    """The layers of a child that a single wall is made of."""
    return _LAYERS[letter]


def in_namespaces(column: str) -> bool:
    """Whether the attackers of a column are children of the zygote that entered namespaces."""
    return column in {"N", ALL}


def refuses_descriptors(column: str) -> bool:
    """Whether the attackers of a column have a supervisor that takes no descriptors.

    None has where the kernel cannot.
    """
    return column in {"F", ALL} and passing.hold().active


def put_up(column: str, policy: lockdown.ChildPolicy) -> None:
    """Put up exactly the walls of a column. Raises IsolationError if one does not hold."""
    if column == ALL:
        lockdown.lock_down(policy)
        lockdown.seal_after_load(frozenset({SECCOMP_SEALED}))
        return
    letters = [] if column == NONE else column.split("+")
    layers = frozenset().union(*(_LAYERS[letter] for letter in letters))
    # The kernel takes a filter or a Landlock domain from nobody who could still gain privileges.
    if set(letters) & {"L", "S", "Z"} and os.geteuid() != 0:
        layers |= {NO_NEW_PRIVS}
    if os.geteuid() != 0:
        layers -= {UID}  # an ordinary user has one id only: for that, the wall is the capabilities
    # A cgroup without the memory controller is not the whole wall: the driver knows what it has.
    policy = dataclasses.replace(policy, required=layers - {CGROUP})
    lockdown.apply_layers(policy, layers)
    if "Z" in letters:
        _load_second_filter()
    if "M" in letters:
        _refuse_new_code()


def _load_second_filter() -> None:
    # Not seal_after_load(): that rightly refuses to seal what is not locked.
    kernel.load_filter(_SECOND_FILTER.for_process(os.getpid()))
    try:
        kernel.prctl(syscalls.CANARY_SEALED)
    except OSError as error:
        if error.errno == syscalls.CANARY_ERRNO:
            return
    raise IsolationError(SECCOMP_SEALED, "the canary call was not answered by the filter")


def _refuse_new_code() -> None:
    try:
        kernel.prctl(kernel.PR_SET_MDWE, kernel.PR_MDWE_REFUSE_EXEC_GAIN)
    except OSError as error:
        raise IsolationError(MDWE, str(error)) from error
