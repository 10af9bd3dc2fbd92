"""More calls, more modules, more tenants, larger modules: where each curve bends."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator

from bench import guests, requests, sides
from bench.figure import (
    Axis,
    Figure,
    Note,
    Part,
    Point,
    Ratio,
    Settings,
    Side,
    at_most,
)
from bench.figures import tenants
from bench.figures.fresh import burst_median, call_of_digest, in_turn
from bench.figures.setting import (
    CALLS_PER_CONNECTION,
    ECHO,
    INPUT,
    SANDBOXD,
    Execute,
    bound_module,
    call_of,
    calls,
)
from bench.stage import Daemon, Stage
from bench.timing import median_async
from sandboxd.v1 import sandbox_pb2

SECTION = "Scaling"
_IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
_QUICK_IN_FLIGHT = (1, 32, 500)
_MODULES = (1, 10, 32, 100, 300, 1000)
_QUICK_MODULES = (1, 10, 40)
_CODE = (1_000, 10_000, 100_000, 1_000_000, 8_000_000)
_DATA = (1_000, 100_000, 1_000_000, 10_000_000, 70_000_000)
_QUICK_CODE = (1_000, 100_000)
_QUICK_DATA = (1_000, 1_000_000)
_LARGE_BYTES = 5_000_000
_LARGE_ROUNDS = 3


async def _in_flight(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s / 2
    async with bound_module(stage) as it:
        for count in _QUICK_IN_FLIGHT if stage.settings.quick else _IN_FLIGHT:
            yield Point(
                [
                    sides.rate(SANDBOXD, calls(it.daemon, it.request, count), seconds),
                    sides.rate(ECHO, calls(it.echo, it.request, count), seconds),
                ],
                x=count,
            )
    yield Note(
        f"At most {CALLS_PER_CONNECTION} calls share a connection: half of what the daemon allows, "
        "because the transport counts calls that are answered and not yet forgotten, too."
    )


# --- modules --------------------------------------------------------------------------------------

_MANY = "one called, the others stored"
_ONE = "one stored (the reference)"
_IN_TURN = "all called in turn"


async def _modules(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s / 2
    async with stage.daemon() as reference, stage.daemon() as crowded:
        one = await _variant(reference, 0)
        many = [await _variant(crowded, 0)]
        for count in _QUICK_MODULES if stage.settings.quick else _MODULES:
            while len(many) < count:
                many.append(await _variant(crowded, len(many)))
            yield Point(
                [
                    sides.latency(_MANY, many[0], seconds),
                    sides.latency(_ONE, one, seconds),
                    sides.latency(_IN_TURN, in_turn(many), seconds),
                ],
                x=count,
            )
    yield Note(
        "The reference is a second daemon with one module, measured in turn with the first at each "
        "point. Called in turn, each module has a runner of its own up to the capacity of the pool "
        "(32 by default, of which 4 stay spare); beyond it the longest idle runner makes room, and "
        "every call is a module's first."
    )


async def _variant(daemon: Daemon, number: int) -> Execute:
    digest = await daemon.push(guests.variant(guests.echo(), number))
    return call_of(daemon, requests.bytes_call(digest, "echo", INPUT))


# --- sizes of modules -----------------------------------------------------------------------------


async def _sizes(stage: Stage) -> AsyncGenerator[Part, None]:
    quick = stage.settings.quick
    # First calls here are FRESH ones, and shall find nothing loaded.
    async with stage.daemon("--ahead-runners", "0") as daemon:
        for size in sorted(
            {*(_QUICK_CODE if quick else _CODE), *(_QUICK_DATA if quick else _DATA)}
        ):
            found: list[Side] = []
            if size in _CODE:
                found += await _size_sides(stage, daemon, "code", guests.code_module(size))
            if size in _DATA:
                found += await _size_sides(stage, daemon, "data", guests.data_module(size))
            yield Point(found, x=size, rounds=_LARGE_ROUNDS if size >= _LARGE_BYTES else None)
    yield Note(
        "Code: functions of 1 KB each. Data: initial memory and next to no code. First call: a new "
        "process each time (FRESH), its module compiled. Push: upload, store and compile a module "
        "that was not there before."
    )


async def _size_sides(stage: Stage, daemon: Daemon, kind: str, wasm: bytes) -> list[Side]:
    seconds = stage.settings.block_s / 4
    digest = await daemon.push(wasm)
    bound = call_of_digest(daemon, digest)
    first = call_of_digest(daemon, digest, fresh=True)
    numbers = itertools.count(1)

    async def push_new() -> float:
        variant = guests.variant(wasm, next(numbers))
        pushed = ""

        async def push() -> None:
            nonlocal pushed
            pushed = await daemon.push(variant)

        taken = await median_async(push, 0.0, min_calls=1)
        await daemon.delete(pushed)
        return taken

    async def first_call() -> float:
        return await burst_median(first, seconds, sandbox_pb2.START_KIND_SPARE)

    return [
        sides.latency(f"{kind}: bound", bound, seconds),
        Side(f"{kind}: first call", first_call),
        Side(f"{kind}: push", push_new),
    ]


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "in-flight-curve",
            "Calls in flight, from 1 to 500",
            SECTION,
            "/s",
            _in_flight,
            [Ratio("throughput / bare echo", SANDBOXD, ECHO)],
            Axis("calls in flight"),
        ),
        Figure(
            "modules-curve",
            "Stored modules, from 1 to 1,000",
            SECTION,
            "s",
            _modules,
            [Ratio("bound p50, so many modules stored / one", _MANY, _ONE, at_most(1.1))],
            Axis("modules stored"),
        ),
        tenants.figure(SECTION, settings),
        Figure(
            "module-size-curve",
            "Modules from 1 KB to 70 MB",
            SECTION,
            "s",
            _sizes,
            [],
            Axis("bytes of the module"),
        ),
    ]
