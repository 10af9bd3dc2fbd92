"""Who is in which cgroup, and what each of them may use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.system.registry import check, until
from tests.system.units import (
    GUESTS,
    SETTINGS,
    SHIPPED,
    TIMEOUT_S,
    UNITS,
    Unit,
    write_unit_for_root,
)

from sandboxd.client import DeadlineExceeded, Limits
from sandboxd.supervisor.outbox import file_bytes

_MIB: Final = 1 << 20
#: Small, so that an attack that needs more than a cgroup has is over soon.
_SMALL: Final = """\
SANDBOXD_MAX_RUNNERS=8
SANDBOXD_SPARE_RUNNERS=2
SANDBOXD_MAX_MEMORY=16MiB
SANDBOXD_DEFAULT_MEMORY=16MiB
SANDBOXD_MAX_ARTIFACT=16MiB
SANDBOXD_COMPILE_MEMORY=256MiB
SANDBOXD_RUNNER_CPU_PERCENT=50
SANDBOXD_MAX_OUTPUT=1MiB
SANDBOXD_DEFAULT_OUTPUT=1MiB
SANDBOXD_MAX_MESSAGE=4MiB
"""
#: Memory, artifact and overhead of a runner; outbox and inbox; slack.
_RUNNER_BYTES: Final = (16 + 16 + 192 + 64) * _MIB + file_bytes(_MIB, 4 * _MIB) + 64 * 1024
_EXPECTED: Final = {
    "memory.max": str(_RUNNER_BYTES),
    "memory.swap.max": "0",
    "memory.oom.group": "1",
    "pids.max": "16",
    "cpu.max": "50000 100000",
}


def leaves(unit: Unit) -> list[Path]:
    """The cgroups that children are in, of which there is one each."""
    return [cgroup for process, cgroup in unit.processes() if process.name() == "sbx-runner"]


def _each_alone(unit: Unit) -> str:
    places: dict[str, list[Path]] = {}
    for process, cgroup in unit.processes():
        places.setdefault(process.name(), []).append(cgroup)
    (tree,) = unit.trees
    runners = places.pop("sbx-runner")
    assert len(runners) == len(set(runners)) >= 2, runners
    assert all(cgroup.parent == tree for cgroup in runners), runners
    elsewhere = {cgroup for cgroups in places.values() for cgroup in cgroups}
    assert elsewhere == {unit.cgroup / "supervisor"}, places
    return f"{len(runners)} runners, a leaf each; in supervisor/: {', '.join(sorted(places))}"


@check("each runner is alone in a leaf, the daemon in another")
def _alone() -> str:
    return _each_alone(SHIPPED)


@check("limits are read back from each leaf: memory, swap, group kill, tasks, processor time")
def _limits() -> str:
    SETTINGS.write_text(SETTINGS.read_text("utf-8") + _SMALL, "utf-8")
    SHIPPED.systemctl("restart")
    until(SHIPPED.serves, TIMEOUT_S, "spare runners")
    found = leaves(SHIPPED)
    assert len(found) >= 2
    for leaf in found:
        assert {name: (leaf / name).read_text().strip() for name in _EXPECTED} == _EXPECTED
    return ", ".join(f"{name} {value}" for name, value in _EXPECTED.items())


@check("a runner that computes is held to its share of a processor")
def _throttled() -> str:
    limits = Limits(wall_time_ms=3000, cpu_time_ms=60_000)
    with SHIPPED.client() as client:
        module = (GUESTS / "endless_loop.wasm").read_bytes()
        before = _times_throttled(SHIPPED)
        outcome = client.call(module, "spin", limits=limits).outcome
    assert isinstance(outcome, DeadlineExceeded), outcome
    times = _times_throttled(SHIPPED) - before
    assert times > 0
    return f"throttled {times} times in 3 s"


def _times_throttled(unit: Unit) -> int:
    total = 0
    for path in unit.trees[0].glob("*/cpu.stat"):
        words = path.read_text("ascii").split()
        total += int(words[words.index("nr_throttled") + 1])
    return total


@check("started as root, it uses what was delegated to it, and each runner is alone as well")
def _as_root() -> str:
    write_unit_for_root()
    unit = UNITS[1]
    unit.systemctl("start")
    until(unit.serves, TIMEOUT_S, "spare runners")
    layer = unit.layer()
    assert layer.active, layer
    users = {process.uids().real for process, cgroup in unit.processes() if cgroup in leaves(unit)}
    assert len(users) >= 2, users
    assert 0 not in users
    return f"{_each_alone(unit)}\nverified: {layer.detail}"
