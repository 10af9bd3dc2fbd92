"""More tenants: each has pushed its own copy of a module, and has a runner of its own."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence

from bench import guests, requests, tenants
from bench.figure import Axis, Figure, Note, Part, Point, Ratio, Settings, Side, absent, at_most
from bench.figures.fresh import SPARES, in_turn
from bench.figures.setting import INPUT, Execute
from bench.stage import Daemon, Metadata, Stage, completed
from bench.timing import median_async
from sandboxd.v1 import admin_pb2, sandbox_pb2

_TENANTS = (1, 10, 100)
# More than the pool has runners, too.
_QUICK_TENANTS = (1, 40)
_MANY = "one calls, the others exist"
_ONE = "one exists (the reference)"
_IN_TURN = "all call in turn"
_AS_IT_IS = "one exists, the daemon as it is"
_REUSED = sandbox_pb2.START_KIND_REUSED


async def _parts(stage: Stage) -> AsyncGenerator[Part, None]:
    seconds = stage.settings.block_s / 4
    program = tenants.PROGRAM
    async with (
        contextlib.AsyncExitStack() as others,
        stage.daemon(program=program) as reference,
        stage.daemon(program=program) as crowded,
    ):
        [one] = await _arrive(reference, [_metadata(0)])
        many: list[Execute] = []
        for count in _counts(stage.settings):
            many += await _arrive(crowded, map(_metadata, range(len(many), count)))
            await _check_apart(crowded, count)
            found = [
                _bound(_MANY, many[0], seconds),
                _bound(_ONE, one, seconds),
                _all(crowded, many, seconds),
            ]
            if count == 1:
                found.append(await _as_it_is(stage, others, seconds))
            yield Point(found, count)
    yield Note(
        "Clients cannot choose a tenant: the daemon has one, which is part of every key. Measured "
        "is what lies behind it: the real daemon, started by bench/tenants.py so that its services "
        f"take the tenant from the metadata of a call (`{tenants.KEY}`) where they have a constant "
        "else. The reference is a second one with one tenant, measured in turn with the first; "
        "what the launcher itself costs is the ratio to the daemon as it is, without metadata. "
        "What identities will cost (telling who calls, quotas) is not in it."
    )
    yield Note(
        "Each tenant has a connection of its own, and has pushed and called its own copy of the "
        "same module, which is stored and compiled for each. Each has a runner of its own up to "
        f"the capacity of the pool (32 by default, of which {SPARES} stay spare); beyond it the "
        "longest idle runner makes room: called in turn, every call is then a first one."
    )


def _counts(settings: Settings) -> tuple[int, ...]:
    return _QUICK_TENANTS if settings.quick else _TENANTS


async def _as_it_is(stage: Stage, stack: contextlib.AsyncExitStack, seconds: float) -> Side:
    """The daemon without the launcher, which lives as long as the stack."""
    if stage.settings.quick:
        return absent(_AS_IT_IS, "a quick run leaves it out")
    daemon = await stack.enter_async_context(stage.daemon())
    [call] = await _arrive(daemon, [()])
    return _bound(_AS_IT_IS, call, seconds)


def _metadata(number: int) -> Metadata:
    return tenants.metadata(f"tenant-{number}")


async def _arrive(daemon: Daemon, arriving: Iterable[Metadata]) -> list[Execute]:
    """Let new tenants push the module and call it twice; return a call of each.

    Raises RuntimeError if one is given a runner that has served before, or a second one.
    """
    found: list[Execute] = []
    for metadata in arriving:
        digest = await daemon.push(guests.echo(), metadata)
        call = _call_of(daemon, requests.bytes_call(digest, "echo", INPUT), metadata)
        kinds = [(await call()).receipt.start_kind for _ in range(2)]
        if kinds[0] == _REUSED or kinds[1] != _REUSED:
            raise RuntimeError(f"the first two calls of {metadata} started as {_names(kinds)}")
        found.append(call)
    return found


def _call_of(daemon: Daemon, request: requests.Request, metadata: Metadata) -> Execute:
    execute = daemon.stub().Execute

    async def call() -> sandbox_pb2.ExecuteResponse:
        return completed(await execute(request, metadata=metadata))

    return call


# --- is it what it says? --------------------------------------------------------------------------


async def _check_apart(daemon: Daemon, count: int) -> None:
    await daemon.wait_for_spares(SPARES)
    check_apart(await daemon.status(), count)


def check_apart(status: admin_pb2.GetStatusResponse, count: int) -> None:
    """Raise RuntimeError unless `count` tenants have a module, and a runner each, if there is room.

    There is room for as many runners as the pool has, less those that stay spare.
    """
    room = status.pool.capacity - SPARES
    owners = Counter(
        runner.tenant for runner in status.runners if runner.state == admin_pb2.RUNNER_STATE_IDLE
    )
    compiled = status.artifacts.compiled_total
    if status.modules != count or compiled != count:
        raise RuntimeError(f"{count} tenants: {status.modules} modules, {compiled} were compiled")
    if len(owners) < min(count, room) or max(owners.values()) > 1:
        raise RuntimeError(f"{count} tenants have runners so: {dict(owners)}")


async def _median(call: Execute, seconds: float, *, reused: bool) -> float:
    """Median seconds of calls, most of which have to find a runner of theirs, or none."""
    kinds: list[sandbox_pb2.StartKind.ValueType] = []

    async def noted() -> None:
        kinds.append((await call()).receipt.start_kind)

    taken = await median_async(noted, seconds)
    others = [kind for kind in kinds if (kind == _REUSED) is not reused]
    if 2 * len(others) >= len(kinds):
        raise RuntimeError(f"most of {len(kinds)} calls started as {_names(set(others))}")
    return taken


def _names(kinds: Iterable[sandbox_pb2.StartKind.ValueType]) -> str:
    return ", ".join(map(sandbox_pb2.StartKind.Name, kinds))


# --- sides ----------------------------------------------------------------------------------------


def _bound(name: str, call: Execute, seconds: float) -> Side:
    return Side(name, lambda: _median(call, seconds, reused=True))


def _all(daemon: Daemon, many: Sequence[Execute], seconds: float) -> Side:
    """All in turn. The pool is left at rest, with the first one's runner: it is measured, too."""
    turns = in_turn(many)

    async def block() -> float:
        pool = (await daemon.status()).pool
        taken = await _median(turns, seconds, reused=len(many) <= pool.capacity - SPARES)
        await many[0]()
        await daemon.wait_for_spares(SPARES)
        return taken

    return Side(_IN_TURN, block)


def figure(section: str, settings: Settings) -> Figure:
    """Return the figure, for this section of the report."""
    most = _counts(settings)[-1]
    return Figure(
        "tenants",
        f"Tenants, from 1 to {most}",
        section,
        "s",
        _parts,
        [
            Ratio(
                f"bound p50 with {most} tenants / with one",
                _MANY,
                _ONE,
                at_most(1.1),
                at=most,
                alone=True,
            ),
            Ratio("bound p50, so many tenants / one", _MANY, _ONE),
            Ratio("bound p50 by this launcher / as it is", _ONE, _AS_IT_IS, at=1, alone=True),
        ],
        Axis("tenants"),
    )
