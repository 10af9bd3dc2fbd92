"""Where the time of a call goes, and what part of it would go as well with warm caches."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import AsyncGenerator

import wasmtime

from bench import guests, sides
from bench.figure import Figure, Note, Part, Point, Ratio, Settings
from bench.figures.processor import Shares
from bench.figures.setting import ECHO, INPUT, Execute, bound_module, call_of
from bench.stage import Stage
from sandboxd.runner.engine import build_engines
from sandboxd.runner.guest import Guest
from sandboxd.runner.outbox import REGIONS_OFFSET_BYTES, Outbox
from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

SECTION = "Calls"
_WHOLE = "the whole call, at the client"
_AROUND = "transport and supervisor, both ways"
_BETWEEN = "between supervisor and runner: frames, and two switches of process"
_INSIDE = "in the runner"
_WARM = "what the runner does, done again and again in one process"
_WARM_AFTER = "what it does after its answer, likewise"
_MIB = 1 << 20


class _Rehearsed:
    """A runner's work without its process: caches stay warm, and nobody waits for anybody."""

    def __init__(self, wasm: bytes) -> None:
        engine = build_engines().plain
        self._fd = os.memfd_create("bench-outbox", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, REGIONS_OFFSET_BYTES + 4 * _MIB)
        artifact = bytes(wasmtime.Module(engine, wasm).serialize())
        self._guest = Guest(engine, artifact, False, Outbox(self._fd))
        call = call_pb2.BytesCall(export="echo", input=INPUT)
        job = runner_pb2.Execute(
            request=sandbox_pb2.ExecuteRequest(bytes=call),
            memory_bytes=64 * _MIB,
            table_elements=10_000,
            output_bytes=_MIB,
        )
        self._frame = runner_pb2.RunnerCommand(execute=job).SerializeToString()

    def spend(self, seconds: float) -> tuple[float, float]:
        """Return seconds per call before the answer, and after it: medians."""
        before, after = [], []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            command = runner_pb2.RunnerCommand.FromString(self._frame)
            result = self._guest.execute(command.execute)
            runner_pb2.RunnerReply(result=result).SerializeToString()
            answered = time.perf_counter()
            self._guest.prepare()
            before.append(answered - started)
            after.append(time.perf_counter() - answered)
        return statistics.median(before), statistics.median(after)


async def _parts_of(call: Execute, seconds: float) -> dict[str, float]:
    whole, run, inside = [], [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        receipt = (await call()).receipt
        whole.append(time.perf_counter() - started)
        run.append(receipt.run_time_ns / 1e9)
        inside.append(receipt.self_reported.run_time_ns / 1e9)
    middle = [statistics.median(times) for times in (whole, run, inside)]
    return {
        _WHOLE: middle[0],
        _AROUND: middle[0] - middle[1],
        _BETWEEN: middle[1] - middle[2],
        _INSIDE: middle[2],
    }


async def _anatomy(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s
    rehearsed = _Rehearsed(guests.echo())
    async with bound_module(stage) as it:
        ours = call_of(it.daemon, it.request)

        async def through_daemon() -> dict[str, float]:
            return await _parts_of(ours, seconds)

        async def warm() -> dict[str, float]:
            before, after = rehearsed.spend(seconds)
            return {_WARM: before, _WARM_AFTER: after}

        yield Point(
            [
                *Shares([_WHOLE, _AROUND, _BETWEEN, _INSIDE], through_daemon).sides(),
                sides.latency(ECHO, call_of(it.echo, it.request), seconds),
                *Shares([_WARM, _WARM_AFTER], warm).sides(),
            ]
        )
    yield Note(
        "One call after the other. Parts are differences between medians of three clocks: the "
        "client's, the receipt's run_time_ns, and its self_reported.run_time_ns."
    )


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "call-anatomy",
            "Where the time of one call goes",
            SECTION,
            "s",
            _anatomy,
            [Ratio("in the runner / the same with warm caches", _INSIDE, _WARM)],
        )
    ]
