"""The cache of compiled modules: bounded, and never closes what somebody still holds."""

from __future__ import annotations

import gc
import os

import psutil
import pytest
from tests.supervisor.fakes import ENGINE, key

from sandboxd.supervisor.artifacts import Artifact, ArtifactCache, ModuleInfo
from sandboxd.supervisor.memory_file import seal
from sandboxd.v1 import call_pb2
from sandboxd.wire.v1 import runner_pb2

FUNCTION = call_pb2.EXTERN_KIND_FUNCTION
I32 = call_pb2.VALUE_TYPE_I32

NO_INFO = ModuleInfo.of((), ()).size_bytes


def artifact(size_bytes: int, info: ModuleInfo | None = None) -> Artifact:
    told = info or ModuleInfo.of((), ())
    return Artifact(os.memfd_create("artifact"), size_bytes, told, ENGINE)


def many_exports(count: int, params: int = 0) -> ModuleInfo:
    """What a module of some 60 KiB can tell of itself."""
    functions = (
        call_pb2.Extern(name=f"{number:x}", kind=FUNCTION, params=[I32] * params)
        for number in range(count)
    )
    return ModuleInfo.of((), functions)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_least_recently_used_one_is_dropped_when_the_budget_is_spent() -> None:
    cache = ArtifactCache(100 + 2 * NO_INFO, 10)
    for name in "abc":
        cache.put(key(name), artifact(40))
        cache.get(key("a"))
    assert cache.size_bytes == 80 + 2 * NO_INFO
    assert cache.get(key("b")) is None
    assert cache.get(key("a")) is not None
    assert cache.get(key("c")) is not None


def test_there_are_never_more_than_so_many() -> None:
    cache = ArtifactCache(1000 + 10 * NO_INFO, 2)
    for name in "abc":
        cache.put(key(name), artifact(1))
    assert [cache.get(key(name)) is not None for name in "abc"] == [False, True, True]


def test_the_newest_one_is_kept_even_if_it_exceeds_the_budget() -> None:
    cache = ArtifactCache(100 + NO_INFO, 10)
    cache.put(key("a"), artifact(50))
    cache.put(key("b"), artifact(500))
    assert cache.get(key("a")) is None
    assert cache.get(key("b")) is not None
    assert cache.size_bytes == 500 + NO_INFO
    cache.put(key("c"), artifact(1))
    assert cache.size_bytes == 1 + NO_INFO


def test_putting_one_again_replaces_it() -> None:
    cache = ArtifactCache(100, 10)
    first, second = artifact(30), artifact(40)
    cache.put(key("a"), first)
    cache.put(key("a"), second)
    assert cache.get(key("a")) is second
    assert cache.size_bytes == 40 + NO_INFO


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
    assert info.other_names == {"memory"}


def test_a_description_has_all_that_was_told_in_order() -> None:
    imports = [call_pb2.Extern(module="m", name=f"i{n}", kind=FUNCTION) for n in range(9)]
    exports = [call_pb2.Extern(name=f"e{n}", params=[I32] * n, maximum=n) for n in range(9)]
    info = ModuleInfo.of(imports, exports)
    assert (list(info.imports), list(info.exports)) == (imports, exports)
    told = runner_pb2.Compiled.FromString(info.description)
    assert (list(told.imports), list(told.exports)) == (imports, exports)


def test_what_nobody_knows_is_not_kept() -> None:
    alien = call_pb2.Extern.FromString(b"\x12\x01f" + b"\xfa\x01\x7f" + bytes(127))
    assert (
        ModuleInfo.of((), [alien]).description
        == ModuleInfo.of((), [call_pb2.Extern(name="f")]).description
    )


@pytest.mark.parametrize("kind", [-1, 256, 2**31 - 1])
def test_types_that_cannot_be_are_refused(kind: int) -> None:
    with pytest.raises(ValueError, match="range"):
        ModuleInfo.of((), [call_pb2.Extern(name="f", kind=FUNCTION, params=[kind])])  # type: ignore[list-item]


def test_the_budget_counts_what_a_module_tells_of_itself() -> None:
    cache = ArtifactCache(4 << 20, 1000)
    for number in range(20):
        cache.put(key(str(number)), artifact(1, many_exports(5000)))
    assert 2 <= len(cache) <= 9
    assert cache.size_bytes == sum(
        held.memory_bytes for n in range(20) if (held := cache.get(key(str(n))))
    )
    cache.clear()
    assert cache.size_bytes == 0


@pytest.mark.parametrize(("count", "params"), [(10_000, 0), (9_000, 90)])
def test_the_counted_memory_of_a_description_is_what_it_takes(count: int, params: int) -> None:
    many_exports(count, params)
    gc.collect()
    resident = psutil.Process().memory_info().rss
    held = [many_exports(count, params) for _ in range(20)]
    taken = psutil.Process().memory_info().rss - resident
    counted = sum(info.size_bytes for info in held)
    assert counted < 20 * (2 << 20)
    # What is beyond it is of the last one's making, and does not grow with their number.
    assert taken < 1.3 * counted + (12 << 20)
