"""The claims: inputs, the work of every side that this host has, and a side that is wrong."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from bench.claims import compute, figures, inputs, starts, tools
from bench.claims.inputs import HASH, PARSE, RESIZE, Work
from bench.claims.peer import PeerError, Repeated, batch_size, peer, spawn
from bench.claims.sides import Sides, WrongAnswerError
from bench.figure import QUICK

BLOCK_S = 0.001


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here answers matter, not times."""
    monkeypatch.setattr("bench.claims.peer._WARM_UP_S", 0.0)


CLAIMS = pytest.mark.parametrize("work", inputs.ALL, ids=lambda work: str(work.name))


@pytest.fixture(scope="module")
def input_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Work], Path]:
    """Write each claim's input once."""
    directory = tmp_path_factory.mktemp("inputs")

    def path_of(work: Work) -> Path:
        path = directory / work.name
        if not path.exists():
            path.write_bytes(work.make())
        return path

    return path_of


def test_the_hash_input_is_one_kibibyte_and_its_answer_is_hashlibs() -> None:
    data = inputs.hash_input()
    assert len(data) == 1024
    assert HASH.is_right(hashlib.sha256(data).digest())
    assert not HASH.is_right(hashlib.sha256(data + b" ").digest())


def test_the_document_is_ten_kibibytes_of_json_that_every_language_reads_alike() -> None:
    data = inputs.json_input()
    assert len(data) == 10_240
    keys: list[str] = []

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = [key for key, _value in pairs]
        assert len(set(found)) == len(found)
        keys.extend(found)
        return dict(pairs)

    tree = json.loads(data, object_pairs_hook=no_key_twice)
    assert len(tree["orders"]) > 10
    assert not any(key.isdigit() for key in keys)  # JavaScript would put these first
    assert max(map(ord, data.decode())) < 0x10000
    for needed in (b"\\u00fc", b"\\n", b'\\"', b"e-0", "東京".encode(), b"null", b"false"):
        assert needed in data


def test_the_image_is_a_million_pixels_and_fits_into_a_message() -> None:
    data = inputs.resize_input()
    width, height, to_width, to_height = struct.unpack_from("<4I", data)
    assert width * height * 4 + 16 == len(data)
    assert width * height == 1_000_000
    assert len(data) < 4 << 20
    assert to_width * to_height * 4 < 1 << 20


def test_inputs_are_the_same_every_time() -> None:
    assert inputs.json_input() == inputs.json_input()
    assert inputs.hash_input() == inputs.hash_input()


def test_figures_have_a_name_each_and_set_nothing_up() -> None:
    assert [figure.name for figure in figures(QUICK)] == [
        "claim-sha256-1k",
        "claim-json-10k",
        "claim-resize-1mp",
        "claim-start-cpython",
        "claim-start-quickjs",
    ]


async def collect(
    add: Callable[[Sides], Any], is_right: Callable[[bytes], bool]
) -> dict[str, float | str]:
    """Set sides up, time each once; returns seconds, or why a side is missing."""
    found: dict[str, float | str] = {}
    async with AsyncExitStack() as exits:
        sides = Sides(exits, BLOCK_S, is_right)
        await add(sides)
        for side in sides.point(3).sides:
            found[side.name] = side.missing if side.block is None else await side.block()
    return found


def assert_timed(found: dict[str, float | str]) -> None:
    missing = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    if missing:
        pytest.skip("; ".join(missing))
    assert all(isinstance(seconds, float) and seconds > 0 for seconds in found.values())


@CLAIMS
async def test_the_guest_gives_the_right_answer(
    work: Work, input_of: Callable[[Work], Path]
) -> None:
    assert_timed(
        await collect(lambda sides: compute.add_engine(sides, work, input_of(work)), work.is_right)
    )


@CLAIMS
async def test_the_native_program_gives_the_right_answer(
    work: Work, input_of: Callable[[Work], Path], tmp_path: Path
) -> None:
    assert_timed(
        await collect(
            lambda sides: compute.add_native(sides, work, input_of(work), tmp_path), work.is_right
        )
    )


