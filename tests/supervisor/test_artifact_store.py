"""Artifacts on disk: what is trusted, what is removed, what fits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.supervisor.artifact_files import ENGINE, KEY, artifact, content_of, digest

from sandboxd.supervisor import seal_secret
from sandboxd.supervisor.artifact_store import ArtifactStore
from sandboxd.supervisor.keys import Key

MIB = 1 << 20
ANYBODY = 12345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


class State:
    """A state directory, stores opened on it, and the modules that count as stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.stored: set[tuple[str, str]] = set()
        self._open: list[ArtifactStore] = []

    def store(self, budget_bytes: int = MIB) -> ArtifactStore:
        """Open the directory, as a daemon does when it starts."""
        store = ArtifactStore(budget_bytes, MIB, lambda *module: module in self.stored)
        store.open(self.fd, {os.geteuid()})
        self._open.append(store)
        return store

    def save(self, store: ArtifactStore, key: Key = KEY, content: bytes = b"code") -> Path:
        self.stored.add((key.tenant, key.digest))
        store.save(key, artifact(content))
        return self.file(key)

    def file(self, key: Key = KEY) -> Path:
        name = f"{key.digest.removeprefix('sha256:')}.{'fuel' if key.fuel else 'plain'}"
        return self.path / "artifacts" / key.tenant / name

    def close(self) -> None:
        for store in self._open:
            store.close()
        os.close(self.fd)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path)
    yield opened
    opened.close()


def test_what_was_saved_is_there_after_a_restart(state: State) -> None:
    state.save(state.store(), content=b"native code")
    again = state.store()
    loaded = again.load(KEY, ENGINE)
    assert loaded is not None
    assert content_of(loaded) == b"native code"
    assert (len(again), again.loaded_total, again.rejected_total) == (1, 1, 0)


def test_files_are_for_nobody_else(state: State) -> None:
    file = state.save(state.store())
    for path in (file, state.path / "secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (file.parent, file.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_metered_and_plain_are_kept_side_by_side_and_removed_together(state: State) -> None:
    store = state.store()
    state.save(store, KEY, b"plain")
    state.save(store, KEY._replace(fuel=True), b"fuel")
    loaded = store.load(KEY._replace(fuel=True), ENGINE)
    assert loaded is not None
    assert content_of(loaded) == b"fuel"
    store.remove(KEY.tenant, KEY.digest)
    assert (len(store), store.stored_bytes) == (0, 0)
    assert not list(state.file().parent.iterdir())


def test_a_module_that_is_not_stored_leaves_no_trace(state: State) -> None:
    store = state.store()
    assert not store.wants(KEY)
    store.save(KEY, artifact(b"inline"))
    assert not list((state.path / "artifacts").iterdir())


def test_a_module_that_is_deleted_while_it_is_saved_leaves_no_file(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = state.store()
    assert store._sealer is not None
    write = store._sealer.write

    def delete_meanwhile(*arguments: object) -> int:
        state.stored.clear()
        store.remove(KEY.tenant, KEY.digest)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store._sealer, "write", delete_meanwhile)
    state.save(store)
    assert not list(state.file().parent.iterdir())
    assert len(store) == 0


Damage = Callable[[Path], None]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


BAD: dict[str, Damage] = {
    "a flipped bit": flip,
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
    "writable by its group": lambda file: file.chmod(0o620),
    "writable by everybody": lambda file: file.chmod(0o602),
    "a symbolic link": link,
    "a FIFO": fifo,
    "a directory": directory,
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "between two runs"])
def test_a_bad_file_is_removed_counted_and_never_loaded(
    state: State, damage: Damage, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = state.store()
    file = state.save(store)
    damage(file)
    if restart:
        store = state.store()
    assert store.load(KEY, ENGINE) is None or not store.has(KEY)
    assert store.rejected_total == 1
    assert (len(store), store.stored_bytes) == (0, 0)
    assert not os.path.lexists(file)
    assert "is not used" in caplog.text
    state.save(store)
    assert store.load(KEY, ENGINE) is not None


@needs_root
@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "between two runs"])
def test_a_file_of_another_user_is_never_loaded(state: State, restart: bool) -> None:
    store = state.store()
    file = state.save(store)
    os.chown(file, ANYBODY, ANYBODY)
    if restart:
        store = state.store()
    assert not store.has(KEY) or store.load(KEY, ENGINE) is None
    assert store.rejected_total == 1
    assert not file.exists()


def test_an_artifact_of_another_engine_is_removed(state: State) -> None:
    store = state.store()
    file = state.save(store)
    assert store.load(KEY, ENGINE._replace(library_sha256="other")) is None
    assert store.rejected_total == 1
    assert not file.exists()


@pytest.mark.parametrize(
    "other",
    [KEY._replace(tenant="another"), KEY._replace(digest=digest(1)), KEY._replace(fuel=True)],
    ids=["tenants", "modules", "variants"],
)
def test_swapped_files_are_both_refused(state: State, other: Key) -> None:
    store = state.store()
    one, two = state.save(store, KEY, b"one"), state.save(store, other, b"two")
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)
    assert store.load(KEY, ENGINE) is None
    assert store.load(other, ENGINE) is None
    assert store.rejected_total == 2


