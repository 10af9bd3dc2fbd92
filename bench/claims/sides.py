"""Sides of one claim: each is set up, its answer is checked, and only then it may be timed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack

from bench.claims.peer import Peer, Repeated, peer, spawn
from bench.claims.tools import MissingError
from bench.figure import Point, Side, absent
from bench.stage import Daemon, completed
from bench.timing import median_async, median_sync, samples_async
from sandboxd.v1 import sandbox_pb2

# More rounds would cost a run minutes: a figure here has up to twelve sides.
ROUNDS = 5

EXECUTE = "sandboxd Execute, at the client"
RUNNER = "sandboxd runner, by its own clock"

Block = Callable[[], Awaitable[float]]


class WrongAnswerError(Exception):
    """A side answered, and its answer is not the right one."""

    def __init__(self, side: str, answer: bytes) -> None:
        self.side = side
        self.answer = answer
        super().__init__(f"{side}: wrong answer of {len(answer)} bytes: {answer[:32]!r}")


class Sides:
    """Collects the sides of one point. What this host lacks becomes a side that says so."""

    def __init__(
        self, exits: AsyncExitStack, seconds: float, is_right: Callable[[bytes], bool]
    ) -> None:
        self._exits = exits
        self._seconds = seconds
        self._is_right = is_right
        self._sides: list[Side] = []

    def point(self, rounds: int) -> Point:
        """Return what was collected, to be measured in so many rounds, but no more than here."""
        return Point(self._sides, rounds=min(rounds, ROUNDS))

    def lacks(self, names: Iterable[str], why: str) -> None:
        """Add sides that cannot be measured here."""
        self._sides += [absent(name, why) for name in names]

    async def execute(self, daemon: Daemon, request: sandbox_pb2.ExecuteRequest) -> None:
        """Add Execute of a bound module twice: as the client sees it, and as the runner does."""
        execute = daemon.stub().Execute

        async def call() -> sandbox_pb2.ExecuteResponse:
            return completed(await execute(request))

        async def run_time() -> float:
            times: list[int] = []

            async def noted() -> None:
                times.append((await call()).receipt.self_reported.run_time_ns)

            await samples_async(noted, self._seconds)
            return sorted(times)[len(times) // 2] / 1e9

        await call()  # compiles and binds
        bound = await call()
        assert bound.receipt.start_kind == sandbox_pb2.START_KIND_REUSED, "no runner is bound"
        self._check(EXECUTE, bound.completed.output or bound.stdout)
        self._sides.append(Side(EXECUTE, lambda: median_async(call, self._seconds)))
        self._sides.append(Side(RUNNER, run_time))

    async def peer(self, verbs: dict[str, str], command: Callable[[], Sequence[str]]) -> None:
        """Add a side for each verb of one long-lived peer; `verbs` maps names to verbs."""
        try:
            running = await self._exits.enter_async_context(peer(command()))
        except MissingError as error:
            self.lacks(verbs, str(error))
            return
        self._check(next(iter(verbs)), await running.answer())
        for name, verb in verbs.items():
            self._sides.append(Side(name, await self._repeated(running, verb)))

    def program(
        self, name: str, command: Callable[[], Sequence[str]], decode: Callable[[bytes], bytes]
    ) -> None:
        """Add a program that is started anew for each call; `decode` makes its output an answer."""
        try:
            line = command()
        except MissingError as error:
            self.lacks([name], str(error))
            return
        self._check(name, decode(spawn(line)))
        self._sides.append(Side(name, lambda: median_sync(lambda: spawn(line), self._seconds)))

    async def _repeated(self, running: Peer, verb: str) -> Block:
        repeated = Repeated(running.repeat(verb), self._seconds)
        await repeated.warm_up()
        return repeated.block

    def _check(self, name: str, answer: bytes) -> None:
        if not self._is_right(answer):
            raise WrongAnswerError(name, answer)