@CLAIMS
async def test_javascript_gives_the_right_answer(
    work: Work, input_of: Callable[[Work], Path]
) -> None:
    found = await collect(
        lambda sides: compute.add_node(sides, work, input_of(work)), work.is_right
    )
    assert (compute.node_side(work) is None) == (work is RESIZE)
    assert_timed(found)


@CLAIMS
async def test_python_gives_the_right_answer(work: Work, input_of: Callable[[Work], Path]) -> None:
    found = await collect(
        lambda sides: compute.add_python(sides, work, input_of(work)), work.is_right
    )
    assert len(found) == (1 if work is RESIZE else 3)
    assert_timed(found)


async def test_a_wrong_answer_is_an_error_that_names_the_side(
    input_of: Callable[[Work], Path],
) -> None:
    # The parse of what is not JSON has an answer, and it is not this one.
    with pytest.raises(WrongAnswerError, match="wasmtime in the host's process"):
        await collect(
            lambda sides: compute.add_engine(sides, PARSE, input_of(HASH)), PARSE.is_right
        )


async def test_a_side_that_this_host_lacks_says_why(
    monkeypatch: pytest.MonkeyPatch, input_of: Callable[[Work], Path]
) -> None:
    monkeypatch.setenv("PATH", "")
    found = await collect(
        lambda sides: compute.add_node(sides, HASH, input_of(HASH)), HASH.is_right
    )
    assert len(found) == 3
    assert set(found.values()) == {"node is not installed"}


@pytest.mark.parametrize("interpreter", [starts.CPYTHON, starts.QUICKJS], ids=lambda it: it.name)
def test_what_stands_beside_an_interpreter_prints_the_same(
    interpreter: starts.Interpreter,
) -> None:
    for _name, command in interpreter.beside:
        try:
            assert spawn(command()) == starts.ANSWER
        except tools.MissingError:
            continue


@pytest.mark.parametrize("interpreter", [starts.CPYTHON, starts.QUICKJS], ids=lambda it: it.name)
async def test_an_interpreter_as_a_guest_prints_the_answer(
    interpreter: starts.Interpreter,
) -> None:
    if not interpreter.module.exists():
        pytest.skip("`make claims-tools` brings it")
    host = [sys.executable, "-m", "bench.claims.engine", "wasi", str(interpreter.module)]
    async with peer([*host, *interpreter.arguments]) as running:
        assert await running.answer() == starts.ANSWER


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"", 0),
        (b"[1,]", 3),
        (b"[1] x", 4),
        (b'"\\x"', 2),
        (b'"\\ud800"', 7),
        (b'"a', 2),
        (b"01", 2),
        (b"1234567890123456", 16),
        (b'{"a" 1}', 5),
    ],
)
async def test_the_guest_refuses_what_is_not_json_and_says_where(
    text: bytes, offset: int, tmp_path: Path
) -> None:
    (tmp_path / "input").write_bytes(text)
    command = [sys.executable, "-m", "bench.claims.engine", "bytes"]
    command += [str(compute.guest(PARSE)), "parse", str(tmp_path / "input")]
    async with peer(command) as running:
        assert struct.unpack("<2I", await running.answer()) == (0, offset)


async def test_a_peer_that_ends_is_an_error() -> None:
    async with peer([sys.executable, "-c", ""]) as ended:
        with pytest.raises(PeerError, match="ended when asked to answer"):
            await ended.answer()
    with pytest.raises(PeerError, match="ended with 3"):
        spawn([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_batch_is_a_tenth_of_a_block_and_never_empty() -> None:
    assert batch_size(1000.0, 1.0) == 100
    assert batch_size(0.5, 0.4) == 1


async def test_a_block_is_the_median_of_its_batches_in_seconds() -> None:
    asked: list[int] = []

    async def repeat(times: int) -> int:
        asked.append(times)
        return times * 2_000_000

    repeated = Repeated(repeat, 0.1)
    await repeated.warm_up()
    assert await repeated.block() == pytest.approx(0.002)
    assert asked[-1] == 5


def test_no_guest_holds_a_path_or_debug_information() -> None:
    for work in inputs.ALL:
        data = compute.guest(work).read_bytes()
        assert b".debug_" not in data
        assert b".c\0" not in data
        assert len(data) < 20_000
