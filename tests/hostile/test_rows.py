"""Every hostile row twice, as `make hostile` does twenty times."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import psutil
from tests.conftest import DaemonProcess
from tests.hostile.clients import request
from tests.hostile.harness import DAEMON_ARGUMENTS, Bench, Row, act, run
from tests.hostile.run import ROWS, bugs, line

from sandboxd.v1 import call_pb2

TIMES = 2
LARGE_REQUESTS = 64
LARGE_REQUESTS_BYTES = 240 * 1024 * 1024


class Start(Protocol):
    def __call__(self, *arguments: str) -> AbstractContextManager[DaemonProcess]: ...


def test_the_rows_have_different_names() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


async def test_every_row_has_its_outcome_each_time_and_the_supervisor_stays_as_it_was(
    start_daemon: Start,
) -> None:
    with start_daemon(*DAEMON_ARGUMENTS) as daemon:
        findings, before, after = await run(daemon, ROWS, TIMES)
        found_bugs = bugs(daemon.log)
    assert [line(finding) for finding in findings if not finding.kept] == []
    assert after.grown(before) == []
    assert found_bugs == []


async def test_refused_requests_are_let_go_at_once_and_do_not_wait_for_the_garbage_collector(
    start_daemon: Start,
) -> None:
    large = Row(
        "a large request for a module that is not there",
        "NOT_FOUND/MODULE_NOT_FOUND",
        request(
            digest="sha256:" + "0" * 64,
            bytes=call_pb2.BytesCall(export="f", input=bytes(3_900_000)),
        ),
    )
    with start_daemon() as daemon:
        async with daemon.aio_channel() as channel:
            bench = Bench(daemon, channel)
            peak = 0
            for _ in range(LARGE_REQUESTS):
                assert await act(bench, large) == large.expected
                peak = max(peak, psutil.Process(daemon.pid).memory_info().rss)
    # Each one costs some 8 MiB while it is looked at; kept, they would be half a gigabyte.
    assert peak < LARGE_REQUESTS_BYTES
