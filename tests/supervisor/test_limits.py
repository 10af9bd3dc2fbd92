"""Limits: absent means the default, above means the maximum, zero time is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor import faults
from sandboxd.supervisor.limits import CallLimits, LimitPolicy
from sandboxd.v1 import sandbox_pb2

TIMES = ("wall_time_ms", "cpu_time_ms")
SIZES = ("memory_bytes", "table_elements", "output_bytes")
DEFAULT = CallLimits(10, 20, 30, 40, 50)
MAXIMUM = CallLimits(100, 200, 300, 400, 500)

u64 = st.integers(0, 2**64 - 1)
some_limits = st.fixed_dictionaries({}, optional=dict.fromkeys((*TIMES, *SIZES, "fuel"), u64))


@given(some_limits)
def test_what_applies_is_what_was_asked_for_within_the_servers_bounds(
    asked: dict[str, int],
) -> None:
    policy = LimitPolicy(DEFAULT, MAXIMUM)
    message = sandbox_pb2.Limits(**asked)
    zero = [name for name in TIMES if asked.get(name) == 0]
    if zero:
        with pytest.raises(faults.InvalidRequest) as caught:
            policy.resolve(message)
        assert caught.value.field == f"limits.{zero[0]}"
        return
    applied = policy.resolve(message)
    for name in (*TIMES, *SIZES):
        wanted = asked.get(name, getattr(DEFAULT, name))
        if name == "cpu_time_ms" and name not in asked:
            # Whoever asks for more time on the wall may use it.
            wanted = max(wanted, applied.wall_time_ms)
        assert getattr(applied, name) == min(wanted, getattr(MAXIMUM, name))
    assert applied.fuel == asked.get("fuel")


@given(some_limits)
def test_the_told_limits_are_those_that_applied(asked: dict[str, int]) -> None:
    policy = LimitPolicy(DEFAULT, MAXIMUM)
    message = sandbox_pb2.Limits(**{**asked, "wall_time_ms": 1, "cpu_time_ms": 1})
    told = policy.resolve(message).message()
    assert told.HasField("fuel") == ("fuel" in asked)
    # Asking for what was told changes nothing.
    assert policy.resolve(told).message() == told


def test_a_default_above_the_maximum_is_lowered_to_it() -> None:
    policy = LimitPolicy(default=MAXIMUM, maximum=DEFAULT)
    assert policy.resolve(sandbox_pb2.Limits()) == DEFAULT


@given(u64)
def test_fuel_has_a_maximum_only_if_the_server_sets_one(fuel: int) -> None:
    bounded = LimitPolicy(DEFAULT, CallLimits(100, 200, 300, 400, 500, fuel=7))
    assert bounded.resolve(sandbox_pb2.Limits(fuel=fuel)).fuel == min(fuel, 7)
    assert bounded.resolve(sandbox_pb2.Limits()).fuel is None
