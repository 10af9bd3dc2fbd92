"""The state directory at a start as root: a former daemon's user owned it, and may be hostile."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest
from tests.conftest import DaemonProcess
from tests.daemon.calls import calling, i32, typed

from sandboxd.supervisor.privileges import Account
from sandboxd.supervisor.state_directory import hand_over
from sandboxd.supervisor.uid_range import FIRST

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")

StartDaemon = Callable[..., AbstractContextManager[DaemonProcess]]

# Ranges that daemons take by themselves, but not soon.
ONE, OTHER = 2_000_000_000, 2_010_000_000
SOMEBODY = 4242
RENAME_EXCHANGE = 2
SWAPPED = 1500
ROUNDS = 10
STARTS = 4


def options(base: int | None = None) -> tuple[str, ...]:
    few = ("--spare-runners=1", "--max-runners=4")
    return few if base is None else (*few, f"--uid-base={base}")


def refuse(daemon: DaemonProcess, *arguments: str) -> str:
    """Try to start the daemon, which must refuse; return what it said."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "sandboxd.supervisor.main"),
            *("--listen", f"unix://{daemon.socket}", "--state-dir", str(daemon.state_dir)),
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    return ended.stderr


def call(daemon: DaemonProcess, digest: str) -> int:
    """Call the module's `add`; return the nanoseconds that were spent on compiling."""
    with calling(daemon) as caller:
        response = caller.execute(typed(digest, "add", i32(40), i32(2)))
    assert response.completed.results[0].i32 == 42
    return response.receipt.compile_time_ns


