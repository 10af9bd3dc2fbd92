"""Limits of a call: the server's defaults and maxima, and what a request makes of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

from sandboxd.supervisor import faults
from sandboxd.v1 import sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

# Requests ask for few different sets of limits; those that were worked out lately are remembered.
_REMEMBERED = 256


@dataclass(frozen=True)
class CallLimits:
    """Limits of one call; units in the names. `fuel` None means not metered."""

    wall_time_ms: int
    cpu_time_ms: int
    memory_bytes: int
    table_elements: int
    output_bytes: int
    fuel: int | None = None

    def message(self) -> sandbox_pb2.Limits:
        """Return the limits as they are told to clients."""
        return sandbox_pb2.Limits(
            wall_time_ms=self.wall_time_ms,
            cpu_time_ms=self.cpu_time_ms,
            memory_bytes=self.memory_bytes,
            table_elements=self.table_elements,
            output_bytes=self.output_bytes,
            fuel=self.fuel,
        )

    @cached_property
    def receipt_fields(self) -> bytes:
        """What a serialized Receipt has of them."""
        return sandbox_pb2.Receipt(limits=self.message()).SerializeToString()

    @cached_property
    def job_fields(self) -> bytes:
        """What a serialized wire.v1.Execute has of them."""
        return runner_pb2.Execute(
            memory_bytes=self.memory_bytes,
            table_elements=self.table_elements,
            output_bytes=self.output_bytes,
            fuel=self.fuel,
        ).SerializeToString()


class LimitPolicy:
    """Turns a request's limits into those that apply: absent means default, above means maximum."""

    def __init__(self, default: CallLimits, maximum: CallLimits) -> None:
        self.default = default
        self.maximum = maximum
        self._resolved: OrderedDict[bytes, CallLimits] = OrderedDict()

    def resolve(self, asked: sandbox_pb2.Limits) -> CallLimits:
        """Return the limits that apply. Raises `faults.InvalidRequest` for a time of zero."""
        wanted = asked.SerializeToString()
        limits = self._resolved.get(wanted)
        if limits is None:
            limits = self._resolve(asked)
            # What is unknown in a message is serialized, too: it is the client's choice how long.
            if len(wanted) <= 128:
                self._resolved[wanted] = limits
                if len(self._resolved) > _REMEMBERED:
                    self._resolved.popitem(last=False)
        return limits

    def _resolve(self, asked: sandbox_pb2.Limits) -> CallLimits:
        wall_time_ms = _positive(asked, "wall_time_ms", self)
        cpu_time_ms = _positive(asked, "cpu_time_ms", self)
        if not asked.HasField("cpu_time_ms"):
            # Whoever asks for more time means to use it.
            cpu_time_ms = min(max(cpu_time_ms, wall_time_ms), self.maximum.cpu_time_ms)
        return CallLimits(
            wall_time_ms=wall_time_ms,
            cpu_time_ms=cpu_time_ms,
            memory_bytes=_bounded(asked, "memory_bytes", self),
            table_elements=_bounded(asked, "table_elements", self),
            output_bytes=_bounded(asked, "output_bytes", self),
            fuel=_fuel(asked, self.maximum.fuel),
        )


def _bounded(asked: sandbox_pb2.Limits, name: str, policy: LimitPolicy) -> int:
    value: int = getattr(asked, name) if asked.HasField(name) else getattr(policy.default, name)  # type: ignore[arg-type]
    maximum: int = getattr(policy.maximum, name)
    return min(value, maximum)


def _positive(asked: sandbox_pb2.Limits, name: str, policy: LimitPolicy) -> int:
    value = _bounded(asked, name, policy)
    if value <= 0:
        raise faults.InvalidRequest(
            f"limits.{name} must be positive; leave it out for the server's default",
            field=f"limits.{name}",
        )
    return value


def _fuel(asked: sandbox_pb2.Limits, maximum: int | None) -> int | None:
    if not asked.HasField("fuel"):
        return None
    return asked.fuel if maximum is None else min(asked.fuel, maximum)
