"""A child that was taken over uses more memory than its cgroup has: it dies, and it alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.system import taken_over
from tests.system.registry import check, until
from tests.system.units import GUESTS, TIMEOUT_S, UNITS, Unit

from sandboxd.client import (
    LimitExceeded,
    LimitKind,
    ModuleTooComplex,
    ProtocolViolation,
    SandboxViolation,
)

#: Those that once only a cgroup stopped; without one, too, other walls do now.
_FILES: Final = "384 MiB in many mapped memory files"
_TABLES: Final = "384 MiB of page tables"
_DOCUMENT: Final = b'{"a": 1}'


def _custom_section(content: bytes) -> bytes:
    """A section that means nothing, with an empty name, at the end of a module."""
    assert len(content) < 127
    return bytes([0, len(content) + 1, 0]) + content


def _begin(unit: Unit) -> str:
    taken_over.install()
    unit.systemctl("restart")
    until(unit.serves, TIMEOUT_S, "spare runners")
    assert unit.format(_guest(), _DOCUMENT).output
    return "the next checks order attacks; without an order its runners answer as ever"


def _guest() -> bytes:
    return (GUESTS / "json.wasm").read_bytes()


def _kills(unit: Unit) -> int:
    """Processes that the kernel has killed for memory, in all leaves of the unit."""
    total = 0
    for path in unit.trees[0].glob("*/memory.events"):
        words = path.read_text("ascii").split()
        total += int(words[words.index("oom_kill") + 1])
    return total


def _overuse(unit: Unit) -> str:
    """Less than its cgroup has is all that the other walls leave: so give the cgroup less."""
    neighbour = _guest() + _custom_section(b"neighbour")
    assert unit.format(neighbour, _DOCUMENT).output
    before, kills = unit.status(), _kills(unit)
    bound = {runner.pid for runner in before.runners if runner.module_digest}
    assert bound
    for process, cgroup in unit.processes():
        if process.name() == "sbx-runner" and process.pid not in bound:
            (cgroup / "memory.max").write_text(str(taken_over.PRIVATE_BYTES // 2))
    outcome = unit.format(_guest(), taken_over.order(taken_over.PRIVATE), fresh=True).outcome
    assert isinstance(outcome, LimitExceeded), outcome
    assert outcome.kind is LimitKind.MEMORY, outcome
    assert _kills(unit) > kills
    _assert_survived(unit, before.pid, before.zygote_pid)
    assert bound <= {runner.pid for runner in unit.status().runners}, "a neighbour is gone"
    assert unit.format(neighbour, _DOCUMENT).output
    return f"{outcome.describe()}; the neighbour's process {bound} answers again"


def _stopped_before(unit: Unit, attack: str) -> str:
    before = unit.status()
    outcome = unit.format(_guest(), taken_over.order(attack), fresh=True).outcome
    assert isinstance(outcome, SandboxViolation | ProtocolViolation), outcome
    _assert_survived(unit, before.pid, before.zygote_pid)
    return outcome.describe()


def _assert_survived(unit: Unit, daemon: int, zygote: int) -> None:
    status = unit.status()
    assert (status.pid, status.zygote_pid) == (daemon, zygote)
    assert unit.show("NRestarts") == "0"


def _strike_as_compiler(unit: Unit) -> str:
    before = unit.status()
    module = _guest() + _custom_section(taken_over.order(_TABLES))
    try:
        unit.format(module, _DOCUMENT)
    except ModuleTooComplex as refusal:
        verdict = str(refusal)
    else:
        raise AssertionError("it was compiled")
    _assert_survived(unit, before.pid, before.zygote_pid)
    return verdict


def _end(unit: Unit) -> str:
    taken_over.remove()
    unit.systemctl("restart")
    until(unit.serves, TIMEOUT_S, "spare runners")
    outcome = unit.format(_guest(), taken_over.order(_TABLES)).output
    assert outcome.startswith(b'{"error"'), outcome
    return "an order is bytes again"


_SENTENCES: Final[dict[str, Callable[[Unit], str]]] = {
    "children can be taken over": _begin,
    "a runner that uses more than its cgroup has is killed, the verdict LIMIT_KIND_MEMORY": (
        _overuse
    ),
    "a runner with mapped memory files is stopped by its filter": partial(
        _stopped_before, attack=_FILES
    ),
    "a runner with page tables is stopped by its resource limits": partial(
        _stopped_before, attack=_TABLES
    ),
    "a compiler with page tables gets the verdict MODULE_TOO_COMPLEX": _strike_as_compiler,
    "children cannot be taken over any more": _end,
}


def _enter_all() -> None:
    for unit in UNITS:
        for sentence, function in _SENTENCES.items():
            check(f"{unit.who}: {sentence}")(partial(function, unit))


_enter_all()
