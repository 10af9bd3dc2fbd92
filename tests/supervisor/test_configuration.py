"""From settings to parts: how many runners are kept, and what is said of it."""

from __future__ import annotations

import pytest
from tests.supervisor.parsing import parse

from sandboxd.supervisor import configuration
from sandboxd.supervisor.settings import Settings


def kept(settings: Settings) -> tuple[int, int]:
    pool = configuration.pool_config(settings)
    return pool.spares, pool.ahead


@pytest.mark.parametrize(
    ("most", "wanted"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 0)), (4, (2, 1)), (16, (4, 4))]
)
def test_by_default_as_many_runners_are_kept_as_the_pool_has_room_for_and_nothing_is_said(
    most: int, wanted: tuple[int, int]
) -> None:
    settings = parse([f"--max-runners={most}"])
    assert kept(settings) == wanted
    assert configuration.remarks(settings) == []


@pytest.mark.parametrize(
    ("most", "wanted"), [(1, (0, 0)), (2, (1, 1)), (3, (1, 1)), (4, (2, 1)), (40, (20, 10))]
)
def test_who_asks_for_more_than_there_is_room_for_is_told_what_is_kept(
    most: int, wanted: tuple[int, int]
) -> None:
    settings = parse([f"--max-runners={most}", "--spare-runners=30", "--ahead-runners=31"])
    assert kept(settings) == wanted
    assert sum(wanted) <= most
    spares, ahead = configuration.remarks(settings)
    assert f"--spare-runners is 30, and {wanted[0]} of them can be kept" in spares
    assert f"--ahead-runners is 31, and {wanted[1]} of them can be kept" in ahead
    assert f"--max-runners, which is {most}, leaves room for no more" in ahead


@pytest.mark.parametrize("most", [2, 8])
def test_what_there_is_room_for_is_kept_without_a_word(most: int) -> None:
    settings = parse([f"--max-runners={most}", "--spare-runners=1", "--ahead-runners=1"])
    assert kept(settings) == (1, 1)
    assert configuration.remarks(settings) == []
    assert kept(parse(["--spare-runners=0", "--ahead-runners=0"])) == (0, 0)
