"""Compilers that were killed: how many it takes until it is their module."""

from __future__ import annotations

import dataclasses

import pytest
from tests.supervisor.fakes import key

from sandboxd.supervisor import faults
from sandboxd.supervisor.losses import MAX_LOSSES, MAX_MODULES, WINDOW_S, Losses


@dataclasses.dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def lose(losses: Losses, name: str, times: int = 1) -> None:
    for _ in range(times):
        losses.add(key(name))


def test_some_losses_are_chance_and_one_more_is_the_module() -> None:
    losses = Losses(Clock())
    lose(losses, "a", MAX_LOSSES - 1)
    losses.check(key("a"))
    with pytest.raises(faults.ModuleTooComplex, match="killed") as caught:
        lose(losses, "a")
    assert caught.value.metadata == {"limit": "crash"}
    assert caught.value.retry_after_s is None
    with pytest.raises(faults.ModuleTooComplex):
        losses.check(key("a"))
    losses.check(key("b"))
    losses.check(key("a")._replace(fuel=True))


def test_losses_that_are_far_apart_are_chance() -> None:
    clock = Clock()
    losses = Losses(clock)
    for _ in range(10):
        lose(losses, "a")
        clock.now += WINDOW_S * 0.6
    losses.check(key("a"))


def test_the_verdict_ends_after_a_while() -> None:
    clock = Clock()
    losses = Losses(clock)
    lose(losses, "a", MAX_LOSSES - 1)
    with pytest.raises(faults.ModuleTooComplex):
        lose(losses, "a")
    clock.now += WINDOW_S - 1
    with pytest.raises(faults.ModuleTooComplex, match="for 1 s"):
        losses.check(key("a"))
    clock.now += 2
    losses.check(key("a"))
    lose(losses, "a", MAX_LOSSES - 1)


def test_no_number_of_modules_makes_it_grow() -> None:
    losses = Losses(Clock())
    for number in range(MAX_MODULES + 10):
        lose(losses, str(number))
    assert len(losses._times) == MAX_MODULES