def owners(directory: Path) -> dict[str, int]:
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    return {name: path.lstat().st_uid for name, path in found.items()}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's, in a directory of root's."""
    file = tmp_path / "root" / "victim"
    file.parent.mkdir()
    file.write_text("root's")
    file.chmod(0o600)
    return file


def test_a_lock_that_is_a_link_is_not_followed(start_daemon: StartDaemon, tmp_path: Path) -> None:
    with start_daemon(*options(ONE)) as daemon:
        daemon.stop()
        lock = daemon.state_dir / "lock"
        lock.unlink()
        lock.symlink_to(tmp_path / "made-by-root")
        os.lchown(lock, ONE, ONE)
        assert "state directory: lock: " in refuse(daemon, *options(ONE))
        assert not (tmp_path / "made-by-root").exists()
        lock.unlink()


def test_what_a_former_daemon_planted_stays_whose_it_is(
    start_daemon: StartDaemon, sink_wasm: bytes, victim: Path
) -> None:
    with start_daemon(*options(ONE)) as daemon:
        digest = daemon.push(sink_wasm)
        daemon.stop()
        before = owners(daemon.state_dir)
        assert set(before.values()) == {ONE}
        tenant = daemon.state_dir / "modules" / "default"
        os.link(victim, tenant / "second-name")
        (tenant / "to-file").symlink_to(victim)
        (tenant / "to-directory").symlink_to(victim.parent)
        deep = tenant / "a" / "b" / "c" / "d"
        deep.mkdir(parents=True)
        (tenant / "somebodys").touch()
        os.chown(tenant / "somebodys", SOMEBODY, SOMEBODY)
        daemon.arguments = options(OTHER)
        daemon.restart()
        assert "names in" in daemon.log
        assert "are not handed over" in daemon.log
        assert (victim.stat().st_uid, victim.parent.stat().st_uid) == (0, 0)
        assert (tenant / "somebodys").stat().st_uid == SOMEBODY
        after = owners(daemon.state_dir)
        assert {after[name] for name in before if name in after} == {OTHER}
        assert call(daemon, digest) == 0


def swap(begun: int, one: Path, other: Path, user: int, count: int) -> NoReturn:
    """As this user, swap directories for links of the same names, until we are killed."""
    try:
        # Before: the way to them is barred for others.
        here, there = (os.open(path, os.O_RDONLY) for path in (one, other))
        os.setgroups(())
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        exchange = ctypes.CDLL(None).renameat2
        names = [f"d{number}".encode() for number in range(count)]
        assert not any(exchange(here, name, there, name, RENAME_EXCHANGE) for name in names)
        os.close(begun)
        while True:
            for name in names:
                exchange(here, name, there, name, RENAME_EXCHANGE)
    finally:
        os._exit(1)


@contextlib.contextmanager
def swapping(*arguments: object) -> Iterator[None]:
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        swap(begins, *arguments)  # type: ignore[arg-type]
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def plant(state: Path, one: Path, other: Path, target: Path) -> None:
    """As user ONE, directories to swap, and links to swap them for."""
    for path in (one, other):
        path.mkdir()
    for number in range(SWAPPED):
        (one / f"d{number}").mkdir()
        (other / f"d{number}").symlink_to(target)
    own(state, one, other)


def own(state: Path, one: Path, other: Path) -> None:
    for path in (state, one, other, *one.iterdir(), *other.iterdir()):
        os.lchown(path, ONE, ONE)


def test_a_start_goes_into_no_directory_that_is_swapped_for_a_link(
    start_daemon: StartDaemon, victim: Path
) -> None:
    with start_daemon(*options(ONE)) as daemon:
        daemon.stop()
        one, other = (daemon.state_dir / "modules" / name for name in ("one", "other"))
        plant(daemon.state_dir, one, other, victim.parent)
        # Where a start can be led astray, about every second one is.
        for _ in range(STARTS):
            with swapping(one, other, ONE, SWAPPED):
                daemon.restart()
            daemon.stop()
            assert (victim.stat().st_uid, victim.parent.stat().st_uid) == (0, 0)


def test_handing_over_goes_into_no_directory_that_is_swapped_for_a_link(
    tmp_path: Path, victim: Path
) -> None:
    # Not through a daemon: one start rarely wins the race.
    state = tmp_path / "state"
    state.mkdir()
    plant(state, state / "one", state / "other", victim.parent)
    state_fd = os.open(state, os.O_RDONLY)
    for _ in range(ROUNDS):
        own(state, state / "one", state / "other")
        with swapping(state / "one", state / "other", ONE, SWAPPED):
            hand_over(state_fd, state, Account(OTHER, OTHER))
        assert (victim.stat().st_uid, victim.parent.stat().st_uid) == (0, 0)
        assert state.stat().st_uid == OTHER
    os.close(state_fd)


def test_root_makes_nothing_but_the_lock(start_daemon: StartDaemon) -> None:
    with start_daemon(*options(ONE)) as daemon:
        assert {*owners(daemon.state_dir).values()} == {ONE}
        assert daemon.state_dir.stat().st_uid == ONE
        assert daemon.state_dir.stat().st_mode & 0o777 == 0o700


def test_the_directory_of_another_user_is_refused(start_daemon: StartDaemon) -> None:
    with start_daemon(*options(ONE)) as daemon:
        daemon.stop()
        os.chown(daemon.state_dir, SOMEBODY, SOMEBODY)
        said = refuse(daemon, *options(ONE))
        assert f"belongs to user {SOMEBODY}, and this daemon becomes user {ONE}" in said
        assert f"chown -R {ONE} {daemon.state_dir}" in said
        assert set(owners(daemon.state_dir).values()) == {ONE}
        assert not daemon.socket.exists()
        daemon.arguments = (*options(ONE), f"--user={ONE}")
        os.chown(daemon.state_dir, ONE, ONE)
        daemon.restart()


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_way_that_another_user_can_change_is_refused(
    start_daemon: StartDaemon, tmp_path: Path, kind: str
) -> None:
    with start_daemon(*options(ONE)) as daemon:
        daemon.stop()
        between = daemon.directory / "between"
        if kind == "directory":
            between.mkdir()
        else:
            between.symlink_to(tmp_path)
        os.lchown(between, SOMEBODY, SOMEBODY)
        said = refuse(daemon, *options(ONE), f"--state-dir={between}/state")
        assert str(SOMEBODY) in said
        assert not (between / "state").exists()


def test_a_link_of_roots_is_followed(start_daemon: StartDaemon, tmp_path: Path) -> None:
    with start_daemon(*options(ONE)) as daemon:
        daemon.stop()
        (daemon.directory / "link").symlink_to(tmp_path)
        daemon.arguments = (*options(ONE), f"--state-dir={daemon.directory}/link/new/state")
        daemon.restart()
        assert (tmp_path / "new" / "state").stat().st_uid == ONE


def test_what_was_compiled_is_believed_after_the_range_of_user_ids_has_changed(
    start_daemon: StartDaemon, sink_wasm: bytes
) -> None:
    with start_daemon(*options(ONE)) as daemon:
        digest = daemon.push(sink_wasm)
        secret = (daemon.state_dir / "secret").read_bytes()
        daemon.stop()
        daemon.arguments = options(OTHER)
        daemon.restart()
        assert call(daemon, digest) == 0
        counts = daemon.status().artifacts
        assert (counts.loaded_total, counts.rejected_total) == (1, 0)
        assert (daemon.state_dir / "secret").read_bytes() == secret
        assert set(owners(daemon.state_dir).values()) == {OTHER}


def test_a_daemon_takes_the_user_ids_that_its_state_has_already(start_daemon: StartDaemon) -> None:
    with start_daemon(*options(ONE)) as daemon:
        assert daemon.status().host.supervisor_uid == ONE
        daemon.stop()
        daemon.arguments = options()
        daemon.restart()
        assert daemon.status().host.supervisor_uid == ONE
        with start_daemon(*options()) as neighbour:
            assert FIRST <= neighbour.status().host.supervisor_uid < ONE
