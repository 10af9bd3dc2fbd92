"""SHA-256 against hashlib."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.guests.conftest import Guest


@pytest.fixture
def digest(load: Callable[[str], Guest]) -> Callable[[bytes], bytes]:
    guest = load("sha256")
    return lambda data: guest.call("sha256", data, "fixed:32").output


def test_every_length_up_to_five_blocks_has_the_right_digest(
    digest: Callable[[bytes], bytes],
) -> None:
    for length in range(5 * 64 + 2):
        data = bytes(i * 7 & 0xFF for i in range(length))
        assert digest(data) == hashlib.sha256(data).digest(), length


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000))
def test_any_bytes_have_the_right_digest(digest: Callable[[bytes], bytes], data: bytes) -> None:
    assert digest(data) == hashlib.sha256(data).digest()


def test_an_input_larger_than_the_initial_memory_has_the_right_digest(
    digest: Callable[[bytes], bytes],
) -> None:
    data = bytes(range(256)) * 20_000 + b"end"
    assert digest(data) == hashlib.sha256(data).digest()
