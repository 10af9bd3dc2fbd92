"""The cache of compiled modules: bounded, and never closes what somebody still holds."""

from __future__ import annotations

import gc
import os

import pytest
from tests.supervisor.fakes import ENGINE, key

from sandboxd.supervisor.artifacts import Artifact, ArtifactCache, ModuleInfo
from sandboxd.supervisor.memory_file import seal
from sandboxd.v1 import call_pb2


def artifact(size_bytes: int) -> Artifact:
    return Artifact(os.memfd_create("artifact"), size_bytes, ModuleInfo.of((), ()), ENGINE)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_least_recently_used_one_is_dropped_when_the_budget_is_spent() -> None:
    cache = ArtifactCache(100, 10)
    for name in "abc":
        cache.put(key(name), artifact(40))
        cache.get(key("a"))
    assert cache.size_bytes == 80
    assert cache.get(key("b")) is None
    assert cache.get(key("a")) is not None
    assert cache.get(key("c")) is not None


def test_there_are_never_more_than_so_many() -> None:
    cache = ArtifactCache(1000, 2)
    for name in "abc":
        cache.put(key(name), artifact(1))
    assert [cache.get(key(name)) is not None for name in "abc"] == [False, True, True]


def test_the_newest_one_is_kept_even_if_it_exceeds_the_budget() -> None:
    cache = ArtifactCache(100, 10)
    cache.put(key("a"), artifact(50))
    cache.put(key("b"), artifact(500))
    assert cache.get(key("a")) is None
    assert cache.get(key("b")) is not None
    assert cache.size_bytes == 500
    cache.put(key("c"), artifact(1))
    assert cache.size_bytes == 1


def test_putting_one_again_replaces_it() -> None:
    cache = ArtifactCache(100, 10)
    first, second = artifact(30), artifact(40)
    cache.put(key("a"), first)
    cache.put(key("a"), second)
    assert cache.get(key("a")) is second
    assert cache.size_bytes == 40


def test_a_descriptor_lives_as_long_as_somebody_holds_the_artifact() -> None:
    cache = ArtifactCache(100, 10)
    held = artifact(1)
    fd = held.fd
    cache.put(key("a"), held)
    cache.clear()
    assert cache.size_bytes == 0
    assert is_open(fd)
    del held
    gc.collect()
    assert not is_open(fd)


def test_dropping_what_is_not_there_is_no_error() -> None:
    ArtifactCache(1, 1).drop(key("a"))


def test_what_is_sealed_cannot_be_changed_by_anybody() -> None:
    fd = os.memfd_create("artifact", os.MFD_ALLOW_SEALING)
    os.write(fd, b"code")
    seal(fd)
    for change in (
        lambda: os.write(fd, b"x"),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 100),
    ):
        with pytest.raises(PermissionError):
            change()
    assert os.pread(fd, 10, 0) == b"code"
    os.close(fd)


def test_only_exported_functions_can_be_called_and_only_memory_is_the_memory() -> None:
    function = call_pb2.Extern(
        name="f",
        kind=call_pb2.EXTERN_KIND_FUNCTION,
        params=[call_pb2.VALUE_TYPE_I32],
        results=[call_pb2.VALUE_TYPE_I64],
    )
    other = call_pb2.Extern(name="memory", kind=call_pb2.EXTERN_KIND_GLOBAL)
    memory = call_pb2.Extern(name="memory", kind=call_pb2.EXTERN_KIND_MEMORY)
    info = ModuleInfo.of((), (function, other))
    assert set(info.functions) == {"f"}
    assert info.functions["f"].params == (call_pb2.VALUE_TYPE_I32,)
    assert not info.has_memory
    assert ModuleInfo.of((), (memory,)).has_memory
