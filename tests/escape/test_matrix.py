"""The escape matrix: every attack works behind no wall, none behind all, most are stopped twice."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.escape import matrix, native, queues
from tests.escape.field import CATALOGUE
from tests.escape.matrix import Matrix
from tests.escape.walls import ALL, NONE, PAIR, SINGLE

#: Half of a minute for each identity on an idle machine; the first test of each pays.
pytestmark = pytest.mark.timeout(240)
_DOCUMENT = Path(__file__).parents[2] / "docs" / "isolation-matrix.md"


@pytest.fixture(scope="module")
def measured() -> Callable[[str], Matrix]:
    return cache(matrix.run)


@pytest.fixture(params=["root", "user"])
def result(request: pytest.FixtureRequest, measured: Callable[[str], Matrix]) -> Matrix:
    if request.param not in matrix.identities():
        pytest.skip("needs root")
    found = measured(request.param)
    if found.no_namespaces:
        pytest.skip(f"the host lets nobody in: {found.no_namespaces}")
    return found


def test_most_attacks_work_where_there_is_no_wall(result: Matrix) -> None:
    least = {"root": 100, "user": 80}[result.identity]
    assert len(result.valid()) >= least, result.void()


def test_no_attack_works_behind_all_walls(result: Matrix) -> None:
    assert matrix.through_all(result) == []


def test_each_wall_stops_what_it_must_and_for_the_right_reason(result: Matrix) -> None:
    assert matrix.surprises(result) == []


def test_nine_attacks_of_ten_are_stopped_by_two_single_walls(result: Matrix) -> None:
    # Of all that work here, those included that wait for a wall which this host lacks.
    names = list(result.valid())
    once = [name for name in names if len(result.stopped_by(name)) < 2]
    assert matrix.share_with_two_walls(result, names) >= matrix.SHARE_WITH_TWO_WALLS, once


def test_every_wall_is_needed_for_some_attack(result: Matrix) -> None:
    stopping = {wall for name in result.valid() for wall in result.stopped_by(name)}
    idle = set(SINGLE) & set(result.columns) - stopping
    # An ordinary user has neither privileges to gain by a program of his own nor any to give up.
    assert idle <= ({"U", "P"} if result.identity == "user" else set())


def test_the_committed_matrix_reaches_both_goals_for_root_and_for_an_ordinary_user() -> None:
    found = {}
    for line in _DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in {"root", "user"}:
            found[cells[0]] = cells[1:4]
    assert found.keys() == {"root", "user"}
    for valid, through, twice in found.values():
        assert through == "0"
        stopped, of = twice.partition(",")[0].split(" of ")
        assert of == valid
        assert int(stopped) / int(of) >= matrix.SHARE_WITH_TWO_WALLS


def test_attackers_leave_no_message_queue_behind(result: Matrix) -> None:
    assert result.valid()
    assert [pid for pid in queues.candidates() if is_queue(queues.name_of(pid))] == []


def test_queues_of_attackers_that_died_are_swept_and_no_others() -> None:
    with subprocess.Popen(["/bin/true"]) as dead:
        dead.wait()
    mine = [queues.name_of(pid) for pid in (dead.pid, os.getpid())]
    for name in mine:
        make_queue(name)
    queues.sweep()
    assert [is_queue(name) for name in mine] == [False, True]
    queues.remove_of(os.getpid())
    assert not is_queue(mine[1])


def make_queue(name: bytes) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("qqqq", 0, 1, 64, 0), 64)
    address, keep = native.text(name)
    fd = native.call(
        "mq_open", address, os.O_CREAT | os.O_RDWR, 0o600, ctypes.addressof(attributes)
    )
    os.close(fd)
    del keep


def is_queue(name: bytes) -> bool:
    address, keep = native.text(name)
    try:
        os.close(native.call("mq_open", address, os.O_RDWR, 0, 0))
    except (FileNotFoundError, PermissionError):  # another user's is not of this run
        return False
    finally:
        del keep
    return True


def test_the_committed_matrix_names_every_attack_and_every_wall() -> None:
    text = _DOCUMENT.read_text("utf-8")
    assert [name for name in CATALOGUE if f"| {name} |" not in text] == []
    assert [wall for wall in SINGLE if f"| {wall} |" not in text] == []


def test_expectations_name_only_walls_that_exist() -> None:
    known = {*SINGLE, PAIR} - {NONE, ALL}
    for attack in CATALOGUE.values():
        assert {*attack.root, *attack.user} <= known, attack.name


def test_an_ordinary_user_gets_the_user_matrix_only() -> None:
    assert "user" in matrix.identities()
    assert ("root" in matrix.identities()) == (os.geteuid() == 0)
