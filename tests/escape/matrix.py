"""Run every attack from behind every column's walls, and judge what came out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.escape import attacks, queues, walls
from tests.escape.field import CATALOGUE, SECRET, Attack
from tests.escape.nest import BROKEN, WORKS
from tests.escape.walls import ALL, NONE, PAIR, SINGLE

from sandboxd.runner.isolation import landlock, passing

assert attacks.GROUPS

_ROOT: Final = Path(__file__).parents[2]
#: An ordinary user that no other process has.
ORDINARY_USER: Final = 65533
#: Of the attacks that work without a wall, how many two single walls or more must stop.
SHARE_WITH_TWO_WALLS: Final = 0.9

#: Whether this kernel has wall F.
_REFUSES_DESCRIPTORS: Final = passing.hold().active

#: Attacks made at the same time.
_TEAMS: Final = 2

Outcomes = dict[str, str]


class Process:
    """A child that is asked by a line of JSON and answers by one."""

    def __init__(self, module: str, *arguments: str) -> None:
        environment = {
            **os.environ,
            "SANDBOXD_ESCAPE": SECRET.decode(),
            "TOKIO_WORKER_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.escape.{module}", *arguments],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def read(self) -> Any:
        """Its next answer. Raises RuntimeError if it has died."""
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"a test process has died: {self._process.wait(10)}")
        return json.loads(line)

    def ask(self, *request: str) -> Any:
        """Send a request; return the answer."""
        pipe = self._pipe(self._process.stdin)
        pipe.write(json.dumps(request) + "\n")
        pipe.flush()
        return self.read()

    def close(self) -> None:
        """Have it end, and wait."""
        self._pipe(self._process.stdin).close()
        self._process.wait(10)
        self._pipe(self._process.stdout).close()


@dataclass
class Matrix:
    """What came out for one identity: "root" or "user". Outcomes are by attack, then by column."""

    identity: str
    rows: dict[str, Outcomes] = field(default_factory=dict)
    #: Why there is no namespaced zygote; then N and all are not there.
    no_namespaces: str = ""
    #: What the attackers' cgroups have, and what they lack, in words; without any C is not there.
    controllers: frozenset[str] = frozenset()
    no_cgroups: str = ""
    wanted: tuple[str, ...] = walls.COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(
            column
            for column in self.wanted
            if not (self.no_namespaces and walls.in_namespaces(column))
            and not (column == "C" and not self.controllers)
            and not (column == "F" and not _REFUSES_DESCRIPTORS)
        )

    def void(self) -> dict[str, str]:
        """Attacks that do not work here even without a wall, and what they get."""
        return {
            name: outcomes[NONE].removeprefix("void: ")
            for name, outcomes in self.rows.items()
            if outcomes[NONE] != WORKS
        }

    def valid(self) -> dict[str, Outcomes]:
        """Rows of the attacks that work without a wall."""
        return {name: row for name, row in self.rows.items() if row[NONE] == WORKS}

    def stopped_by(self, name: str) -> list[str]:
        """The single walls that stop an attack, and for the right reason: no other one counts."""
        row, attack = self.rows[name], CATALOGUE[name]
        return [
            wall
            for wall in SINGLE
            if row.get(wall, WORKS) != WORKS and row[wall] in _allowed(self, attack, wall)
        ]


def through_all(matrix: Matrix) -> list[str]:
    """Attacks that all walls together let through. Must be none."""
    return [name for name, row in matrix.valid().items() if row.get(ALL) == WORKS]


def judged(matrix: Matrix) -> list[str]:
    """Valid attacks against which this host has every wall that ought to stop them.

    The others wait for a cgroup controller or a newer kernel that is not here.
    """
    return [name for name in matrix.valid() if not _missing(matrix, CATALOGUE[name])]


def _missing(matrix: Matrix, attack: Attack) -> set[str]:
    missing = {"L"} if attack.landlock_abi > landlock.ABI else set()
    if not _REFUSES_DESCRIPTORS:
        missing.add("F")
    if _controller(attack, matrix.identity) not in matrix.controllers:
        missing.add("C")
    return missing & attack.expected(matrix.identity).keys()


def _controller(attack: Attack, identity: str) -> str:
    """The controller that C needs to stop an attack: pids.max answers EAGAIN, memory.max kills."""
    return "pids" if "EAGAIN" in attack.expected(identity).get("C", ()) else "memory"


def share_with_two_walls(matrix: Matrix, names: Iterable[str]) -> float:
    """Share of the named attacks that two single walls or more stop."""
    counts = [len(matrix.stopped_by(name)) >= 2 for name in names]
    return sum(counts) / len(counts)


def surprises(matrix: Matrix) -> list[str]:
    """Outcomes that are not the expected ones: a wall that fell, or held for the wrong reason."""
    found = []
    for name, row in matrix.valid().items():
        for column in row.keys() - {NONE}:
            allowed = _allowed(matrix, CATALOGUE[name], column)
            if row[column] not in allowed:
                found.append(
                    f"{name} / {column}: {row[column]}, not {' or '.join(sorted(allowed))}"
                )
    return found


def _allowed(matrix: Matrix, attack: Attack, column: str) -> frozenset[str]:
    missing = _missing(matrix, attack)
    expected = {
        wall: reasons
        for wall, reasons in attack.expected(matrix.identity).items()
        if wall not in missing
    }
    if column == ALL:
        return frozenset().union(*expected.values()) or frozenset({WORKS})
    return expected.get(column, frozenset({WORKS}))


def broken_rules(matrix: Matrix) -> list[str]:
    """What breaks the rules that this suite is about, for people; empty if all is well."""
    found = [f"{name}: all walls together let it through" for name in through_all(matrix)]
    found += surprises(matrix)
    share = share_with_two_walls(matrix, matrix.valid())
    if share < SHARE_WITH_TWO_WALLS:
        found.append(f"only {share:.1%} of the attacks are stopped by two single walls or more")
    if matrix.no_namespaces:
        found.append(f"no namespaces: {matrix.no_namespaces}")
    return found


def identities() -> tuple[str, ...]:
    """Those that can be tried by whoever runs this."""
    return ("root", "user") if os.geteuid() == 0 else ("user",)


def run(
    identity: str,
    names: Sequence[str] = tuple(CATALOGUE),
    columns: Sequence[str] = walls.COLUMNS,
) -> Matrix:
    """Make the named attacks, behind no wall and behind those of the named columns.

    Raises RuntimeError if a process of the test itself breaks.
    """
    uid = os.geteuid()
    if identity == "user" and uid == 0:
        uid = ORDINARY_USER
    matrix = Matrix(identity, wanted=tuple(columns))
    queues.sweep()
    # A bait for each team: attacks of two teams never meet.
    with ThreadPoolExecutor(_TEAMS) as teams:
        shares = [names[team::_TEAMS] for team in range(_TEAMS)]
        results = list(teams.map(lambda share: _run_team(matrix, uid, share), shares))
    queues.sweep()
    for result in results:
        matrix.no_namespaces = matrix.no_namespaces or result.no_namespaces
        matrix.controllers |= result.controllers
        matrix.no_cgroups = matrix.no_cgroups or result.no_cgroups
    matrix.rows = {
        name: result.rows[name] for name in names for result in results if name in result.rows
    }
    return matrix


def _run_team(whole: Matrix, uid: int, names: Sequence[str]) -> Matrix:
    """Make some of the attacks, on a bait and from zygotes of their own."""
    matrix = Matrix(whole.identity, wanted=whole.wanted)
    with _directory(uid) as directory, contextlib.ExitStack() as processes:
        bait = Process("bait", directory, str(uid))
        processes.callback(bait.close)
        described = json.dumps(bait.read())
        nests = {}
        for mode in ("plain", "namespaced"):
            nests[mode] = Process("nest", mode, str(uid), described)
            processes.callback(nests[mode].close)
            greeting = nests[mode].read() | nests[mode].read()
            matrix.no_namespaces = greeting.get("refused", matrix.no_namespaces)
            matrix.controllers |= frozenset(greeting.get("controllers", ()))
            matrix.no_cgroups = greeting["cgroups"]
        for name in names:
            matrix.rows[name] = _try_walls(matrix, name, nests)
    return matrix


def _try_walls(matrix: Matrix, name: str, nests: dict[str, Process]) -> Outcomes:
    """Make one attack behind every column's walls; behind none only, if it is void."""
    outcomes: Outcomes = {}
    for column in matrix.columns:
        if column == PAIR and PAIR not in CATALOGUE[name].expected(matrix.identity):
            continue
        nest = nests["namespaced" if walls.in_namespaces(column) else "plain"]
        outcomes[column] = str(nest.ask(name, column))
        if outcomes[column].startswith(BROKEN):
            raise RuntimeError(f"{name} / {column}: {outcomes[column]}")
        if outcomes[NONE] != WORKS:
            break
    return outcomes


@contextlib.contextmanager
def _directory(uid: int) -> Iterator[str]:
    """A public directory of the host that belongs to a user, with a short name for its socket."""
    path = tempfile.mkdtemp(prefix="sbx-escape-")
    os.chown(path, uid, -1)
    os.chmod(path, 0o1777)  # as /tmp is
    try:
        yield path
    finally:
        shutil.rmtree(path)
