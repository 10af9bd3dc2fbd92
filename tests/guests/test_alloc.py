"""`alloc` when there is no memory, in both ways that the guests do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guests.conftest import Guest

GUESTS = Path(__file__).parents[2] / "examples" / "guests"


@pytest.mark.parametrize("name", ["email", "json", "resize", "sha256"])
def test_alloc_answers_a_null_pointer_when_there_is_no_memory_and_goes_on(
    load: Callable[[str], Guest], name: str
) -> None:
    instance = load(name).instantiate(memory_bytes=1 << 20)
    # Also lengths close to 4 GiB, as the two's complement that they are passed in.
    for length in (1 << 20, 0x7FFFFFFF, -0x80000000, -0x10000, -16, -1):
        assert instance.call("alloc", length) == [0], length
    [pointer] = instance.call("alloc", 4096)
    instance.read(pointer, 4096)
    assert pointer > 0
    assert pointer % 16 == 0


def test_assemblyscripts_own_heap_throws_through_env_abort(
    compiled: Callable[[Path], Guest],
) -> None:
    guest = compiled(GUESTS / "assemblyscript" / "uppercase.wasm")
    with pytest.raises(RuntimeError, match="abort: Allocation too large"):
        guest.instantiate().call("alloc", 0x7FFFFFFF)
