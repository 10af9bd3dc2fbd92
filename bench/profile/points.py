"""The boundaries of a call's steps in the supervisor, and what lies between them.

A call of a module that is bound makes the marks of `ORDER`, in this order; a call that makes others
is left out. The product knows nothing of it: if it changes, this table follows.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.profile.marks import Point

_S = "sandboxd.supervisor"
SUPERVISOR = (
    Point(f"{_S}.services.sandbox", "decode", "decode", "decoded"),
    Point(f"{_S}.execution", "Executor.execute", "execute", "executed"),
    Point(f"{_S}.execution", "job_frame", "frame", "framed"),
    Point(f"{_S}.runner", "Runner.begin", "", "begun"),
    Point(f"{_S}.child", "Child._on_readable", "readable"),
    Point(f"{_S}.runner", "Runner._give", "", "given"),
    Point(f"{_S}.watchdog", "Watchdog.disarm", "resumed"),
    Point(f"{_S}.outbox", "Outbox.take", "take", "taken"),
    Point(f"{_S}.response", "Responder.respond", "respond", "responded"),
)
ECHO = (Point("bench.baselines.echo_server", "Echo.Execute", "execute", "executed"),)

SENT, RECEIVED = "sent", "received"
"""The client's marks around its call."""


class Step(NamedTuple):
    """What lies between two marks that follow each other."""

    until: str
    """The mark that ends it; it begins with the mark before."""
    says: str
    where: str


OWN = "supervisor"
"""Where steps are that are the supervisor's own code and nothing else."""
STEPS = (
    Step("decode", "the request is sent and comes in", "client, gRPC"),
    Step("decoded", "decoded; its bytes are kept", OWN),
    Step("execute", "gRPC begins the handler", "gRPC"),
    Step("frame", "checked; artifact and runner found; processor clock read", OWN),
    Step("framed", "frame made", OWN),
    Step("begun", "frame written", "supervisor, kernel"),
    Step(
        "readable",
        "alarm set; *switch to the runner*; its work; *switch back*; the loop turns",
        "supervisor, kernel, runner",
    ),
    Step("given", "answer read, checked, decoded", OWN),
    Step("resumed", "the call's task is woken: one turn of the loop", OWN),
    Step("take", "alarm dropped; processor clock and peak memory read", OWN),
    Step("taken", "outbox read", OWN),
    Step("respond", "what lies between", OWN),
    Step("responded", "response and receipt put together", OWN),
    Step("executed", "runner given back; outcome counted", OWN),
    Step(RECEIVED, "the answer is sent and comes in", "gRPC, client"),
)
ORDER = tuple(step.until for step in STEPS[:-1])
# Of the echo server, whose steps are its transport's.
ECHO_STEPS = (
    Step("execute", "the request is sent, comes in and is decoded", "client, gRPC"),
    Step("executed", "the handler", "echo server"),
    Step(RECEIVED, "the answer is encoded, sent and comes in", "gRPC, client"),
)
ECHO_ORDER = tuple(step.until for step in ECHO_STEPS[:-1])


def names(points: tuple[Point, ...]) -> list[str]:
    """Return the names of the marks that these points make."""
    return [name for point in points for name in (point.begin, point.end) if name]
