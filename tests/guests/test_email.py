"""E-mail validation against a regular expression, and every reason once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.guests.conftest import Guest

ATOM = rb"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+"
LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ADDRESS = re.compile(rb"(%b(?:\.%b)*)@%b(?:\.%b)+" % (ATOM, ATOM, LABEL, LABEL))


def is_valid(address: bytes) -> bool:
    found = ADDRESS.fullmatch(address)
    return found is not None and len(found[1]) <= 64 and len(address) <= 254


@pytest.fixture
def validate(load: Callable[[str], Guest]) -> Callable[[bytes], bytes]:
    guest = load("email")
    return lambda data: guest.call("validate", data, "nul").output


near_misses = st.lists(
    st.sampled_from([b"a", b"Z9", b".", b"-", b"@", b"+", b" ", b"\0", b"\xc3\xa9", b"x" * 63]),
    max_size=12,
).map(b"".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(address=st.from_regex(ADDRESS, fullmatch=True) | near_misses | st.binary(max_size=40))
def test_an_address_is_valid_exactly_if_the_grammar_says_so(
    validate: Callable[[bytes], bytes], address: bytes
) -> None:
    answer = validate(address)
    assert (answer == b"valid") == is_valid(address), (address, answer)
    assert answer == b"valid" or answer.startswith(b"invalid: ")


def test_every_ascii_byte_is_judged_by_the_grammar(validate: Callable[[bytes], bytes]) -> None:
    for code in range(256):
        for address in (b"a%cb@example.org" % code, b"a@ex%cample.org" % code):
            assert (validate(address) == b"valid") == is_valid(address), address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (b"", b"empty address"),
        (b"a@" + b"x." * 126 + b"y", b"longer than 254 bytes"),
        (b"a" * 3_000_000, b"longer than 254 bytes"),
        (b"example.org", b"no @"),
        (b"a@b@example.org", b"more than one @"),
        (b"@example.org", b"empty local part"),
        (b"a" * 65 + b"@example.org", b"local part longer than 64 bytes"),
        (b".a@example.org", b"misplaced dot in local part"),
        (b"a..b@example.org", b"misplaced dot in local part"),
        (b"a.@example.org", b"misplaced dot in local part"),
        (b'"a b"@example.org', b"character not allowed in local part"),
        (b"\xff\xfe@example.org", b"character not allowed in local part"),
        (b"a@", b"empty domain"),
        (b"a@.org", b"misplaced dot in domain"),
        (b"a@example..org", b"misplaced dot in domain"),
        (b"a@example.org.", b"misplaced dot in domain"),
        (b"a@example.org\n", b"character not allowed in domain"),
        (b"a@example\0.org", b"character not allowed in domain"),
        (b"a@[192.0.2.1]", b"character not allowed in domain"),
        (b"a@" + b"x" * 64 + b".org", b"label longer than 63 bytes"),
        (b"a@-example.org", b"label starts or ends with a hyphen"),
        (b"a@example-.org", b"label starts or ends with a hyphen"),
        (b"a@example", b"domain without a dot"),
    ],
)
def test_a_refusal_names_its_reason(
    validate: Callable[[bytes], bytes], address: bytes, reason: bytes
) -> None:
    assert validate(address) == b"invalid: " + reason


@pytest.mark.parametrize(
    "address",
    [
        b"a@b.c",
        b"first.last+tag@sub-domain.example.org",
        b"a" * 64 + b"@example.org",
        b"a@" + b"x" * 63 + b".org",
        b"a@" + b"x." * 125 + b"yz",
    ],
)
def test_an_address_at_a_limit_is_valid(validate: Callable[[bytes], bytes], address: bytes) -> None:
    assert validate(address) == b"valid"
