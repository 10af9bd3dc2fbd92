"""Words from a child: clipped, and harmless to a terminal and a log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor.text import MAX_CHARACTERS, for_people


@given(st.text(max_size=200), st.integers(0, 300))
def test_what_is_passed_on_is_short_and_printable(text: str, maximum: int) -> None:
    told = for_people(text, maximum)
    assert len(told) <= maximum
    assert told.replace("\n", "").isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=100))
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert for_people(text) == text


def test_control_characters_are_replaced_one_by_one() -> None:
    assert for_people("a\x1b[31mb\0\nc\u202e") == "a\ufffd[31mb\ufffd\nc\ufffd"
    assert len(for_people("x" * 10_000)) == MAX_CHARACTERS
