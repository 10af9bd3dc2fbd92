"""A bound module against a bare echo, and against what one would use without sandboxd."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from bench import guests, sides
from bench.baselines import extism_plugin, new_process
from bench.baselines.in_process import InProcess
from bench.baselines.new_process import NewProcess
from bench.baselines.process_pool import process_pool
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side, absent, at_least, at_most
from bench.figures.setting import (
    ECHO,
    ECHO_DAEMON_OPTIONS,
    INPUT,
    SANDBOXD,
    Setting,
    bound_module,
    call_of,
    calls,
)
from bench.stage import Stage, completed
from bench.timing import throughput
from sandboxd.v1 import sandbox_pb2

IN_FLIGHT = 32
# As many processes at once as keep the machine busy, and no more: starting them is all CPU.
PROCESSES_AT_ONCE = 4
# A block of them takes seconds, and its ratio is far from any doubt.
_PROCESS_ROUNDS = 6
SECTION = "Calls"
# What a client that has thousands of small calls might send; a tenth of a second's work.
_BATCH_ITEMS = 500
_BATCHES_IN_FLIGHT = 2
_PER_ITEM = "ExecuteBatch, per item"
_POOL = "multiprocessing pool"
_PROCESS = "new process per call"
_BUBBLEWRAP = "new process in bubblewrap"
_IN_PROCESS = "wasmtime in-process, fresh instance"
_EXTISM_FRESH = "Extism in-process, fresh plugin"
_EXTISM_KEPT = "Extism in-process, kept plugin"


async def _latency(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    module = InProcess(guests.echo())
    async with bound_module(stage) as it:
        ours, echo, like_daemon = (
            call_of(endpoint, it.request)
            for endpoint in (it.daemon, it.echo, it.echo_daemon_options)
        )
        with process_pool(guests.echo()) as pool:
            pool.call("echo", INPUT)
            yield Point(
                [
                    sides.latency(SANDBOXD, ours, seconds),
                    sides.latency(ECHO, echo, seconds),
                    sides.latency(ECHO_DAEMON_OPTIONS, like_daemon, seconds),
                    sides.latency_sync(_POOL, lambda: pool.call("echo", INPUT), seconds),
                    sides.latency_sync(
                        _IN_PROCESS, lambda: module.bytes_call("echo", INPUT), seconds
                    ),
                    *_extism_sides(seconds),
                ]
            )


def _extism_sides(seconds: float) -> list[Side]:
    extism, why = extism_plugin.load()
    if extism is None:
        return [absent(_EXTISM_FRESH, why), absent(_EXTISM_KEPT, why)]
    fresh, kept = extism_plugin.fresh_plugin(extism), extism_plugin.kept_plugin(extism)
    assert fresh(INPUT) == kept(INPUT) == INPUT
    return [
        sides.latency_sync(_EXTISM_FRESH, lambda: fresh(INPUT), seconds),
        sides.latency_sync(_EXTISM_KEPT, lambda: kept(INPUT), seconds),
    ]


async def _throughput(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    async with bound_module(stage) as it:
        ours, echo, like_daemon = (
            calls(endpoint, it.request, IN_FLIGHT)
            for endpoint in (it.daemon, it.echo, it.echo_daemon_options)
        )
        with process_pool(guests.echo()) as pool:
            yield Point(
                [
                    sides.rate(SANDBOXD, ours, seconds),
                    sides.rate(ECHO, echo, seconds),
                    sides.rate(ECHO_DAEMON_OPTIONS, like_daemon, seconds),
                    sides.rate(
                        _POOL, [lambda: pool.call_async("echo", INPUT)] * IN_FLIGHT, seconds
                    ),
                ]
            )


async def _processes(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    async with contextlib.AsyncExitStack() as stack:
        it = await stack.enter_async_context(bound_module(stage))
        directory = await stack.enter_async_context(stage.directory())
        artifact = new_process.compile_to(guests.echo(), directory / "echo.cwasm")
        ours = calls(it.daemon, it.request, IN_FLIGHT)
        alone = NewProcess(artifact, "echo")
        assert await alone.call(INPUT) == INPUT
        yield Point(
            [
                sides.rate(SANDBOXD, ours, seconds),
                _batch_side(it, seconds),
                sides.rate(_PROCESS, [lambda: alone.call(INPUT)] * PROCESSES_AT_ONCE, seconds),
                _bubblewrap_side(
                    NewProcess(artifact, "echo", new_process.bubblewrap()[0]), seconds
                ),
            ],
            rounds=_PROCESS_ROUNDS,
        )
        yield Note(
            f"sandboxd with {IN_FLIGHT} calls in flight, processes {PROCESSES_AT_ONCE} at a time: "
            "the most that either does. The new process loads a module that was compiled before."
        )


def _bubblewrap_side(wrapped: NewProcess, seconds: float) -> Side:
    why = new_process.bubblewrap()[1]
    if why:
        return absent(_BUBBLEWRAP, why)
    return sides.rate(_BUBBLEWRAP, [lambda: wrapped.call(INPUT)] * PROCESSES_AT_ONCE, seconds)


def _batch_side(it: Setting, seconds: float) -> Side:
    batch = sandbox_pb2.ExecuteBatchRequest(requests=[it.request] * _BATCH_ITEMS)
    execute_batch = it.daemon.stub().ExecuteBatch

    async def one_batch() -> None:
        ended = 0
        async for message in execute_batch(batch):
            for result in message.results:
                completed(result.response)
                ended += 1
        assert ended == _BATCH_ITEMS

    async def items_per_second() -> float:
        return _BATCH_ITEMS * await throughput([one_batch] * _BATCHES_IN_FLIGHT, seconds)

    return Side(_PER_ITEM, items_per_second)


async def _batch(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    async with bound_module(stage) as it:
        yield Point(
            [
                _batch_side(it, seconds),
                sides.rate(ECHO, calls(it.echo, it.request, IN_FLIGHT), seconds),
                sides.rate(SANDBOXD, calls(it.daemon, it.request, IN_FLIGHT), seconds),
            ]
        )
        yield Note(
            f"Batches of {_BATCH_ITEMS} calls, {_BATCHES_IN_FLIGHT} of them in flight, as many "
            f"calls of each under way as the daemon chooses; {ECHO} and {SANDBOXD} with "
            f"{IN_FLIGHT} single calls in flight. The client decodes every result."
        )


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "call-latency",
            "One call after the other: 64 bytes in, 64 bytes out",
            SECTION,
            "s",
            _latency,
            [
                Ratio("p50 of Execute, bound module / bare echo", SANDBOXD, ECHO, at_most(1.3)),
                Ratio("the same / echo with the daemon's options", SANDBOXD, ECHO_DAEMON_OPTIONS),
                Ratio("the same / multiprocessing pool", SANDBOXD, _POOL),
                Ratio("the same / wasmtime in-process", SANDBOXD, _IN_PROCESS),
                Ratio("the same / Extism, fresh plugin", SANDBOXD, _EXTISM_FRESH),
            ],
        ),
        Figure(
            "call-throughput",
            f"{IN_FLIGHT} calls in flight: 64 bytes in, 64 bytes out",
            SECTION,
            "/s",
            _throughput,
            [
                Ratio("throughput, 32 in flight / bare echo", SANDBOXD, ECHO, at_least(0.7)),
                Ratio("the same / echo with the daemon's options", SANDBOXD, ECHO_DAEMON_OPTIONS),
                Ratio("the same / multiprocessing pool", SANDBOXD, _POOL),
            ],
        ),
        Figure(
            "batch-throughput",
            "Many calls in one message",
            SECTION,
            "/s",
            _batch,
            [
                Ratio(
                    "ExecuteBatch, items per second / bare unary echo",
                    _PER_ITEM,
                    ECHO,
                    at_least(2),
                ),
                Ratio("the same / Execute", _PER_ITEM, SANDBOXD),
            ],
        ),
        Figure(
            "process-throughput",
            "Against a new Python process with wasmtime for every call",
            SECTION,
            "/s",
            _processes,
            [
                Ratio("throughput / new process per call", SANDBOXD, _PROCESS, at_least(100)),
                Ratio("throughput / the same in bubblewrap", SANDBOXD, _BUBBLEWRAP, at_least(150)),
                Ratio("calls of ExecuteBatch / new process per call", _PER_ITEM, _PROCESS),
                Ratio("calls of ExecuteBatch / the same in bubblewrap", _PER_ITEM, _BUBBLEWRAP),
            ],
        ),
    ]
