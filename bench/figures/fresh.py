"""New processes: one per call (FRESH), and the first call of a module."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncGenerator, Sequence

from bench import guests, requests, sides
from bench.baselines.forks import fork_server_process
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side, at_least, at_most
from bench.figures.setting import INPUT, Execute, call_of, calls
from bench.stage import Daemon, Stage
from bench.timing import throughput
from sandboxd.v1 import sandbox_pb2

SECTION = "New processes"
SPARES = 4
"""The daemon's default."""
IN_FLIGHT = 32
# Time for the pool to fork and lock down as many spares as a burst used up; several times what
# that takes, because the wait must not be measured either way.
_REST_S = 0.06
_MODULE_BYTES = 100_000
# More than the pool has runners, so that none is still bound when its turn comes again.
_VARIANTS = 80

_FRESH = "FRESH, a module called so again and again"
_FRESH_SPARE = "FRESH, nothing bound ahead"
_BOUND_RHYTHM = "bound, in the same rhythm"
_BOUND = "bound, back to back"
_FIRST = "first call"


async def burst_median(
    call: Execute, seconds: float, kind: sandbox_pb2.StartKind.ValueType
) -> float:
    """Call as often as there are spares, rest, and again; return the median of calls of `kind`.

    Raises RuntimeError if none of the calls started as expected.
    """
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not samples:
        await asyncio.sleep(_REST_S)
        others = 0
        for _ in range(SPARES):
            start = time.perf_counter()
            response = await call()
            taken = time.perf_counter() - start
            if response.receipt.start_kind == kind:
                samples.append(taken)
            else:
                others += 1
        if others and not samples and time.perf_counter() > end + 5:
            raise RuntimeError(f"no call started as {sandbox_pb2.StartKind.Name(kind)}")
    return statistics.median(samples)


async def _latency(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s * 2
    async with stage.daemon() as daemon, stage.daemon("--ahead-runners", "0") as plain:
        digest = await daemon.push(guests.echo())
        await plain.push(guests.echo())
        request = requests.bytes_call(digest, "echo", INPUT, fresh=True)
        fresh, spare = call_of(daemon, request), call_of(plain, request)
        bound = call_of(daemon, requests.bytes_call(digest, "echo", INPUT))
        for _ in range(2):
            await fresh()
        yield Point(
            [
                _burst(_FRESH, fresh, seconds, sandbox_pb2.START_KIND_LOADED),
                _burst(_FRESH_SPARE, spare, seconds, sandbox_pb2.START_KIND_SPARE),
                *_bound_sides(bound, seconds),
            ]
        )
    yield Note(
        f"Bursts of {SPARES} calls, {_REST_S * 1000:.0f} ms apart. A module that is called in a "
        f"process of its own again and again has up to {SPARES} of them bound ahead "
        "(`--ahead-runners`); one that is called so now and then takes a spare, which has loaded "
        "nothing."
    )


def _burst(name: str, call: Execute, seconds: float, kind: sandbox_pb2.StartKind.ValueType) -> Side:
    return Side(name, lambda: burst_median(call, seconds, kind))


def _bound_sides(bound: Execute, seconds: float) -> list[Side]:
    return [
        _burst(_BOUND_RHYTHM, bound, seconds, sandbox_pb2.START_KIND_REUSED),
        sides.latency(_BOUND, bound, seconds / 4),
    ]


async def _throughput(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s * 2
    async with stage.daemon() as daemon, fork_server_process() as forks:
        digest = await daemon.push(guests.echo())
        fresh = calls(daemon, requests.bytes_call(digest, "echo", INPUT, fresh=True), IN_FLIGHT)

        async def fresh_calls() -> float:
            # The pool is left as it was found: no forks for spares while the other side measures.
            found = await throughput(fresh, seconds)
            await daemon.wait_for_spares(SPARES)
            return found

        yield Point(
            [Side("FRESH", fresh_calls), Side("bare fork and exit", lambda: forks(seconds))]
        )
    yield Note(
        "Bare fork and exit: a process preloaded as the zygote is, in namespaces of its own, forks "
        "children that end at once and reaps them, one after the other."
    )


async def _first_call(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s * 2
    async with stage.daemon() as daemon:
        first, bound = await _variants(daemon, _VARIANTS)
        yield Point(
            [
                _burst(_FIRST, first, seconds, sandbox_pb2.START_KIND_SPARE),
                *_bound_sides(bound, seconds),
            ]
        )
    yield Note(
        f"{_VARIANTS} modules of {_MODULE_BYTES // 1000} KB of code each, all compiled, are called "
        "in turn: none is bound to a runner when its turn comes. A spare is, as in ordinary use."
    )


async def _variants(daemon: Daemon, count: int) -> tuple[Execute, Execute]:
    """Push variants of a module; return calls of each in turn, and of one more that stays bound."""
    wasm = guests.code_module(_MODULE_BYTES)
    digests = [await daemon.push(guests.variant(wasm, number)) for number in range(count + 1)]
    first = in_turn([call_of_digest(daemon, digest) for digest in digests[1:]])
    return first, call_of_digest(daemon, digests[0])


def in_turn(calls_of_each: Sequence[Execute]) -> Execute:
    """Return a callable that makes another one of these calls each time."""
    turns = itertools.cycle(calls_of_each)

    async def next_one() -> sandbox_pb2.ExecuteResponse:
        return await next(turns)()

    return next_one


def call_of_digest(daemon: Daemon, digest: str, *, fresh: bool = False) -> Execute:
    """Return a callable that calls `f` of a module."""
    return call_of(daemon, requests.typed_call(digest, "f", 1, fresh=fresh))


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "fresh-latency",
            "A process of its own for every call, while spares last",
            SECTION,
            "s",
            _latency,
            [
                Ratio("p50 of FRESH, spares at hand / bound", _FRESH, _BOUND_RHYTHM, at_most(1.3)),
                Ratio("the same / bound, back to back", _FRESH, _BOUND),
                Ratio("p50 of FRESH, nothing bound ahead / bound", _FRESH_SPARE, _BOUND_RHYTHM),
            ],
        ),
        Figure(
            "fresh-throughput",
            f"A process of its own for every call, {IN_FLIGHT} in flight",
            SECTION,
            "/s",
            _throughput,
            [
                Ratio(
                    "FRESH calls per second / bare fork and exit of the zygote",
                    "FRESH",
                    "bare fork and exit",
                    at_least(0.5),
                )
            ],
        ),
        Figure(
            "first-call",
            "First call of a compiled module of 100 KB",
            SECTION,
            "s",
            _first_call,
            [
                Ratio("first call of a 100 KB module / bound p50", _FIRST, _BOUND, at_most(2.75)),
                Ratio("the same / bound, in the same rhythm", _FIRST, _BOUND_RHYTHM),
            ],
        ),
    ]
