"""Sealed artifacts: what was written comes back, and nothing else does."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.supervisor.artifact_files import ENGINE, INFO, KEY, artifact, content_of, digest

from sandboxd.supervisor import sealing
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.keys import EngineIdentity, Key
from sandboxd.supervisor.sealing import SealBroken, Sealer, sealed_bytes

MAX_BYTES = 1 << 22
SEALER = Sealer(bytes(range(32)))
# More than one chunk, and not a multiple of it.
LARGE = random.Random(1).randbytes(sealing._CHUNK_BYTES + 4097)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("sealed")
    yield fd
    os.close(fd)


def sealed(content: bytes, key: Key = KEY, sealer: Sealer = SEALER) -> bytes:
    fd = os.memfd_create("sealed")
    try:
        size = sealer.write(key, ENGINE, artifact(content), fd)
        assert size == os.fstat(fd).st_size == sealed_bytes(key, ENGINE, artifact(content))
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def unsealed(
    file: int,
    data: bytes,
    key: Key = KEY,
    engine: EngineIdentity = ENGINE,
    sealer: Sealer = SEALER,
    max_bytes: int = MAX_BYTES,
) -> Artifact:
    os.ftruncate(file, 0)
    os.pwrite(file, data, 0)
    return sealer.read(key, engine, file, max_bytes)


@pytest.mark.parametrize("content", [b"x", b"\x7fELF" * 100, LARGE], ids=["one", "few", "large"])
def test_what_was_sealed_comes_back_with_its_description(file: int, content: bytes) -> None:
    opened = unsealed(file, sealed(content))
    assert content_of(opened) == content
    assert opened.info == INFO
    assert opened.from_disk


def test_what_comes_back_can_never_be_changed(file: int) -> None:
    opened = unsealed(file, sealed(b"code"))
    with pytest.raises(PermissionError):
        os.pwrite(opened.fd, b"evil", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(opened.fd, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(opened.fd, fcntl.F_ADD_SEALS, 0)


def test_every_single_bit_flip_is_refused(file: int) -> None:
    original = sealed(b"native code")
    opened = 0
    for bit in range(len(original) * 8):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            unsealed(file, bytes(flipped))
            opened += 1
        except SealBroken:
            pass
    assert opened == 0


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_a_large_one_is_refused(data: st.DataObject) -> None:
    flipped = bytearray(sealed(LARGE))
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    fd = os.memfd_create("sealed")
    try:
        with pytest.raises(SealBroken):
            unsealed(fd, bytes(flipped))
    finally:
        os.close(fd)


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, 500), cut=st.integers(0, 500), insert=st.binary(max_size=64), tail=st.binary()
)
def test_any_other_bytes_are_refused(at: int, cut: int, insert: bytes, tail: bytes) -> None:
    original = sealed(b"native code")
    changed = original[:at] + insert + original[at + cut :] + tail
    fd = os.memfd_create("sealed")
    try:
        if changed == original:
            unsealed(fd, changed)
        else:
            with pytest.raises(SealBroken):
                unsealed(fd, changed)
    finally:
        os.close(fd)


def test_every_truncation_is_refused(file: int) -> None:
    original = sealed(b"native code")
    for length in range(len(original)):
        with pytest.raises(SealBroken):
            unsealed(file, original[:length])


@pytest.mark.parametrize(
    "key",
    [
        KEY._replace(tenant="another"),
        KEY._replace(digest=digest(1)),
        KEY._replace(fuel=True),
    ],
    ids=["tenant", "module", "metering"],
)
def test_the_artifact_of_another_is_refused(file: int, key: Key) -> None:
    with pytest.raises(SealBroken):
        unsealed(file, sealed(b"code", key=key))


@pytest.mark.parametrize("field", EngineIdentity._fields)
def test_the_artifact_of_another_engine_is_refused(file: int, field: str) -> None:
    with pytest.raises(SealBroken, match="engine"):
        unsealed(file, sealed(b"code"), engine=ENGINE._replace(**{field: "other"}))


def test_a_seal_under_another_secret_is_refused(file: int) -> None:
    with pytest.raises(SealBroken, match="seal"):
        unsealed(file, sealed(b"code", sealer=Sealer(bytes(32))))


def test_the_key_of_one_tenant_does_not_seal_for_another(file: int) -> None:
    """A header that was rewritten to name the victim does not help: the key is the tenant's own."""
    ours, theirs = KEY._replace(tenant="evil!!"), KEY._replace(tenant="victim")
    forged = sealed(b"code", key=ours).replace(b"evil!!", b"victim")
    with pytest.raises(SealBroken, match="seal"):
        unsealed(file, forged, key=theirs)


def test_an_artifact_above_the_limit_is_refused_before_it_is_copied(file: int) -> None:
    with pytest.raises(SealBroken, match="bounds"):
        unsealed(file, sealed(b"x" * 100), max_bytes=99)


def test_a_file_changed_while_it_is_read_changes_nothing(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is verified is the copy that runners get, not the file."""
    copy = sealing._sealed_copy

    def copy_then_change(fd: int, at: int, size: int) -> int:
        copied = copy(fd, at, size)
        os.pwrite(fd, b"evil", at)
        return copied

    monkeypatch.setattr(sealing, "_sealed_copy", copy_then_change)
    assert content_of(unsealed(file, sealed(b"good code"))) == b"good code"


def test_a_file_changed_before_it_is_copied_is_refused(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = sealing._sealed_copy

    def change_then_copy(fd: int, at: int, size: int) -> int:
        os.pwrite(fd, b"evil", at)
        return copy(fd, at, size)

    monkeypatch.setattr(sealing, "_sealed_copy", change_then_copy)
    with pytest.raises(SealBroken):
        unsealed(file, sealed(b"good code"))


def test_a_refused_file_leaves_no_descriptor(file: int) -> None:
    original = bytearray(sealed(b"native code"))
    original[-1] ^= 1
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(SealBroken):
            unsealed(file, bytes(original))
    assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=2, max_size=2, unique=True
    )
)
def test_no_two_keys_have_the_same_header(pairs: list[tuple[str, str]]) -> None:
    one, other = (sealing._header(Key(*pair, fuel=False), ENGINE) for pair in pairs)
    assert one != other


def test_a_secret_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32"):
        Sealer(b"short")


def test_sealing_needs_no_second_copy_on_the_way_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    with open(path, "wb", buffering=0) as file:
        SEALER.write(KEY, ENGINE, artifact(LARGE), file.fileno())
    with open(path, "rb", buffering=0) as file:
        opened = SEALER.read(KEY, ENGINE, file.fileno(), MAX_BYTES)
    assert content_of(opened) == LARGE
