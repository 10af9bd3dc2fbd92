"""The WASI commands, each in a process of its own."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guests.conftest import Guest

HOST = [sys.executable, str(Path(__file__).with_name("wasi_host.py"))]
SLEEP = str(Path(__file__).parents[2] / "examples" / "guests" / "c" / "sleep.wasm")


def word_count(data: bytes) -> bytes:
    return b"%d %d %d\n" % (data.count(b"\n"), len(data.split()), len(data))


def inputs() -> list[bytes]:
    """Edge cases, then random bytes from an alphabet with much white space, always the same."""
    chance = random.Random(20)
    alphabet = b"ab\xc3\xa9\x00\xff \t\n\r\x0b\x0c\x1c\x85\xa0"
    some = [bytes(chance.choices(alphabet, k=chance.randrange(60))) for _ in range(60)]
    edge = b"x" * 65536
    large = [edge, edge + b"y", b"x" * 65535 + b" y", b"a b\n" * 100_000]
    return [b"", b"\n", b" ", b"word", b"two words\n", b"no newline\nat end", *some, *large]


def test_words_are_counted_as_pythons_split_finds_them(load: Callable[[str], Guest]) -> None:
    done = subprocess.run(
        [*HOST, "--batch", str(load("word_count").path)],
        input=json.dumps([base64.b64encode(data).decode() for data in inputs()]),
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = [base64.b64decode(output) for output in json.loads(done.stdout)]
    assert outputs == [word_count(data) for data in inputs()]


def test_a_stream_that_comes_in_parts_is_counted_whole(load: Callable[[str], Guest]) -> None:
    with subprocess.Popen(
        [*HOST, str(load("word_count").path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        for part in (b"one t", b"wo\n", b"", b" three"):
            process.stdin.write(part)
            process.stdin.flush()
        output, _ = process.communicate()
    assert (output, process.returncode) == (b"1 3 14\n", 0)


def test_sleep_writes_before_and_after() -> None:
    done = subprocess.run([*HOST, SLEEP, "0"], capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"sleeping 0 s\nawake\n", b"", 0)


def test_sleep_sleeps_after_its_first_line() -> None:
    with subprocess.Popen([*HOST, SLEEP, "3600"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()
        rest = process.stdout.read()
    assert (first, rest) == (b"sleeping 3600 s\n", b"")


@pytest.mark.parametrize(
    "arguments", [[], [""], ["x"], ["1x"], ["-1"], ["1", "2"], ["99999999999999999999"]]
)
def test_sleep_refuses_what_is_not_a_number_of_seconds(arguments: list[str]) -> None:
    done = subprocess.run([*HOST, SLEEP, *arguments], capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"usage: sleep SECONDS\n", 2)
