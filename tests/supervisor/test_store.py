"""The store against a dictionary: what was acknowledged is there, also after a crash."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandboxd.supervisor import faults
from sandboxd.supervisor.keys import DIGEST_PREFIX, digest_of
from sandboxd.supervisor.state_directory import StateDirectoryBusy, StateDirectoryForeign
from sandboxd.supervisor.store import META_NAME, WASM_NAME, Store
from sandboxd.v1 import call_pb2, module_pb2

TENANT = "default"
MAX_BYTES = 64
EXPORTS = [call_pb2.Extern(name="f", kind=call_pb2.EXTERN_KIND_FUNCTION)]


def new_store(directory: Path, max_modules: int = 100, budget_bytes: int = 1 << 20) -> Store:
    return Store(directory, MAX_BYTES, max_modules, budget_bytes)


def open_store(store: Store) -> None:
    store.claim()
    store.load()


def push(store: Store, content: bytes, tenant: str = TENANT) -> bool:
    """What the service does with a push, without the compiler."""
    incoming = store.begin()
    try:
        incoming.write(content[:3])
        incoming.write(content[3:])
        meta = module_pb2.Module(
            digest=incoming.digest, size_bytes=incoming.size_bytes, exports=EXPORTS
        )
        created = store.commit(tenant, incoming, meta)
        store.remember(tenant, meta)
        return created
    finally:
        incoming.close()


def read(store: Store, digest: str, tenant: str = TENANT) -> bytes:
    with open(store.open_wasm(tenant, digest), "rb") as file:
        return file.read()


def everything(store: Store, prefix: str = DIGEST_PREFIX, size: int = 3) -> list[str]:
    found: list[str] = []
    while page := store.page(TENANT, prefix, found[-1] if found else "", size):
        found += [module.digest for module in page]
    return found


class StoreMachine(RuleBasedStateMachine):
    """Pushes, deletes, crashes and damage, against what was acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-"))
        self.model: dict[str, bytes] = {}
        self.damaged: dict[str, bytes] = {}

    @initialize()
    def start(self) -> None:
        self.store = new_store(self.directory / "state")
        open_store(self.store)

    @rule(content=st.binary(max_size=8))
    def push_it(self, content: bytes) -> None:
        digest = digest_of(content)
        assert push(self.store, content) is (digest not in self.model)
        self.model[digest] = content
        self.damaged.pop(digest, None)

    @rule(content=st.binary(max_size=8))
    def give_a_push_up(self, content: bytes) -> None:
        incoming = self.store.begin()
        incoming.write(content)
        incoming.close()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_one(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.model)))
        assert self.store.forget(TENANT, digest)
        self.store.remove(TENANT, digest)
        del self.model[digest]

    @rule(content=st.binary(max_size=8))
    def delete_what_is_not_there(self, content: bytes) -> None:
        if digest_of(content) not in self.model:
            assert not self.store.forget(TENANT, digest_of(content))

    @rule(cleanly=st.booleans(), content=st.binary(max_size=8))
    def end_and_open_again(self, cleanly: bool, content: bytes) -> None:
        if not cleanly:
            # What a crash leaves: a push half written, and one that was written but not renamed.
            half = self.directory / "state" / "incoming" / "half"
            half.mkdir()
            (half / WASM_NAME).write_bytes(content)
            (half / META_NAME).write_bytes(b"half")
        self.store.close()  # the kernel drops a dead process's lock, too
        self.start()
        assert list((self.directory / "state" / "incoming").iterdir()) == []

    @precondition(lambda self: self.model)
    @rule(data=st.data(), how=st.sampled_from(["meta", "cut", "lost", "other"]))
    def damage_one_and_open_again(self, data: st.DataObject, how: str) -> None:
        digest = data.draw(st.sampled_from(sorted(self.model)))
        entry = self.directory / "state" / "modules" / TENANT / digest.removeprefix(DIGEST_PREFIX)
        match how:
            case "meta":
                (entry / META_NAME).write_bytes(b"\xff")
            case "cut":
                (entry / WASM_NAME).write_bytes(self.model[digest] + b"more")
            case "lost":
                (entry / WASM_NAME).unlink()
            case "other":
                other = module_pb2.Module(digest=digest_of(b"other"), size_bytes=5)
                (entry / META_NAME).write_bytes(other.SerializeToString())
        self.damaged[digest] = self.model.pop(digest)
        self.store.close()
        self.start()

    @invariant()
    def the_store_holds_what_was_acknowledged_and_nothing_else(self) -> None:
        assert self.store.count() == len(self.model)
        assert everything(self.store) == sorted(self.model)
        for digest, content in self.model.items():
            meta = self.store.get(TENANT, digest)
            assert meta is not None
            assert meta.size_bytes == len(content)
            described = self.store.describe(TENANT, digest)
            assert described is not None
            assert (described.digest, list(described.exports)) == (digest, EXPORTS)
            assert read(self.store, digest) == content
        for digest in self.damaged:
            assert self.store.get(TENANT, digest) is None

    @invariant()
    def nothing_is_left_of_what_was_not_acknowledged(self) -> None:
        assert list((self.directory / "state" / "incoming").iterdir()) == []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestStoreMachine = StoreMachine.TestCase


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = new_store(tmp_path / "state")
    open_store(opened)
    return opened


