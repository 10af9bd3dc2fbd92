"""Every hostile row twice, as `make hostile` does twenty times."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tests.conftest import DaemonProcess
from tests.hostile.harness import DAEMON_ARGUMENTS, run
from tests.hostile.run import ROWS, bugs, line

TIMES = 2


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
