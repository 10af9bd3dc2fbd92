"""A child that was taken over uses more memory than its cgroup has: it dies, and it alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.system import taken_over
from tests.system.registry import check, until
from tests.system.units import GUESTS, TIMEOUT_S, UNITS, Unit

from sandboxd.client import LimitExceeded, LimitKind, ModuleTooComplex

#: Those that no other wall stops, and that the sealed filter lets a computing guest make.
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


def _strike(unit: Unit, attack: str) -> str:
    neighbour = _guest() + _custom_section(b"neighbour")
    assert unit.format(neighbour, _DOCUMENT).output
    before, kills = unit.status(), _kills(unit)
    outcome = unit.format(_guest(), taken_over.order(attack), fresh=True).outcome
    assert isinstance(outcome, LimitExceeded), outcome
    assert outcome.kind is LimitKind.MEMORY, outcome
    assert _kills(unit) > kills
    _assert_survived(unit, before.pid, before.zygote_pid)
    after = unit.status()
    bound = {runner.pid for runner in before.runners if runner.module_digest}
    assert bound
    assert bound <= {runner.pid for runner in after.runners}, "a neighbour is gone"
    assert unit.format(neighbour, _DOCUMENT).output
    return f"{outcome.describe()}; the neighbour's process {bound} answers again"


def _assert_survived(unit: Unit, daemon: int, zygote: int) -> None:
    status = unit.status()
    assert (status.pid, status.zygote_pid) == (daemon, zygote)
    assert unit.show("NRestarts") == "0"


def _strike_as_compiler(unit: Unit) -> str:
    before, kills = unit.status(), _kills(unit)
    module = _guest() + _custom_section(taken_over.order(_TABLES))
    try:
        unit.format(module, _DOCUMENT)
    except ModuleTooComplex as refusal:
        verdict = str(refusal)
    else:
        raise AssertionError("it was compiled")
    assert "memory" in verdict, verdict
    assert _kills(unit) > kills
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
    "a runner with mapped memory files is killed, the verdict LIMIT_KIND_MEMORY": partial(
        _strike, attack=_FILES
    ),
    "a runner with page tables is killed, the verdict LIMIT_KIND_MEMORY": partial(
        _strike, attack=_TABLES
    ),
    "a compiler with page tables is killed, the verdict MODULE_TOO_COMPLEX": _strike_as_compiler,
    "children cannot be taken over any more": _end,
}


def _enter_all() -> None:
    for unit in UNITS:
        for sentence, function in _SENTENCES.items():
            check(f"{unit.who}: {sentence}")(partial(function, unit))


_enter_all()