def test_pages_follow_each_other_without_gap_or_overlap(store: Store) -> None:
    for number in range(20):
        push(store, bytes([number]))
    digests = everything(store, size=1000)
    assert digests == sorted(digests)
    assert len(digests) == 20
    for size in (1, 3, 7, 20):
        assert everything(store, size=size) == digests


def test_a_prefix_selects_exactly_the_digests_that_begin_so(store: Store) -> None:
    for number in range(64):
        push(store, bytes([number]))
    digests = everything(store)
    for prefix in {digest[: len(DIGEST_PREFIX) + 1] for digest in digests}:
        assert everything(store, prefix) == [one for one in digests if one.startswith(prefix)]
    assert everything(store, digests[5]) == [digests[5]]
    assert everything(store, DIGEST_PREFIX + "g") == []


def test_a_page_may_begin_after_a_digest_that_is_gone(store: Store) -> None:
    for number in range(5):
        push(store, bytes([number]))
    digests = everything(store)
    store.forget(TENANT, digests[2])
    assert [one.digest for one in store.page(TENANT, DIGEST_PREFIX, digests[2], 9)] == digests[3:]


def test_tenants_do_not_see_each_other(store: Store) -> None:
    push(store, b"secret", tenant="a")
    assert store.get("b", digest_of(b"secret")) is None
    assert store.page("b", DIGEST_PREFIX, "", 9) == []
    with pytest.raises(FileNotFoundError):
        store.open_wasm("b", digest_of(b"secret"))
    assert push(store, b"secret", tenant="b")
    assert store.count() == 2


def test_the_second_push_of_a_module_leaves_the_first_as_it_was(store: Store) -> None:
    one, two = store.begin(), store.begin()
    metas = []
    for incoming, second in ((one, 1), (two, 2)):
        incoming.write(b"same")
        meta = module_pb2.Module(digest=incoming.digest, size_bytes=4)
        meta.create_time.seconds = second
        metas.append(meta)
    created = []
    for incoming, meta in zip((one, two), metas, strict=True):
        created.append(store.commit(TENANT, incoming, meta))
        store.remember(TENANT, meta)
        incoming.close()
    assert created == [True, False]
    kept = store.get(TENANT, digest_of(b"same"))
    assert kept is not None
    assert kept.created_at_ns == 10**9
    assert kept.brief() == metas[0]


def test_a_module_of_too_many_bytes_is_refused_by_the_chunk_that_exceeds(store: Store) -> None:
    incoming = store.begin()
    incoming.write(bytes(MAX_BYTES))
    with pytest.raises(faults.ModuleTooLarge) as caught:
        incoming.write(b"x")
    assert caught.value.metadata == {"limit_bytes": str(MAX_BYTES)}
    incoming.close()


def test_the_digest_is_that_of_all_chunks(store: Store) -> None:
    incoming = store.begin()
    for chunk in (b"\0a", b"", b"sm" + bytes(7)):
        incoming.write(chunk)
    assert incoming.digest == "sha256:" + hashlib.sha256(b"\0asm" + bytes(7)).hexdigest()
    assert incoming.head == b"\0asm" + bytes(4)
    incoming.close()


