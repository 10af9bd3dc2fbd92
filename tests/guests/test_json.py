"""The JSON formatter against the standard library's parser and printer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.guests.conftest import Guest

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)


@pytest.fixture
def pretty(load: Callable[[str], Guest]) -> Callable[[bytes], bytes]:
    guest = load("json")
    return lambda data: guest.call("format", data, "packed").output


def is_error(output: bytes) -> bool:
    """Tells an error from a document by its first two bytes, and checks its shape."""
    if not output.startswith(b'{"'):
        return False
    error = json.loads(output)
    assert list(error) == ["error", "offset"]
    assert b"\n" not in output
    return True


def is_valid(document: bytes) -> bool:
    """Asks the standard library, without what it takes beyond RFC 8259."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        parsed: Any = json.loads(
            document.decode(),
            parse_constant=refuse,
            parse_int=str,
            parse_float=str,
            object_pairs_hook=list,
        )
        # An unpaired surrogate cannot be encoded.
        json.dumps(parsed, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@RELAXED
@given(
    value=values,
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")]),
)
def test_a_document_is_printed_as_the_standard_library_prints_it(
    pretty: Callable[[bytes], bytes], value: Any, ascii_only: bool, separators: tuple[str, str]
) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    expected = json.dumps(value, ensure_ascii=ascii_only, indent=2)
    assert pretty(f" {document}\n".encode()) == expected.encode()
    assert pretty(expected.encode()) == expected.encode()


@RELAXED
@given(value=values, data=st.data())
def test_a_damaged_document_is_accepted_exactly_if_the_grammar_does(
    pretty: Callable[[bytes], bytes], value: Any, data: st.DataObject
) -> None:
    document = bytearray(json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(document)))
        stop = data.draw(st.integers(start, min(start + 2, len(document))))
        bits = st.sampled_from(b'{}[]",:\\/u0123456789abcdefDE+-. \t\n\x00\x1f\x80\xc3\xed\xf4')
        document[start:stop] = bytes(data.draw(st.lists(bits, max_size=2)))
    output = pretty(bytes(document))
    assert is_error(output) != is_valid(bytes(document)), output


@RELAXED
@given(document=st.binary(max_size=12) | st.text(max_size=12).map(lambda t: f'"{t}"'.encode()))
def test_any_bytes_are_answered(pretty: Callable[[bytes], bytes], document: bytes) -> None:
    assert is_error(pretty(document)) != is_valid(document)


@pytest.mark.parametrize(
    "number", [b"0", b"-0", b"1E400", b"-0.0e-0", b"10000000000000000000000001", b"1.50e+007"]
)
def test_a_number_keeps_its_text(pretty: Callable[[bytes], bytes], number: bytes) -> None:
    assert pretty(b"[" + number + b"]") == b"[\n  " + number + b"\n]"


def test_strings_and_duplicate_keys_keep_their_text(pretty: Callable[[bytes], bytes]) -> None:
    document = b'{"a":"\\u0041\\/\\ud83d\\ude00","a":{},"b":[ ]}'
    expected = b'{\n  "a": "\\u0041\\/\\ud83d\\ude00",\n  "a": {},\n  "b": []\n}'
    assert pretty(document) == expected


@pytest.mark.parametrize(
    ("document", "error", "offset"),
    [
        (b"", "expected a value", 0),
        (b" \n", "expected a value", 2),
        (b"\xef\xbb\xbf1", "expected a value", 0),
        (b"nul", "unknown literal", 3),
        (b"NaN", "expected a value", 0),
        (b"-", "expected a digit", 1),
        (b"01", "number starts with 0", 1),
        (b"1.", "expected a digit", 2),
        (b"1e+", "expected a digit", 3),
        (b"1 2", "data after the document", 2),
        (b"[1,]", "expected a value", 3),
        (b"[1 2]", "expected ',' or ']'", 3),
        (b'{"a":1,}', "expected a string", 7),
        (b'{"a" 1}', "expected ':'", 5),
        (b'{"a":1 "b"}', "expected ',' or '}'", 7),
        (b"{1:2}", "expected a string", 1),
        (b'"abc', "unterminated string", 4),
        (b'"a\nb"', "control character in a string", 2),
        (b'"\\x41"', "unknown escape", 2),
        (b'"\\', "unknown escape", 2),
        (b'"\\u12g4"', "expected four hexadecimal digits", 5),
        (b'"\\ud800"', "unpaired surrogate", 1),
        (b'"\\ud800\\u0041"', "unpaired surrogate", 1),
        (b'"\\udc00\\ud800"', "unpaired surrogate", 1),
        (b'"\xc0\xaf"', "invalid UTF-8", 1),
        (b'"\xe0\x80\xaf"', "invalid UTF-8", 2),
        (b'"\xed\xa0\x80"', "invalid UTF-8", 2),
        (b'"\xf4\x90\x80\x80"', "invalid UTF-8", 2),
        (b'"\xf0\x9f\x98', "invalid UTF-8", 4),
        (b'"\xff"', "invalid UTF-8", 1),
        (b"[" * 1_000_000, "more than 256 levels", 256),
        (b'{"":' * 1_000_000, "more than 256 levels", 4 * 256),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_invalid_document_is_answered_with_reason_and_offset(
    pretty: Callable[[bytes], bytes], document: bytes, error: str, offset: int
) -> None:
    output = pretty(document)
    assert is_error(output)
    assert json.loads(output) == {"error": error, "offset": offset}


def test_256_levels_are_printed(pretty: Callable[[bytes], bytes]) -> None:
    document = b"[" * 256 + b"]" * 256
    assert pretty(document) == json.dumps(json.loads(document), indent=2).encode()


def test_an_output_that_does_not_fit_is_an_error(load: Callable[[str], Guest]) -> None:
    document = b"[" * 200 + b",".join([b"1"] * 20_000) + b"]" * 200
    reply = load("json").call("format", document, "packed", memory_bytes=2 << 20)
    assert is_error(reply.output)
    assert json.loads(reply.output)["error"] == "out of memory"


def test_an_output_of_megabytes_is_printed_whole(pretty: Callable[[bytes], bytes]) -> None:
    value = [{"key": [i, "text", None, 1.5]} for i in range(30_000)]
    assert pretty(json.dumps(value).encode()) == json.dumps(value, indent=2).encode()
