"""The gate: who is inside may finish, nobody comes in after it closed."""

from __future__ import annotations

import asyncio

import pytest

from sandboxd.supervisor import faults
from sandboxd.supervisor.gate import Gate


async def test_a_closed_gate_waits_for_those_inside_and_refuses_the_others() -> None:
    gate = Gate()
    with gate, gate:
        gate.close()
        empty = asyncio.ensure_future(gate.wait_empty())
        await asyncio.sleep(0)
        assert not empty.done()
        with pytest.raises(faults.ShuttingDown) as caught, gate:
            pass
        assert caught.value.retry_after_s
    await empty


async def test_who_leaves_with_an_error_has_left() -> None:
    gate = Gate()
    with pytest.raises(ValueError, match="x"), gate:
        raise ValueError("x")
    await gate.wait_empty()


async def test_an_open_gate_that_nobody_uses_is_empty() -> None:
    await Gate().wait_empty()
