"""How a runner comes to be: what it is given, and how long it may live."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.supervisor.lifecycle import State
from sandboxd.supervisor.outbox import Outbox
from sandboxd.supervisor.pause import PAUSE_S
from sandboxd.supervisor.runner import Runner
from sandboxd.supervisor.zygote import ChildLimits, Zygote
from sandboxd.wire.v1 import control_pb2

# How much earlier than its maximum age or count a runner may be retired, at random, so that runners
# started together do not all end together.
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Sizes and ages of the pool."""

    capacity: int
    """Most runners at once, those that are dying aside."""
    spares: int
    """Runners kept ready ahead of need."""
    queue_capacity: int
    """Most calls that may wait for a runner."""
    max_executions: int
    """Calls that a runner serves before it is retired."""
    max_age_s: float
    """Seconds after which a runner is retired."""
    idle_timeout_s: float
    """Seconds after which a bound runner without a call is retired."""
    max_output_bytes: int
    """The largest output limit of a call: sizes the outbox."""
    limits: ChildLimits
    """Resource limits of a runner."""
    max_input_bytes: int = 0
    """The longest input of a call: sizes the inbox."""
    ahead: int = 0
    """Most runners that are bound to a module before there is a call for it."""
    pause_s: float = PAUSE_S
    """How long calls must pause before work is done that none of them waits for."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who hears of a runner's life; see `Runner`."""

    on_ready: Callable[[Runner], None]
    on_kill: Callable[[Runner, State], None]
    on_dead: Callable[[Runner], None]


def start_runner(
    zygote: Zygote, config: PoolConfig, limits: ChildLimits, hooks: Hooks, *, awaited: bool
) -> Runner:
    """Have a runner forked; `awaited` if a call waits for it already.

    Raises OSError, with nothing taken, and `faults.ZygoteLost`.
    """
    outbox = Outbox(config.max_output_bytes, config.max_input_bytes)
    interrupt_read, interrupt_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(interrupt_read, True)
    try:
        child = zygote.spawn(
            control_pb2.CHILD_KIND_RUNNER, [interrupt_read, outbox.fd], limits, awaited=awaited
        )
    except BaseException:
        os.close(interrupt_write)
        raise
    finally:
        os.close(interrupt_read)
    runner = Runner(
        child,
        outbox,
        interrupt_write,
        zygote.layers,
        hooks.on_ready,
        hooks.on_kill,
        hooks.on_dead,
    )
    runner.retire_after_executions = max(1, round(config.max_executions * _jitter()))
    runner.retire_at = asyncio.get_running_loop().time() + config.max_age_s * _jitter()
    return runner


def _jitter() -> float:
    return 1.0 - random.random() * JITTER  # noqa: S311 - spreads load, guards nothing
