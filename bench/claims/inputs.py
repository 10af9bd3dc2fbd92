"""What is hashed, parsed and resized: the same bytes for every side, made from nothing but numbers.

The answers are constants, not what one side happens to say first: a side whose answer has another
digest is wrong.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HASH_BYTES = 1024
JSON_BYTES = 10 * 1024
# One megapixel is a million pixels here: with four bytes each and a header they fit into a message
# of the daemon's default size (4 MiB), which 1,024 by 1,024 do not. The result, a quarter of
# them, is under the default output limit (1 MiB).
SOURCE_SIDE = 1000
TARGET_SIDE = 500


@dataclass(frozen=True, slots=True)
class Work:
    """One claim's work: how a guest is asked for it, on what, and what the answer is.

    `name` is the guest's file, the peers' argument, and part of the figure's name.
    """

    name: str
    export: str
    make: Callable[[], bytes]
    answer_sha256: str
    """Digest of the right answer, in hexadecimal."""

    def is_right(self, answer: bytes) -> bool:
        """Return True for the right answer."""
        return hashlib.sha256(answer).hexdigest() == self.answer_sha256


def numbers(seed: int) -> Iterator[int]:
    """Pseudo-random numbers of 16 bits, for ever (a linear congruential generator)."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 48


def hash_input() -> bytes:
    """Return 1 KiB that no rule shortens."""
    draw = numbers(1)
    return bytes(next(draw) % 256 for _ in range(HASH_BYTES))


_WORDS = [
    "oak",
    "pine",
    "cedar",
    "birch",
    "maple",
    "walnut",
    "lamp",
    "chair",
    "table",
    "shelf",
    "small",
    "large",
    "round",
    "blue",
]
_PLACES = ("Graz", "Zürich", "Málaga", "Łódź", "東京", "São Paulo", "Oslo", "Kyiv")


def json_input() -> bytes:
    """Return a page of orders as a shop's API would answer it, exactly 10 KiB of UTF-8.

    Objects and arrays four levels deep; strings with raw UTF-8, with escapes and without; integers,
    decimals of at most 15 digits, exponents; true, false and null. No character is outside the
    basic plane, no key is a number and none occurs twice, so that every language sees the same
    nodes in the same order.
    """
    draw = numbers(2)
    orders: list[object] = []
    while len(_page(orders)) < JSON_BYTES:
        orders.append(_order(draw, len(orders)))
    orders.pop()
    # The rest, where one more order would not fit, is a comment on the page.
    rest = JSON_BYTES - len(_page(orders))
    return _page(orders, " ".join(_word(draw) for _ in range(rest))[:rest])


def _order(draw: Iterator[int], index: int) -> dict[str, object]:
    place = _PLACES[next(draw) % len(_PLACES)]
    return {
        "id": 4_100_000 + 37 * index,
        "created": f"2024-03-{1 + next(draw) % 28:02}T{next(draw) % 24:02}:15:00Z",
        "paid": next(draw) % 3 > 0,
        "customer": {
            "name": f"{_word(draw).title()} {_word(draw).title()}",
            "email": f"{_word(draw)}.{next(draw)}@example.org",
            "city": place,
            "note": None if next(draw) % 2 else f'said "{_word(draw)}"\nand left\t{place}',
        },
        "lines": [
            {
                "sku": f"{_word(draw).upper()}-{next(draw):05}",
                "title": f"{_word(draw)} {_word(draw)} \\ {_word(draw)}",
                "quantity": 1 + next(draw) % 9,
                "price": next(draw) / 100,
                "tags": [_word(draw) for _ in range(next(draw) % 4)],
            }
            for _ in range(1 + next(draw) % 3)
        ],
        "location": [round(next(draw) / 1000 - 30, 3), -(next(draw) / 1000)],
        "tolerance": (1.5e-7, 2.25e-06, 5e-05)[next(draw) % 3],
    }


def _word(draw: Iterator[int]) -> str:
    return _WORDS[next(draw) % len(_WORDS)]


def _page(orders: list[object], comment: str = "") -> bytes:
    page = {"status": "ok", "page": 7, "next": None, "orders": orders, "comment": comment}
    # Some writers escape what others leave: one letter of each kind is escaped here.
    return json.dumps(page, ensure_ascii=False).replace("ü", "\\u00fc").encode()


def resize_input() -> bytes:
    """Return the request to halve a photograph-like image: gradients with noise over them."""
    draw = numbers(3)
    noise = [next(draw) % 32 for _ in range(997)]
    pixels = bytearray()
    for y in range(SOURCE_SIDE):
        for x in range(SOURCE_SIDE):
            grain = noise[(7 * x + 31 * y) % 997]
            pixels += bytes((x * 220 // SOURCE_SIDE + grain, y * 220 // SOURCE_SIDE + grain))
            pixels += bytes(((x + y) % 224 + grain, 255 - grain))
    return struct.pack("<4I", SOURCE_SIDE, SOURCE_SIDE, TARGET_SIDE, TARGET_SIDE) + bytes(pixels)


HASH = Work(
    "sha256_1k",
    "hash",
    hash_input,
    "bbcfa253c726c9b975042691c13ea88ff4d3d9f015e42b37c4d038378620cbc7",
)
PARSE = Work(
    "json_10k",
    "parse",
    json_input,
    "5ca3d3f0dde256087c93f23728f713a5b0b9a2dffce7c028749aeeaa4e3aabd7",
)
RESIZE = Work(
    "resize_1mp",
    "scale",
    resize_input,
    "cae584c9fd2bd1671254967b30f25b301aa3340c39690cfab7efcc9ba55a855c",
)
ALL = (HASH, PARSE, RESIZE)
