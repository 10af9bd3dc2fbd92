"""How fast a guest runs once it runs: walls, epochs and limits against the engine alone."""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial

from bench import requests
from bench.baselines.in_process import InProcess
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side, at_least
from bench.figures.setting import Execute, call_of
from bench.stage import GUESTS, Stage
from bench.timing import MIN_CALLS, median_sync
from sandboxd.runner.engine import build_engine
from sandboxd.v1 import sandbox_pb2

SECTION = "Speed of guests"
_GUEST = "through Execute"
_SAME = "in-process, the same engine settings"
_DEFAULT = "in-process, default engine settings"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """A long call of an example guest."""

    guest: str
    export: str
    data: bytes
    length: int | None = None
    output_bytes: int = _MIB


def _sha256() -> Work:
    return Work("c/sha256.wasm", "sha256", bytes(range(256)) * (2 * _MIB // 256), 32)


def _resize() -> Work:
    side, target = 1000, 500
    pixels = bytes((x * y) & 0xFF for y in range(side) for x in range(side)) * 4
    header = struct.pack("<4I", side, side, target, target)
    return Work("c/resize.wasm", "resize", header + pixels, output_bytes=2 * _MIB)


async def _speed(stage: Stage, work: Work) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    wasm = (GUESTS / work.guest).read_bytes()
    same = InProcess(wasm, build_engine(fuel=False))
    default = InProcess(wasm)
    async with stage.daemon() as daemon:
        request = requests.bytes_call(
            await daemon.push(wasm),
            work.export,
            work.data,
            convention=requests.PACKED if work.length is None else requests.FIXED,
            length=work.length or 0,
            limits=sandbox_pb2.Limits(output_bytes=work.output_bytes),
        )
        call = call_of(daemon, request)
        output = (await call()).completed.output
        assert output == same.bytes_call(work.export, work.data, work.length)

        yield Point(
            [
                Side(_GUEST, lambda: _told(call, seconds)),
                Side(_SAME, lambda: _timed(same, work, seconds)),
                Side(_DEFAULT, lambda: _timed(default, work, seconds)),
            ]
        )
    yield Note(
        "Calls per second of the guest's process: a fresh instance, the input written, the call, "
        "the result read; transport left out on both sides (through Execute it is the time that "
        "the runner reports). The engine's default settings have no epochs, without which nothing "
        "could be interrupted."
    )


async def _timed(module: InProcess, work: Work, seconds: float) -> float:
    call = partial(module.bytes_call, work.export, work.data, work.length)
    return 1 / await median_sync(call, seconds)


async def _told(call: Execute, seconds: float) -> float:
    """Calls per second by the runner's own account; it ran no guest that could have forged it."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < MIN_CALLS:
        samples.append((await call()).receipt.self_reported.run_time_ns / 1e9)
    return 1 / statistics.median(samples)


def _figure(name: str, title: str, says: str, work: Callable[[], Work]) -> Figure:
    return Figure(
        name,
        title,
        SECTION,
        "/s",
        lambda stage: _speed(stage, work()),
        [
            Ratio(f"speed of {says} / in-process, same settings", _GUEST, _SAME, at_least(0.97)),
            Ratio(f"speed of {says} / in-process, default", _GUEST, _DEFAULT, at_least(0.97)),
        ],
    )


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        _figure("speed-sha256", "SHA-256 of 2 MiB, in the guest", "SHA-256", _sha256),
        _figure("speed-resize", "An image of 1 megapixel resized, in the guest", "resize", _resize),
    ]
