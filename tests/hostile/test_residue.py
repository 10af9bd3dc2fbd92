"""Two hundred calls find no canary of the call before; `make soak-residue` makes ten thousand."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tests.conftest import DaemonProcess
from tests.hostile import residue

CALLS = 200


class Start(Protocol):
    def __call__(self, *arguments: str) -> AbstractContextManager[DaemonProcess]: ...


async def test_no_call_sees_what_the_one_before_it_in_the_process_left(start_daemon: Start) -> None:
    with start_daemon(*residue.ARGUMENTS) as daemon:
        tally = await residue.soak(daemon, CALLS)
    assert tally.breaches == []
    assert tally.calls == CALLS
    # Most calls shared their process with the one before; traps and floods ended theirs.
    assert tally.start_kinds["START_KIND_REUSED"] > CALLS * 0.9
    assert tally.outcomes["trapped:UNREACHABLE"] >= 1
    assert tally.outcomes["limit:OUTPUT"] >= 1


async def test_no_plugin_sees_what_the_call_before_it_left(start_daemon: Start) -> None:
    with start_daemon(*residue.ARGUMENTS) as daemon:
        tally = await residue.soak_plugin(daemon, CALLS)
    assert tally.breaches == []
    assert tally.calls == CALLS
    assert tally.start_kinds["START_KIND_REUSED"] > CALLS * 0.9
    assert tally.outcomes["trapped:UNREACHABLE"] >= 1
