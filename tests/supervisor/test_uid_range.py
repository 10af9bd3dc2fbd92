"""Ranges of user ids: no two daemons of a machine have one in common."""

from __future__ import annotations

import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.supervisor import uid_range
from sandboxd.supervisor.uid_range import FIRST, MAX_UID, UidRangeUnavailable, take

# Another process: record locks do not stand between two users in one.
HOLD = """
import sys
from sandboxd.supervisor.uid_range import take
held = take(int(sys.argv[2]) or None, int(sys.argv[3]), sys.argv[1])
print(held.ids.start, flush=True)
sys.stdin.read()
"""


class Other:
    """A process that holds a range until it ends."""

    def __init__(self, lock: Path, first: int, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock), str(first), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.start = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate()


@pytest.mark.parametrize(("first", "free"), [(0, False), (99, False), (100, True), (-100, False)])
def test_a_range_that_overlaps_with_anothers_is_refused(
    tmp_path: Path, first: int, free: bool
) -> None:
    base = 1_800_000_000  # nobody's
    first += base
    other = Other(tmp_path / "lock", base, 100)
    try:
        if free:
            take(first, 101, str(tmp_path / "lock")).close()
        else:
            with pytest.raises(UidRangeUnavailable, match="--uid-base"):
                take(first, 101, str(tmp_path / "lock"))
    finally:
        other.end()
    take(first, 101, str(tmp_path / "lock")).close()


def test_without_a_choice_the_next_free_range_is_taken(tmp_path: Path) -> None:
    others = [Other(tmp_path / "lock", 0, 50) for _ in range(2)]
    mine = take(None, 50, str(tmp_path / "lock"))
    starts = [other.start for other in others] + [mine.ids.start]
    assert starts[0] == FIRST
    assert len(set(starts)) == 3
    assert len(mine.ids) == 50
    for other in others:
        other.end()
    mine.close()


def test_a_range_with_somebodys_id_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "passwd"
    users.write_text("bad line\nx:x:not:\nann:x:1800000050:100::/:/bin/sh\n")
    monkeypatch.setattr(uid_range, "_USERS_FILE", str(users))
    lock = str(tmp_path / "lock")
    with pytest.raises(UidRangeUnavailable, match="1800000050 is the user ann"):
        take(1_800_000_000, 100, lock)
    take(1_800_000_051, 100, lock).close()
    # What no file has, such as the users of a directory server, is found at the ends.
    known = pwd.getpwall()[0]
    if known.pw_uid == 0:
        known = pwd.getpwnam("nobody")
    for first in (known.pw_uid, known.pw_uid - 9):
        with pytest.raises(UidRangeUnavailable, match=f"is the user {known.pw_name}"):
            take(first, 10, lock)


def test_the_last_user_id_is_never_taken(tmp_path: Path) -> None:
    with pytest.raises(UidRangeUnavailable, match="at most"):
        take(MAX_UID, 2, str(tmp_path / "lock"))
    take(MAX_UID - 1, 2, str(tmp_path / "lock")).close()


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(UidRangeUnavailable, match="nowhere"):
        take(None, 1, str(tmp_path / "nowhere" / "lock"))


def test_the_range_of_before_is_taken_again_if_it_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    before = FIRST + 12_345
    mine = take(None, 50, str(lock), before=before)
    assert mine.ids.start == before
    mine.close()
    other = Other(lock, before + 49, 1)
    mine = take(None, 50, str(lock), before=before)
    assert mine.ids.start == FIRST
    mine.close()
    other.end()


@pytest.mark.parametrize("before", [0, 1000, FIRST - 1, 2**31 - 10, 2**32 - 2])
def test_a_range_that_daemons_do_not_take_is_no_range_of_before(
    tmp_path: Path, before: int
) -> None:
    mine = take(None, 50, str(tmp_path / "lock"), before=before)
    assert mine.ids.start == FIRST
    mine.close()
