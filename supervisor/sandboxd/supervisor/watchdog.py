"""The one clock: it alone decides that a call's time is up.

A call has one watchdog and the watchdog one alarm. When the deadline passes, the CPU budget is used
up, or the client is gone, it asks the runner to interrupt the guest, and after the grace it kills
the process. Nothing inside the runner is trusted to fire.
"""

from __future__ import annotations

import enum
import os
import time

from sandboxd.supervisor.alarms import Alarms
from sandboxd.supervisor.runner import Runner

# CPU time can run as fast as this many clocks, if a runner that was taken over starts threads.
_CPU_NS_PER_S = 1e9 * (os.cpu_count() or 1)
# The CPU clock is looked at no more often than this.
_MIN_CPU_CHECK_S = 0.001


class StopReason(enum.Enum):
    """Why a call was stopped."""

    DEADLINE = "deadline"
    CPU_TIME = "cpu_time"
    CANCELLED = "cancelled"


class Watchdog:
    """Times one call on one runner.

    Times are seconds of the event loop's clock, which is `time.monotonic`.

    After the end: `reason` is None if the call ended by itself, else why it was stopped;
    `due_at` is when it was due; `killed` is True if the grace was used up.
    """

    __slots__ = (
        "_alarm",
        "_alarms",
        "_base_cpu_ns",
        "_cpu_limit_ns",
        "_deadline_at",
        "_grace_s",
        "_runner",
        "due_at",
        "killed",
        "reason",
    )

    def __init__(
        self,
        alarms: Alarms,
        runner: Runner,
        now: float,
        deadline_at: float,
        cpu_limit_ns: int,
        base_cpu_ns: int,
        grace_s: float,
    ) -> None:
        self._alarms = alarms
        self._runner = runner
        self._deadline_at = deadline_at
        self._cpu_limit_ns = cpu_limit_ns
        self._base_cpu_ns = base_cpu_ns
        self._grace_s = grace_s
        self.reason: StopReason | None = None
        self.due_at = deadline_at
        self.killed = False
        self._arm(now, cpu_limit_ns)

    def _arm(self, now: float, cpu_left_ns: int) -> None:
        due_at = now + cpu_left_ns / _CPU_NS_PER_S
        if due_at > self._deadline_at:
            due_at = self._deadline_at
        elif due_at < now + _MIN_CPU_CHECK_S:
            due_at = min(now + _MIN_CPU_CHECK_S, self._deadline_at)
        self._alarm = self._alarms.set(due_at, self._on_alarm)

    def _on_alarm(self) -> None:
        now = time.monotonic()
        if now >= self._deadline_at:
            self.stop(StopReason.DEADLINE)
            return
        left_ns = self._cpu_limit_ns - (self._runner.child.cpu_time_ns() - self._base_cpu_ns)
        if left_ns <= 0:
            self.stop(StopReason.CPU_TIME)
        else:
            self._arm(now, left_ns)

    def stop(self, reason: StopReason) -> None:
        """Stop the call now: interrupt, and after the grace kill. Idempotent."""
        if self.reason is not None or self._runner.breach:
            return
        self.disarm()
        self.reason = reason
        if reason is not StopReason.DEADLINE:
            self.due_at = time.monotonic()
        if self._runner.is_running:
            self._runner.interrupt()
            self._alarm = self._alarms.set(time.monotonic() + self._grace_s, self._kill)

    def _kill(self) -> None:
        self.killed = True
        self._runner.kill()

    def disarm(self) -> None:
        """The call ended; nothing fires any more."""
        self._alarms.cancel(self._alarm)
