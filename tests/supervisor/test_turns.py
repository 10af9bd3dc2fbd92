"""Slots for many tenants: each has its turn."""

from __future__ import annotations

import asyncio

from sandboxd.supervisor.turns import Turns


async def hold(turns: Turns, tenant: str, served: list[str]) -> None:
    async with turns.slot(tenant):
        served.append(tenant)
        await asyncio.sleep(0)


async def test_a_tenant_that_asks_for_much_delays_another_by_one() -> None:
    turns = Turns(1)
    served: list[str] = []
    async with asyncio.TaskGroup() as group, turns.slot("holder"):
        for tenant in ("greedy", "greedy", "greedy", "late", "later"):
            group.create_task(hold(turns, tenant, served))
        await asyncio.sleep(0)
    assert served == ["greedy", "late", "later", "greedy", "greedy"]


async def test_within_a_tenant_the_first_comes_first() -> None:
    turns = Turns(1)
    served: list[int] = []

    async def numbered(number: int) -> None:
        async with turns.slot("t"):
            served.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(numbered(number))
    assert served == [0, 1, 2, 3, 4]


async def test_no_more_slots_are_out_than_there_are() -> None:
    turns = Turns(2)
    held = most = 0

    async def counted(tenant: str) -> None:
        nonlocal held, most
        async with turns.slot(tenant):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(counted(str(number % 3)))
    assert most == 2


async def test_one_that_gives_up_waiting_gives_its_turn_away() -> None:
    turns = Turns(1)
    served: list[str] = []
    async with turns.slot("holder"):
        waiting = asyncio.create_task(hold(turns, "gives up", served))
        other = asyncio.create_task(hold(turns, "waits", served))
        await asyncio.sleep(0)
        waiting.cancel()
    await other
    assert served == ["waits"]


async def test_one_that_is_cancelled_just_as_its_turn_comes_passes_it_on() -> None:
    turns = Turns(1)
    served: list[str] = []
    await turns._acquire("holder")
    waiting = asyncio.create_task(hold(turns, "gives up", served))
    await asyncio.sleep(0)
    turns._release()  # the slot is handed over ...
    waiting.cancel()  # ... and refused
    await asyncio.wait({waiting})
    await asyncio.wait_for(hold(turns, "next", served), 1)
    assert served == ["next"]
