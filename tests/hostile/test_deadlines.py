"""Sixty hung runs of six kinds end at their deadline; `make soak-deadlines` makes a thousand."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tests.conftest import DaemonProcess
from tests.hostile import deadlines

RUNS = 60
# The promise is 50 ms beyond the grace; a machine that runs other tests beside may add this.
BUSY_MACHINE_MS = 400.0


class Start(Protocol):
    def __call__(self, *arguments: str) -> AbstractContextManager[DaemonProcess]: ...


async def test_hung_runs_of_six_kinds_end_at_their_deadline_and_none_is_lost(
    start_daemon: Start,
) -> None:
    with start_daemon("--max-runners", "8") as daemon:
        runs = await deadlines.soak(daemon, RUNS)
    assert len(runs) == RUNS
    assert deadlines.lost(runs) == []
    late = [run.receipt_ms for run in runs if run.receipt_ms is not None]
    allowed_ms = deadlines.GRACE_MS + deadlines.PROMISED_MS + BUSY_MACHINE_MS
    assert max(late) < allowed_ms, deadlines.table(runs)
