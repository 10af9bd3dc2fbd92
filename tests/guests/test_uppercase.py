"""Upper case against bytes.upper."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.guests.conftest import Guest

CONVENTION = {"c": "pointer-length", "assemblyscript": "packed"}


@pytest.fixture
def guest(load: Callable[[str], Guest]) -> Guest:
    return load("uppercase")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=500) | st.text(max_size=200).map(str.encode))
def test_only_ascii_letters_change(guest: Guest, data: bytes) -> None:
    assert guest.call("uppercase", data, CONVENTION[guest.language]).output == data.upper()


def test_an_empty_text_stays_empty(guest: Guest) -> None:
    assert guest.call("uppercase", b"", CONVENTION[guest.language]).output == b""


def test_a_text_of_megabytes_is_transformed_in_place(guest: Guest) -> None:
    data = "wasm é ß ☃ ".encode() * 200_000
    output = guest.call("uppercase", data, CONVENTION[guest.language], memory_bytes=4 << 20).output
    assert output == data.upper()