def test_what_is_handed_to_a_compiler_cannot_be_written_to(store: Store) -> None:
    incoming = store.begin()
    incoming.write(b"pushed")
    fd = incoming.reopen()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"other", 0)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 6)
    assert os.pread(fd, 99, 0) == b"pushed"
    os.close(fd)
    incoming.close()


def test_a_push_whose_file_grew_is_not_stored(store: Store) -> None:
    incoming = store.begin()
    incoming.write(b"pushed")
    os.pwrite(incoming.fd, b"more", 6)
    meta = module_pb2.Module(digest=incoming.digest, size_bytes=incoming.size_bytes)
    with pytest.raises(faults.ModuleDamaged):
        store.commit(TENANT, incoming, meta)
    incoming.close()
    assert store.describe(TENANT, meta.digest) is None


def test_the_index_holds_no_descriptions(store: Store, tmp_path: Path) -> None:
    push(store, b"x")
    kept = store.get(TENANT, digest_of(b"x"))
    assert kept is not None
    assert [type(value) for value in kept] == [str, int, int, int]
    store.close()
    again = new_store(tmp_path / "state")
    open_store(again)
    assert again.get(TENANT, digest_of(b"x")) == kept
    again.close()


@pytest.mark.parametrize(
    "damage", [b"\xff", b"", module_pb2.Module(digest="x").SerializeToString()]
)
def test_a_description_that_was_damaged_is_told(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    push(store, b"x")
    (meta,) = (tmp_path / "state").rglob(META_NAME)
    meta.write_bytes(damage)
    with pytest.raises(faults.ModuleDamaged):
        store.describe(TENANT, digest_of(b"x"))


def test_no_more_modules_are_taken_in_than_a_setting_allows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "state", max_modules=2)
    open_store(store)
    for content in (b"a", b"b"):
        store.check_room(1)
        push(store, content)
    with pytest.raises(faults.StoreFull, match="--max-modules allows 2") as caught:
        store.check_room(1)
    assert caught.value.metadata == {"setting": "--max-modules", "maximum": "2"}
    store.forget(TENANT, digest_of(b"a"))
    store.check_room(1)
    store.close()


def test_descriptions_count_in_the_budget_also_after_a_restart(tmp_path: Path) -> None:
    push_bytes = 1000
    store = new_store(tmp_path / "state", budget_bytes=push_bytes)
    open_store(store)
    push(store, b"a")
    taken = sum(path.stat().st_size for path in (tmp_path / "state" / "modules").rglob("module.*"))
    for _ in range(2):
        store.check_room(push_bytes - taken)
        with pytest.raises(faults.StoreFull) as caught:
            store.check_room(push_bytes - taken + 1)
        assert caught.value.metadata["setting"] == "--module-disk"
        store.close()
        store = new_store(tmp_path / "state", budget_bytes=push_bytes)
        open_store(store)
    assert store.forget(TENANT, digest_of(b"a"))
    store.check_room(push_bytes)
    store.close()


def test_a_directory_serves_one_store_at_a_time(store: Store, tmp_path: Path) -> None:
    second = new_store(tmp_path / "state")
    with pytest.raises(StateDirectoryBusy, match="--state-dir"):
        open_store(second)
    store.close()
    open_store(second)
    second.close()


def test_what_is_stored_is_reachable_by_its_owner_alone(store: Store, tmp_path: Path) -> None:
    push(store, b"x")
    directories = [path for path in (tmp_path / "state").rglob("*") if path.is_dir()]
    assert len(directories) == 4
    for path in (tmp_path / "state", *directories):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("names", [["precious"], ["incoming"], ["lock", "etc"]])
def test_a_directory_of_somebody_else_is_refused_and_not_touched(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).mkdir() if name != "lock" else (tmp_path / name).touch()
        if name != "lock":
            (tmp_path / name / "file").write_text("precious")

    def state() -> dict[Path, tuple[float, int, int]]:
        found = {path: path.stat() for path in tmp_path.rglob("*")}
        return {path: (one.st_mtime, one.st_uid, one.st_mode) for path, one in found.items()}

    before = state()
    with pytest.raises(StateDirectoryForeign, match="--state-dir"):
        open_store(new_store(tmp_path))
    assert state() == before
