"""What each thread of a process has used, from /proc/PID/task; see proc(5)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MAIN = "main thread"
QUEUE = "gRPC's completion queue"
ENGINE = "gRPC's event engine"
OTHERS = "others"
ROLES = (MAIN, QUEUE, ENGINE, OTHERS)


class Account(NamedTuple):
    """Of a thread, or a sum of them: times in seconds, and switches away from it.

    `waited_s` is how long it could have run and had no processor. A voluntary switch is a wait for
    something, an involuntary one a processor that another thread was given.
    """

    ran_s: float = 0.0
    waited_s: float = 0.0
    voluntary: float = 0.0
    involuntary: float = 0.0

    def plus(self, other: Account, times: float = 1.0) -> Account:
        """Add another one, `times` over."""
        return Account(*(one + times * two for one, two in zip(self, other, strict=True)))

    def per(self, count: int) -> Account:
        """Divide by a number of calls."""
        return Account(*(value / count for value in self))


class Thread(NamedTuple):
    """A thread: what it is for (one of ROLES), and its account since it began."""

    role: str
    account: Account


def read(pid: int) -> dict[int, Thread]:
    """Return the threads of a process that runs Python and a gRPC server, by thread id."""
    found: dict[int, Thread] = {}
    main_name = _name((Path(f"/proc/{pid}") / "status").read_text())
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end in between.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (task / "status").read_text()
            account = parse(status, (task / "schedstat").read_text())
            thread_id = int(task.name)
            role = role_of(_name(status), main_name, is_main=thread_id == pid)
            found[thread_id] = Thread(role, account)
    return found


def parse(status: str, schedstat: str) -> Account:
    """Parse the text of a thread's `status` and `schedstat`."""
    fields = _fields(status)
    ran_ns, waited_ns, _ = map(int, schedstat.split())
    return Account(
        ran_ns / 1e9,
        waited_ns / 1e9,
        int(fields["voluntary_ctxt_switches"]),
        int(fields["nonvoluntary_ctxt_switches"]),
    )


def role_of(name: str, main_name: str, *, is_main: bool) -> str:
    """Tell what a thread is for. Those that Python starts have the main thread's name.

    `grpc.aio` starts one, which waits for completions; a worker for blocking work sleeps here.
    """
    if is_main:
        return MAIN
    if name == main_name:
        return QUEUE
    return ENGINE if name.startswith("event_engine") else OTHERS


def spent(before: Mapping[int, Thread], after: Mapping[int, Thread]) -> dict[str, Account]:
    """Sum up by role what threads used between two readings; one that ended is not counted."""
    sums = dict.fromkeys(ROLES, Account())
    for thread_id, (role, account) in after.items():
        earlier = before.get(thread_id)
        grown = account if earlier is None else account.plus(earlier.account, -1.0)
        sums[role] = sums[role].plus(grown)
    return sums


def _name(status: str) -> str:
    return _fields(status)["Name"]


def _fields(status: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}
