"""Every hostile row twice, as `make hostile` does twenty times."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import psutil
from tests.conftest import DaemonProcess
from tests.hostile.harness import DAEMON_ARGUMENTS, Bench, act, run
from tests.hostile.run import ROWS, bugs, line

TIMES = 2
LARGE_REQUESTS = 16
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
    million = next(row for row in ROWS if row.name == "a million arguments")
    with start_daemon() as daemon:
        async with daemon.aio_channel() as channel:
            bench = Bench(daemon, channel)
            peak = 0
            for _ in range(LARGE_REQUESTS):
                await act(bench, million)
                peak = max(peak, psutil.Process(daemon.pid).memory_info().rss)
    # Each one costs some 20 MiB while it is looked at; kept, they were a gigabyte.
    assert peak < LARGE_REQUESTS_BYTES