@pytest.mark.parametrize("level", ["artifacts", "artifacts/tenant"])
def test_a_directory_that_is_a_symbolic_link_is_not_followed(
    state: State, tmp_path_factory: pytest.TempPathFactory, level: str
) -> None:
    state.save(state.store())
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "real"
    (state.path / level).rename(elsewhere)
    (state.path / level).symlink_to(elsewhere)
    store = state.store()
    assert (len(store), store.rejected_total) == (0, 1)
    state.save(store)
    assert not (state.path / level).is_symlink()
    assert any(elsewhere.rglob("*.plain")), "what the link led to was touched"


def test_a_directory_that_others_can_write_is_not_used(state: State) -> None:
    state.save(state.store())
    state.file().parent.chmod(0o777)
    store = state.store()
    assert (len(store), store.rejected_total) == (0, 1)
    assert not state.file().parent.exists()


def test_what_a_killed_daemon_left_half_written_is_swept_away(state: State) -> None:
    file = state.save(state.store())
    half = file.with_name("new-0123456789abcdef")
    half.write_bytes(file.read_bytes()[:100])
    store = state.store()
    assert not half.exists()
    assert (len(store), store.rejected_total) == (1, 0)


def test_artifacts_of_modules_that_are_gone_are_swept_away(state: State) -> None:
    file = state.save(state.store())
    state.stored.clear()
    assert len(state.store()) == 0
    assert not file.exists()


def test_the_longest_unused_makes_room(state: State) -> None:
    store = state.store(budget_bytes=4000)
    keys = [KEY._replace(digest=digest(number)) for number in range(4)]
    for key in keys[:3]:
        state.save(store, key, b"x" * 900)
    assert store.load(keys[0], ENGINE) is not None
    state.save(store, keys[3], b"x" * 900)
    assert [store.has(key) for key in keys] == [True, False, True, True]
    assert not state.file(keys[1]).exists()
    assert store.stored_bytes <= 4000
    total = sum(file.stat().st_size for file in state.file().parent.iterdir())
    assert total == store.stored_bytes


def test_the_order_of_use_survives_a_restart(state: State) -> None:
    store = state.store()
    keys = [KEY._replace(digest=digest(number)) for number in range(3)]
    for age, key in enumerate(keys):
        os.utime(state.save(store, key, b"x" * 900), (1000 + age, 1000 + age))
    assert store.load(keys[0], ENGINE) is not None
    size = store.stored_bytes // 3
    store = state.store(budget_bytes=2 * size)
    assert [store.has(key) for key in keys] == [True, False, True]


def test_one_that_exceeds_the_budget_alone_is_not_kept(state: State) -> None:
    store = state.store(budget_bytes=500)
    state.save(store, content=b"x" * 500)
    assert len(store) == 0


def test_a_full_disk_is_no_reason_to_fail(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = state.store()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._sealer, "write", full)
    file = state.save(store)
    assert "cannot be kept" in caplog.text
    assert not list(file.parent.iterdir())


# --- the secret ---------------------------------------------------------------------------------


def test_the_secret_is_made_once(state: State) -> None:
    owners = {os.geteuid()}
    first = seal_secret.load_or_create(state.fd, owners)
    assert len(first) == 32
    assert seal_secret.load_or_create(state.fd, owners) == first
    assert [path.name for path in state.path.iterdir()] == ["secret"]


BAD_SECRETS: dict[str, Damage] = {
    "readable by everybody": lambda file: file.chmod(0o644),
    "readable by its group": lambda file: file.chmod(0o640),
    "short": lambda file: os.truncate(file, 31),
    "empty": lambda file: os.truncate(file, 0),
    "long": lambda file: os.truncate(file, 33),
    "a symbolic link": link,
    "a FIFO": fifo,
    "a directory": directory,
}


@pytest.mark.parametrize("damage", BAD_SECRETS.values(), ids=BAD_SECRETS)
def test_a_secret_that_cannot_be_trusted_is_replaced(
    state: State, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    state.save(state.store())
    secret = state.path / "secret"
    before = secret.read_bytes()
    damage(secret)
    store = state.store()
    assert "is replaced" in caplog.text
    assert stat.S_IMODE(secret.lstat().st_mode) == 0o600
    assert stat.S_ISREG(secret.lstat().st_mode)
    assert secret.read_bytes() != before
    # What was sealed with the old one is worth nothing.
    assert store.load(KEY, ENGINE) is None
    assert store.rejected_total == 1


@needs_root
def test_the_secret_of_another_user_is_replaced(state: State) -> None:
    before = seal_secret.load_or_create(state.fd, {0})
    os.chown(state.path / "secret", ANYBODY, ANYBODY)
    assert seal_secret.load_or_create(state.fd, {0, ANYBODY}) == before
    assert seal_secret.load_or_create(state.fd, {0}) != before
    assert (state.path / "secret").stat().st_uid == 0
