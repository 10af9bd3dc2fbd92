"""Healthy calls while others hang and are killed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator

from bench import guests, requests
from bench.figure import Figure, Note, Part, Point, Ratio, Settings, Side, at_most
from bench.figures.setting import INPUT, Execute
from bench.stage import Stage, completed
from bench.timing import percentile
from sandboxd.v1 import call_pb2, sandbox_pb2

SECTION = "Hangs"
# Calls arrive at fixed times, whatever became of those before: a client that waits for its answer
# would slow down with the daemon and hide what it measures.
_CALLS_PER_S = 200
_HANG_EVERY = 10
_WALL_MS = 200
_HEALTHY = "no call hangs"
_KILLED = "10 % sleep in a host call and are killed"
_INTERRUPTED = "10 % loop and are interrupted"


async def _hangs(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = 0.6 if stage.settings.quick else 2.5
    async with stage.daemon() as daemon:
        digest = await daemon.push(guests.sleeper())
        execute = daemon.stub().Execute
        limits = sandbox_pb2.Limits(wall_time_ms=_WALL_MS)
        sleep = sandbox_pb2.ExecuteRequest(
            digest=digest,
            limits=limits,
            typed=call_pb2.TypedCall(export="sleep", args=[call_pb2.Value(i64=60_000)]),
        )
        loop = requests.typed_call(digest, "spin", limits=limits)
        request = requests.bytes_call(digest, "echo", INPUT)

        async def healthy() -> sandbox_pb2.ExecuteResponse:
            return completed(await execute(request))

        ends: Counter[str] = Counter()

        async def killed() -> sandbox_pb2.ExecuteResponse:
            return _stopped(await execute(sleep), "slept", ends)

        async def interrupted() -> sandbox_pb2.ExecuteResponse:
            return _stopped(await execute(loop), "looped", ends)

        yield Point(
            [
                Side(_HEALTHY, lambda: _p99(healthy, None, seconds)),
                Side(_KILLED, lambda: _p99(healthy, killed, seconds)),
                Side(_INTERRUPTED, lambda: _p99(healthy, interrupted, seconds)),
            ],
            rounds=min(8, stage.settings.rounds),
        )
    yield Note(
        f"{_CALLS_PER_S} calls arrive per second, at fixed times. Every {_HANG_EVERY}th hangs, in "
        f"the same module, until its {_WALL_MS} ms are over. The sleep is in a host call, where "
        "only SIGKILL reaches it, 50 ms later. Where none hangs, every 10th is left out. How those "
        f"that hung ended: {', '.join(f'{count:,} {end}' for end, count in sorted(ends.items()))}."
    )


def _stopped(
    response: sandbox_pb2.ExecuteResponse, did: str, ends: Counter[str]
) -> sandbox_pb2.ExecuteResponse:
    """Count how it ended: on a machine that is too busy, an interrupt can come too late."""
    if not response.HasField("deadline_exceeded"):
        raise RuntimeError(f"the hanging call did not meet its deadline: {response}")
    method = sandbox_pb2.StopMethod.Name(response.deadline_exceeded.stop.method)
    ends[f"{did} and were {method.removeprefix('STOP_METHOD_').lower()}"] += 1
    return response


async def _p99(healthy: Execute, hanging: Execute | None, seconds: float) -> float:
    """Return the 99th percentile of the healthy calls, in seconds."""
    samples: list[float] = []

    async def timed() -> None:
        start = time.perf_counter()
        await healthy()
        samples.append(time.perf_counter() - start)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * _CALLS_PER_S)):
            await asyncio.sleep(start + number / _CALLS_PER_S - time.perf_counter())
            if number % _HANG_EVERY:
                group.create_task(timed())
            elif hanging is not None:
                group.create_task(_consume(hanging))
    return percentile(samples, 0.99)


async def _consume(call: Execute) -> None:
    await call()


def figures(settings: Settings) -> list[Figure]:
    """See the module."""
    return [
        Figure(
            "hangs",
            "99th percentile of healthy calls while 10 % hang",
            SECTION,
            "s",
            _hangs,
            [
                Ratio(
                    "healthy p99 while 10 % hang and are killed / without",
                    _KILLED,
                    _HEALTHY,
                    at_most(2),
                ),
                Ratio("the same, interrupted in a loop", _INTERRUPTED, _HEALTHY),
            ],
        )
    ]
